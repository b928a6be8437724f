// A worker: one core that runs blocks, one after another.

#ifndef CUDASIM_WORKER_H
#define CUDASIM_WORKER_H

#include <atomic>
#include <mutex>
#include <pthread.h>
#include <string>
#include <vector>

#define CUDASIM_RUNTIME
#include "fiber.h"
#include "runtime.h"

namespace cudasim {

constexpr int kMaxThreads = 1024, kWarp = 32, kMaxWarps = kMaxThreads / kWarp;

enum Schedule { kLowest = 0, kHighest = 1, kRandom = 2 };
enum Check { kAddress = 1, kRace = 2, kBankConflicts = 4 };

struct Range {  // an array that the launch may access
    char* begin;
    char* end;
    int item;      // bytes per element
    int writable;  // 0: the kernel declares it const
    const char* name;
};

struct Request {  // a launch, as passed by Python
    void (*entry)(void** arguments);
    void** arguments;
    const char* kernel;
    unsigned grid[3], block[3];
    size_t dynamic_shared;
    const size_t* static_shared;  // the module's counter of reserved bytes
    int schedule, checks, workers;
    uint64_t seed;
    const Range* ranges;
    int range_count;
    int interrupts;  // the number of Ctrl-C presses that end the launch
    int ways;        // in bank mode: passes that a shared-memory access may take
};

struct Copy {  // an asynchronous copy in flight
    char* to;
    const char* from;
    int bytes, from_bytes, group;
    void* code;  // the call that started it
};

struct Warp;

struct Thread {
    uint3 index;
    int number, lane;
    Warp* warp;
    Fiber* fiber;  // null until it starts
    bool done;
    CallSite waiting_at;  // {} while it does not wait
    std::vector<Copy> copies;
    int group;  // of the next asynchronous copy
};

struct WarpSync {  // lanes of a warp that wait for each other
    unsigned mask, arrived;
    CallSite site;
    Combine combine;
    void* extra;
    void* lanes[kWarp];
};

struct Warp {
    Thread* threads;    // lane 0
    unsigned lanes;     // mask of existing lanes: the last warp of a block may have fewer than 32
    unsigned ready;     // mask of lanes that can run
    unsigned returned;  // mask of lanes that have returned from the kernel
    int sync_count;
    WarpSync syncs[kWarp];
};

struct RaceLog;
struct BankLog;

struct Launch {
    const Request* request;
    uint64_t blocks, stride, offset;  // the order of the blocks: see block_at
    std::atomic<uint64_t> next_block;
    std::atomic<bool> stop;
    std::atomic<bool> interrupted;  // by Ctrl-C
    std::mutex mutex;               // guards the two below
    std::string error;
    std::vector<pthread_t> runners;  // the threads that run its blocks
    RaceLog* races;
    BankLog* banks;
};

// The index of the block that runs as number `turn`.
inline uint64_t block_at(const Launch* launch, uint64_t turn) {
    return uint64_t((unsigned __int128)turn * launch->stride % launch->blocks + launch->offset) %
           launch->blocks;
}

class Worker {
  public:
    Worker();
    ~Worker();
    void run_blocks(Launch* launch);

    int barrier(int predicate, CallSite site);
    void warp_sync(unsigned mask, void* mine, Combine combine, void* extra, CallSite site);
    void begin_copy(Copy copy);
    void complete_copies(int groups_left);
    [[noreturn]] void fail(const std::string& text);
    [[noreturn]] void abandon();
    void end_if_interrupted() {
        if (launch->interrupted.load(std::memory_order_relaxed)) abandon();
    }
    void finish_thread();

    Thread* current() const { return running; }
    void set_current(Thread* thread);

    bool on_a_stack(const char* address) const {  // local variables, of the simulator too
        return address >= fibers.front().low && address < fibers.back().high;
    }

    Launch* launch = nullptr;
    char* shared = nullptr;  // the block's shared memory
    int thread_count = 0;
    unsigned epoch = 0;  // barriers passed by this block
    Thread threads[kMaxThreads];
    Warp warps[kMaxWarps];

  private:
    void start_block(uint64_t index);
    Thread* pick();
    Fiber* take_fiber();
    void reset_fibers();
    void wait(Thread* thread, CallSite site);
    void set_waiting(Thread* thread);
    void complete_sync(Warp* warp, int index);
    [[noreturn]] void fail_missing_lane(Warp* warp, const WarpSync& sync);
    [[noreturn]] void fail_deadlock();
    void check_copy(const Copy& copy);
    uint64_t random();

    Thread* running = nullptr;
    Context native;
    char* stacks = nullptr;  // of the fibers
    std::vector<Fiber> fibers;
    std::vector<Fiber*> free_fibers;
    size_t dirty_dynamic = 0, dirty_static = 0;  // bytes of `shared` that a launch may have used
    unsigned ready_warps = 0;
    int arrived = 0, done = 0, predicates = 0, barrier_result = 0;
    CallSite barrier_site{};
    uint64_t random_state = 0;
};

extern thread_local Worker* this_worker;

// "(x, y, z)" and "thread (x, y, z)"
std::string text(uint3 i);
std::string describe(const Thread* thread);

// signals.cpp
class SignalStack {  // of this thread
  public:
    SignalStack();
    ~SignalStack();

  private:
    void* memory;
};
struct CatchSignals {  // during its lifetime, a fault in a kernel ends the launch
    CatchSignals();
    ~CatchSignals();
};

// interrupts.cpp
void start_watcher();  // once per process
struct Interruptible {  // during its lifetime, Ctrl-C pressed `interrupts` times ends the launch
    Interruptible(Launch* launch, int interrupts);
    ~Interruptible();

  private:
    bool catches_sigint = false;  // not where SIGINT is ignored or would kill the process
};

constexpr unsigned kPoison = 0x7fff7fffu;  // see scheduler.cpp

// checks.cpp: called for every access in a checked mode; ends the launch if the access is invalid
void check_access(Worker* worker, const char* address, size_t bytes, bool write, bool atomic,
                  void* code);
std::string memory_name(Worker* worker, const char* address);
std::string describe_code(Worker* worker, void* code);

// races.cpp
RaceLog* start_race_log(const Request* request);
void finish_race_log(RaceLog* log);
void race_new_block(Worker* worker);
void race_warp_sync(Worker* worker, Warp* warp, unsigned mask);
void race_access(Worker* worker, const char* address, size_t bytes, bool write, bool atomic,
                 void* code);
void race_copy(Worker* worker, const Copy& copy, int change);
void race_fence(Worker* worker);

// banks.cpp
BankLog* start_bank_log();
void finish_bank_log(BankLog* log);
void bank_new_block(Worker* worker);
void bank_access(Worker* worker, size_t offset, size_t bytes, void* code);
void bank_check(Worker* worker);

}  // namespace cudasim

#endif
