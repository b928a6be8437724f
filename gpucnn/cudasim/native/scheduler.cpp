// Runs the threads of a block in turn, each on its own fiber.  barriers.cpp decides who waits.

#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "worker.h"

__thread uint3 threadIdx, blockIdx, blockDim, gridDim;
__thread int cudasim_lane;
__thread CudasimShared cudasim_shared;

namespace cudasim {

thread_local Worker* this_worker = nullptr;

namespace {

// kPoison reads as NaN in float16, bfloat16, float32 and float64; as an integer index it is far out
// of bounds.
void poison(char* memory, size_t bytes) {
    unsigned* words = reinterpret_cast<unsigned*>(memory);
    for (size_t i = 0; i < (bytes + 3) / 4; ++i) words[i] = kPoison;
}

void fiber_main() {
    Worker* worker = this_worker;  // does not change while the fiber lives
    for (;;) {
        const Request* request = worker->launch->request;
        request->entry(request->arguments);
        worker->finish_thread();
        // finish_thread returns when this fiber has been assigned another thread.
    }
}

}  // namespace

std::string text(uint3 i) {
    return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
}

std::string describe(const Thread* thread) { return "thread " + text(thread->index); }

Worker::Worker() {
    stacks = allocate_stacks(kMaxThreads + 1);
    shared = static_cast<char*>(mmap(nullptr, kDynamicShared + kStaticShared,
                                    PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (!stacks || shared == MAP_FAILED) {
        fputs("cudasim: out of memory for the stacks of the threads\n", stderr);
        abort();
    }
    poison(shared, kDynamicShared + kStaticShared);
    fibers.resize(kMaxThreads + 1);
    for (int i = 0; i <= kMaxThreads; ++i) {
        fibers[i].low = stacks + kStride * i + kPage;
        fibers[i].high = fibers[i].low + kStack;
    }
    reset_fibers();
}

Worker::~Worker() {
    munmap(stacks, kStride * fibers.size());
    munmap(shared, kDynamicShared + kStaticShared);
    this_worker = nullptr;
}

// Makes all fibers start afresh: initially, and after a failed launch left them suspended.
void Worker::reset_fibers() {
    free_fibers.clear();
    for (int i = kMaxThreads; i >= 0; --i) {
        fibers[i].prepared = false;
        free_fibers.push_back(&fibers[i]);
    }
}

void Worker::run_blocks(Launch* the_launch) {
    launch = the_launch;
    {
        std::lock_guard<std::mutex> lock(launch->mutex);
        launch->runners.push_back(pthread_self());
    }
    const Request* request = launch->request;
    const unsigned* size = request->block;
    blockDim = {size[0], size[1], size[2]};
    gridDim = {request->grid[0], request->grid[1], request->grid[2]};
    cudasim_shared.start = shared;
    thread_count = size[0] * size[1] * size[2];
    for (int i = 0; i < thread_count; ++i) {
        Thread& thread = threads[i];
        unsigned n = i;
        thread.index = {n % size[0], n / size[0] % size[1], n / size[0] / size[1]};
        thread.lane = n % kWarp;
        thread.number = i;
        thread.warp = &warps[i / kWarp];
        thread.copies.clear();
        if (thread.lane == 0) thread.warp->threads = &thread;
    }
    poison(shared, dirty_dynamic);
    poison(shared + kDynamicShared, dirty_static);
    for (;;) {
        uint64_t turn = launch->next_block.fetch_add(1);
        if (turn >= launch->blocks || launch->stop) break;
        start_block(block_at(launch, turn));
    }
    if (dirty_dynamic < request->dynamic_shared) dirty_dynamic = request->dynamic_shared;
    if (dirty_static < *request->static_shared) dirty_static = *request->static_shared;
    launch = nullptr;
}

void Worker::start_block(uint64_t index) {
    const Request* request = launch->request;
    const unsigned* grid = request->grid;
    blockIdx = {unsigned(index % grid[0]), unsigned(index / grid[0] % grid[1]),
                unsigned(index / grid[0] / grid[1])};
    random_state = request->seed * 0x9e3779b97f4a7c15u + index + 1;
    poison(shared, request->dynamic_shared);
    poison(shared + kDynamicShared, *request->static_shared);
    arrived = done = predicates = 0;
    epoch = 0;
    ready_warps = 0;
    for (int i = 0; i < thread_count; ++i) {
        threads[i].fiber = nullptr;
        threads[i].done = false;
        threads[i].waiting_at = {};
        if (launch->races)
            for (const Copy& copy : threads[i].copies) race_copy(this, copy, -1);
        threads[i].copies.clear();
        threads[i].group = 0;
    }
    int left = thread_count;
    for (int i = 0; left > 0; ++i, left -= kWarp) {
        warps[i].lanes = warps[i].ready = left >= kWarp ? ~0u : (1u << left) - 1;
        warps[i].returned = 0;
        warps[i].sync_count = 0;
        ready_warps |= 1u << i;
    }
    if (launch->races) race_new_block(this);
    if (launch->banks) bank_new_block(this);
    Thread* first = pick();
    first->fiber = take_fiber();
    set_current(first);
    switch_context(&native, &first->fiber->context);
    set_current(nullptr);
}

// `thread` is the one to run next; null between blocks.
void Worker::set_current(Thread* thread) {
    running = thread;
    if (!thread) return;
    threadIdx = thread->index;
    cudasim_lane = thread->lane;
}

Fiber* Worker::take_fiber() {
    Fiber* fiber = free_fibers.back();
    free_fibers.pop_back();
    if (!fiber->prepared) prepare_fiber(fiber, int(fiber - fibers.data()), fiber_main);
    fiber->prepared = true;
    return fiber;
}

uint64_t Worker::random() {
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;  // splitmix64
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

// The thread to run next; null if none is ready.  The greedy schedules pick the lowest (highest)
// ready thread, so that one warp runs as far ahead of the others as the kernel allows: this exposes
// missing barriers.
Thread* Worker::pick() {
    if (!ready_warps) return nullptr;
    int schedule = launch->request->schedule;
    int warp, lane;
    if (schedule == kLowest) {
        warp = __builtin_ctz(ready_warps);
        lane = __builtin_ctz(warps[warp].ready);
    } else if (schedule == kHighest) {
        warp = 31 - __builtin_clz(ready_warps);
        lane = 31 - __builtin_clz(warps[warp].ready);
    } else {
        auto any_bit = [&](unsigned bits) {
            for (int skip = random() % __builtin_popcount(bits); skip > 0; --skip) bits &= bits - 1;
            return __builtin_ctz(bits);
        };
        warp = any_bit(ready_warps);
        lane = any_bit(warps[warp].ready);
    }
    return &threads[warp * kWarp + lane];
}

// Runs other threads until `thread` is ready again (it may be already).
void Worker::wait(Thread* thread, CallSite site) {
    thread->waiting_at = site;
    Thread* next = pick();
    if (!next) fail_deadlock();
    if (next != thread) {
        if (!next->fiber) next->fiber = take_fiber();
        set_current(next);
        switch_context(&thread->fiber->context, &next->fiber->context);
    }
    thread->waiting_at = {};
}

// `thread` must not run until it is made ready again.
void Worker::set_waiting(Thread* thread) {
    thread->warp->ready &= ~(1u << thread->lane);
    if (!thread->warp->ready) ready_warps &= ~(1u << thread->number / kWarp);
}

// The current thread has returned from the kernel.  Returns when its fiber has another one to run.
void Worker::finish_thread() {
    Thread* thread = current();
    Warp* warp = thread->warp;
    thread->done = true;
    warp->returned |= 1u << thread->lane;
    set_waiting(thread);
    ++done;
    for (int i = 0; i < warp->sync_count; ++i)
        if (warp->syncs[i].mask >> thread->lane & 1) fail_missing_lane(warp, warp->syncs[i]);
    if (launch->banks && done == thread_count) bank_check(this);
    Fiber* fiber = thread->fiber;
    Thread* next = thread + 1;  // the common case: all lower threads have returned, and this one is ready
    if (thread->number != done - 1 || done == thread_count || !(next->warp->ready >> next->lane & 1) ||
        launch->request->schedule != kLowest)
        next = pick();
    if (!next && done < thread_count) fail_deadlock();
    if (next && !next->fiber) {  // reuse the stack, which is still in the cache
        next->fiber = fiber;
        set_current(next);
        return;
    }
    free_fibers.push_back(fiber);
    set_current(next);
    switch_context(&fiber->context, next ? &next->fiber->context : &native);
}

// Aborts the launch.  No other fiber is resumed; kernels own nothing that would need releasing.
void Worker::fail(const std::string& message) {
    {
        std::lock_guard<std::mutex> lock(launch->mutex);
        if (launch->error.empty())
            launch->error = std::string(launch->request->kernel) + ": block " + text(blockIdx) +
                            ", " + describe(current()) + " " + message;
    }
    abandon();
}

// Leaves the kernel from the current thread, wherever it is.
void Worker::abandon() {
    launch->stop = true;
    reset_fibers();
    Context abandoned;
    switch_context(&abandoned, &native);
    __builtin_unreachable();
}

}  // namespace cudasim

void cudasim_fail(const char* format, ...) {
    char message[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    cudasim::this_worker->fail(message);
}
