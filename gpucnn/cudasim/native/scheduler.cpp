// Runs the threads of a block by turns, each on its fiber.  Who waits for whom is in meetings.cpp.

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

// Every 16 bits of kPoison are a NaN as float16 and as bfloat16, every 32 as float32, every 64 as
// float64; as an integer index it is far out of bounds.
void poison(char* memory, size_t bytes) {
    unsigned* words = reinterpret_cast<unsigned*>(memory);
    for (size_t i = 0; i < (bytes + 3) / 4; ++i) words[i] = kPoison;
}

void fiber_main() {
    Worker* worker = this_worker;  // the same as long as the fiber lives
    for (;;) {
        const Request* request = worker->launch->request;
        request->entry(request->arguments);
        worker->finish_thread();
        // Here this fiber has been given another thread to run.
    }
}

}  // namespace

std::string text(uint3 i) {
    return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
}

std::string describe(const Thread* thread) { return "thread " + text(thread->index); }

Worker::Worker() {
    char* stacks = allocate_stacks(kMaxThreads + 1);
    shared = static_cast<char*>(mmap(nullptr, kDynamicShared + kStaticShared,
                                    PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (!stacks || shared == MAP_FAILED) {
        fputs("cudasim: no memory for the threads' stacks\n", stderr);
        abort();
    }
    poison(shared, kDynamicShared + kStaticShared);
    fibers.resize(kMaxThreads + 1);
    for (int i = 0; i <= kMaxThreads; ++i) {
        fibers[i].low = stacks + kStride * i + kPage;
        fibers[i].high = fibers[i].low + kStack;
    }
    forget_fibers();
}

// All fibers start anew: at first, and after a failed launch has left them wherever they were.
void Worker::forget_fibers() {
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
        launch->crew.push_back(pthread_self());
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
        threads[i].waits = {};
        if (launch->races)
            for (const Copy& copy : threads[i].copies) race_copy(this, copy, -1);
        threads[i].copies.clear();
        threads[i].group = 0;
    }
    int left = thread_count;
    for (int i = 0; left > 0; ++i, left -= kWarp) {
        warps[i].lanes = warps[i].ready = left >= kWarp ? ~0u : (1u << left) - 1;
        warps[i].returned = 0;
        warps[i].meeting_count = 0;
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

// Whoever runs next, or null between blocks.
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

// Who goes on.  The greedy schedules run the lowest (highest) thread that can run, so that one
// warp gets as far ahead of the others as the kernel lets it: a barrier that is missing shows.
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

// Lets others run until somebody makes `thread` ready again (it may be so already).
void Worker::wait(Thread* thread, Place place) {
    thread->waits = place;
    Thread* next = pick();
    if (!next) stuck();
    if (next != thread) {
        if (!next->fiber) next->fiber = take_fiber();
        set_current(next);
        switch_context(&thread->fiber->context, &next->fiber->context);
    }
    thread->waits = {};
}

// `thread` cannot run until it is made ready again.
void Worker::set_waiting(Thread* thread) {
    thread->warp->ready &= ~(1u << thread->lane);
    if (!thread->warp->ready) ready_warps &= ~(1u << thread->number / kWarp);
}

// The current thread has returned from the kernel.  Comes back when its fiber has another one.
void Worker::finish_thread() {
    Thread* thread = current();
    Warp* warp = thread->warp;
    thread->done = true;
    warp->returned |= 1u << thread->lane;
    set_waiting(thread);
    ++done;
    for (int i = 0; i < warp->meeting_count; ++i)
        if (warp->meetings[i].mask >> thread->lane & 1) left_out(warp, warp->meetings[i]);
    if (launch->banks && done == thread_count) bank_check(this);
    Fiber* fiber = thread->fiber;
    Thread* next = thread + 1;  // the common case: all below have returned, and it can run
    if (thread->number != done - 1 || done == thread_count || !(next->warp->ready >> next->lane & 1) ||
        launch->request->schedule != kLowest)
        next = pick();
    if (!next && done < thread_count) stuck();
    if (next && !next->fiber) {  // go on with the same, still warm stack
        next->fiber = fiber;
        set_current(next);
        return;
    }
    free_fibers.push_back(fiber);
    set_current(next);
    switch_context(&fiber->context, next ? &next->fiber->context : &native);
}

// Gives up the launch: no other fiber is ever resumed, and a kernel owns nothing to release.
void Worker::fail(const std::string& message) {
    {
        std::lock_guard<std::mutex> lock(launch->mutex);
        if (launch->error.empty())
            launch->error = std::string(launch->request->kernel) + ": block " + text(blockIdx) +
                            ", " + describe(current()) + " " + message;
    }
    abandon();
}

// Leaves the kernel from the current thread, wherever that is.
void Worker::abandon() {
    launch->stop = true;
    forget_fibers();
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
