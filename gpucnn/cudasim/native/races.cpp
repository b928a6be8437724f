// Race mode: records the last accesses to each word and detects unordered ones.
//
// Two accesses to the same bytes by different threads, at least one of them a write, must be ordered:
// by __syncthreads within a block or __syncwarp within a warp.  Shuffles and votes order nothing.
// Two atomics need no order.
//
// Blocks are ordered only if they meet at a counter: a thread of one calls __threadfence and then an
// atomic function, later a thread of the other calls an atomic function at the same address and then
// __threadfence.  What the first block did before the barrier that preceded its fence happened before
// what follows in that thread of the second, and in its other threads after the next barrier.
//
// A block counts its barriers (the epoch).  Within a warp each lane has a vector clock: the number of
// __syncwarp calls of every other lane that happened before.

#include <cstdlib>
#include <cstring>
#include <memory>
#include <unordered_map>

#include "worker.h"

namespace cudasim {

namespace {

struct Access {
    uint64_t block;  // 1 + the number of blocks before; 0: no access
    void* code;
    unsigned epoch, clock;
    unsigned short thread;
    unsigned char bytes;  // a bit for each byte of the word
    bool atomic;
};

struct Cell {  // a word of 4 bytes
    Access write, reads[2];  // the last write; the last two reads by different threads
    int pending;  // asynchronous copies to it that are in flight
};

// By block, the barrier before which what it did happened before now.
using Meetings = std::unordered_map<uint64_t, unsigned>;

void merge(Meetings& into, const Meetings& from) {
    for (auto [block, epoch] : from)
        if (unsigned& known = into[block]; known < epoch) known = epoch;
}

// What a thread of the current block knows of other blocks.
struct Meeter {
    bool fenced = false;
    unsigned fence = 0;  // the epoch of its last fence
    Meetings met;        // at atomics since; known after the next fence
    Meetings known;
};

struct Free {
    void operator()(Cell* cells) const { free(cells); }
};
using Cells = std::unique_ptr<Cell[], Free>;

// calloc: pages that no kernel touches are never allocated.
Cells make_cells(size_t count) { return Cells(static_cast<Cell*>(calloc(count, sizeof(Cell)))); }

}  // namespace

struct RaceLog {
    const Request* request;
    uint64_t block = 0;
    std::vector<Cells> arrays;
    Cells shared;
    unsigned clocks[kMaxThreads][kWarp];
    std::unordered_map<const char*, Meetings> counters;  // who has met at an address
    std::unordered_map<int, Meeter> meeters;             // threads of this block, by number
    Meetings known;                                      // to all threads of this block
    std::vector<std::pair<unsigned, Meetings>> gained;   // after the barrier that ends this epoch
};

RaceLog* start_race_log(const Request* request) {
    RaceLog* log = new RaceLog;
    log->request = request;
    for (int i = 0; i < request->range_count; ++i) {
        const Range& range = request->ranges[i];
        log->arrays.push_back(make_cells((range.end - range.begin) / 4 + 2));
    }
    log->shared = make_cells((kDynamicShared + kStaticShared) / 4);
    return log;
}

void finish_race_log(RaceLog* log) { delete log; }

void race_new_block(Worker* worker) {
    RaceLog* log = worker->launch->races;
    ++log->block;
    for (auto& clock : log->clocks)
        for (int lane = 0; lane < kWarp; ++lane) clock[lane] = 0;
    for (int i = 0; i < worker->thread_count; ++i) log->clocks[i][i % kWarp] = 1;
    log->meeters.clear();
    log->known.clear();
    log->gained.clear();
}

// The current thread fences: it now knows whom it met, and what it did may be met.
void race_fence(Worker* worker) {
    RaceLog* log = worker->launch->races;
    Meeter& meeter = log->meeters[worker->current()->number];
    meeter.fenced = true;
    meeter.fence = worker->epoch;
    if (meeter.met.empty()) return;
    merge(meeter.known, meeter.met);
    log->gained.emplace_back(worker->epoch, meeter.met);
    meeter.met.clear();
}

static void learn(Worker* worker) {  // what other threads knew before the last barrier
    RaceLog* log = worker->launch->races;
    while (!log->gained.empty() && log->gained.front().first < worker->epoch) {
        merge(log->known, log->gained.front().second);
        log->gained.erase(log->gained.begin());
    }
}

// The current thread updates a counter.
static void meet(Worker* worker, const char* address) {
    RaceLog* log = worker->launch->races;
    Meeter& meeter = log->meeters[worker->current()->number];
    Meetings& counter = log->counters[address];
    merge(meeter.met, counter);
    if (!meeter.fenced) return;
    learn(worker);
    merge(counter, log->known);
    merge(counter, meeter.known);
    merge(counter, {{log->block, meeter.fence}});
}

// Whether an access of another block happened before the current thread met that block.
static bool met(Worker* worker, const Access& before) {
    RaceLog* log = worker->launch->races;
    learn(worker);
    auto knows = [&](const Meetings& known) {
        auto found = known.find(before.block);
        return found != known.end() && before.epoch < found->second;
    };
    auto meeter = log->meeters.find(worker->current()->number);
    return knows(log->known) || (meeter != log->meeters.end() && knows(meeter->second.known));
}

void race_warp_sync(Worker* worker, Warp* warp, unsigned mask) {
    RaceLog* log = worker->launch->races;
    int first = warp->threads->number;
    unsigned seen[kWarp] = {};
    for (int lane = 0; lane < kWarp; ++lane)
        if (mask >> lane & 1)
            for (int i = 0; i < kWarp; ++i)
                if (log->clocks[first + lane][i] > seen[i]) seen[i] = log->clocks[first + lane][i];
    for (int lane = 0; lane < kWarp; ++lane) {
        if (!(mask >> lane & 1)) continue;
        memcpy(log->clocks[first + lane], seen, sizeof seen);
        ++log->clocks[first + lane][lane];
    }
}

static Cell* cell_at(Worker* worker, const char* address, bool* shared) {
    RaceLog* log = worker->launch->races;
    size_t offset = address - worker->shared;
    *shared = offset < kDynamicShared + kStaticShared;
    if (*shared) return &log->shared[offset / 4];
    for (int i = 0; i < log->request->range_count; ++i) {
        const Range& range = log->request->ranges[i];
        uintptr_t base = reinterpret_cast<uintptr_t>(range.begin) / 4;
        if (address >= range.begin && address < range.end)
            return &log->arrays[i][reinterpret_cast<uintptr_t>(address) / 4 - base];
    }
    return nullptr;
}

// Whether `before` happened before `now`, an access by the current thread, or cannot race with it.
static bool ordered(Worker* worker, const Access& before, const Access& now, bool shared) {
    if (!before.block || !(before.bytes & now.bytes) || (before.atomic && now.atomic)) return true;
    if (before.block != now.block) return shared || met(worker, before);  // shared: another's
    if (before.thread == now.thread || before.epoch != now.epoch) return true;
    if (before.thread / kWarp != now.thread / kWarp) return false;
    return worker->launch->races->clocks[now.thread][before.thread % kWarp] >= before.clock;
}

static void report(Worker* worker, const char* address, const Access& before, bool before_wrote,
                   const Access& now, bool writes) {
    const char* past = before.atomic ? "updated" : before_wrote ? "wrote" : "read";
    const char* present = now.atomic ? "updates" : writes ? "writes" : "reads";
    std::string other = describe(&worker->threads[before.thread]);
    if (before.block != now.block) other += " of another block";
    worker->fail(std::string(present) + " " + memory_name(worker, address) +
                 describe_code(worker, now.code) + ", which " + other + " " + past +
                 describe_code(worker, before.code) + ": nothing orders the two");
}

void race_access(Worker* worker, const char* address, size_t bytes, bool write, bool atomic,
                 void* code) {
    RaceLog* log = worker->launch->races;
    Thread* thread = worker->current();
    const char* end = address + bytes;
    while (address < end) {
        size_t start = reinterpret_cast<uintptr_t>(address) % 4;
        size_t count = size_t(end - address) < 4 - start ? end - address : 4 - start;
        Access now;
        now.block = log->block;
        now.code = code;
        now.epoch = worker->epoch;
        now.clock = log->clocks[thread->number][thread->lane];
        now.thread = (unsigned short)thread->number;
        now.bytes = (unsigned char)(((1u << count) - 1) << start);
        now.atomic = atomic;
        bool shared;
        Cell* cell = cell_at(worker, address, &shared);
        if (!cell) return;
        if (atomic && !shared) meet(worker, address);
        if (cell->pending)
            worker->fail(std::string(write ? "writes " : "reads ") + memory_name(worker, address) +
                         describe_code(worker, code) +
                         ", to which an asynchronous copy is in flight");
        if (!ordered(worker, cell->write, now, shared))
            report(worker, address, cell->write, true, now, write);
        if (write)
            for (const Access& read : cell->reads)
                if (!ordered(worker, read, now, shared)) report(worker, address, read, false, now, true);
        if (write) {
            cell->write = now;
        } else {
            if (cell->reads[0].thread != now.thread || cell->reads[0].block != now.block)
                cell->reads[1] = cell->reads[0];
            cell->reads[0] = now;
        }
        address += count;
    }
}

// An asynchronous copy starts (change 1) or completes (-1).  In between, any other access to its
// target is an error.
void race_copy(Worker* worker, const Copy& copy, int change) {
    bool shared;
    for (int at = 0; at < copy.bytes; at += 4)
        if (Cell* cell = cell_at(worker, copy.to + at, &shared)) cell->pending += change;
}

}  // namespace cudasim
