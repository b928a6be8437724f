// One core that runs blocks, one after the other.

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

struct Range {  // one array that the launch may touch
    char* begin;
    char* end;
    int item;      // bytes of one element
    int writable;  // 0: the kernel declares it const
    const char* name;
};

struct Request {  // one launch, as Python hands it over
    void (*entry)(void** arguments);
    void** arguments;
    const char* kernel;
    unsigned grid[3], block[3];
    size_t dynamic_shared;
    const size_t* static_shared;  // the module's counter: how much its kernels have reserved
    int schedule, checks, workers;
    uint64_t seed;
    const Range* ranges;
    int range_count;
    int interrupts;  // how many of them end the launch
    int ways;  // that an access to shared memory may take, in bank mode
};

struct Copy {  // an asynchronous copy that is under way
    char* to;
    const char* from;
    int bytes, from_bytes, group;
    void* code;  // who began it
};

struct Warp;

struct Thread {
    uint3 index;
    int number, lane;
    Warp* warp;
    Fiber* fiber;  // null until it starts
    bool done;
    Place waits;  // where, if it waits
    std::vector<Copy> copies;
    int group;  // of the next asynchronous copy
};

struct Meeting {
    unsigned mask, arrived;
    Place place;
    Combine combine;
    void* extra;
    void* lanes[kWarp];
};

struct Warp {
    Thread* threads;    // lane 0
    unsigned lanes;     // that there are: fewer than 32 in the last warp of an odd block
    unsigned ready;     // that can run
    unsigned returned;  // from the kernel
    int meeting_count;
    Meeting meetings[kWarp];
};

struct RaceLog;
struct BankLog;

struct Launch {
    const Request* request;
    uint64_t blocks, stride, offset;  // the order of the blocks: see block_at
    std::atomic<uint64_t> next_block;
    std::atomic<bool> stop;
    std::atomic<bool> interrupted;  // by Ctrl-C
    std::mutex mutex;               // for the two below
    std::string error;
    std::vector<pthread_t> crew;  // that run blocks
    RaceLog* races;
    BankLog* banks;
};

// The block that comes as number `turn`, of launch->blocks.
inline uint64_t block_at(const Launch* launch, uint64_t turn) {
    return uint64_t((unsigned __int128)turn * launch->stride % launch->blocks + launch->offset) %
           launch->blocks;
}

class Worker {
  public:
    Worker();
    void run_blocks(Launch* launch);

    int barrier(int predicate, Place place);
    void meet(unsigned mask, void* mine, Combine combine, void* extra, Place place);
    void begin_copy(Copy copy);
    void land_copies(int groups_left);
    [[noreturn]] void fail(const std::string& text);
    [[noreturn]] void abandon();
    void end_if_interrupted() {
        if (launch->interrupted.load(std::memory_order_relaxed)) abandon();
    }
    void finish_thread();

    Thread* current() const { return running; }
    void set_current(Thread* thread);

    bool on_a_stack(const char* address) const {  // local variables, the simulator's own too
        return address >= fibers.front().low && address < fibers.back().high;
    }

    Launch* launch = nullptr;
    char* shared = nullptr;  // the block's shared memory
    int thread_count = 0;
    unsigned epoch = 0;  // barriers that this block has passed
    Thread threads[kMaxThreads];
    Warp warps[kMaxWarps];

  private:
    void start_block(uint64_t index);
    Thread* pick();
    Fiber* take_fiber();
    void forget_fibers();
    void wait(Thread* thread, Place place);
    void set_waiting(Thread* thread);
    void hold_meeting(Warp* warp, int index);
    [[noreturn]] void left_out(Warp* warp, const Meeting& meeting);
    [[noreturn]] void stuck();
    void check_copy(const Copy& copy);
    uint64_t random();

    Thread* running = nullptr;
    Context native;
    std::vector<Fiber> fibers;
    std::vector<Fiber*> free_fibers;
    size_t dirty_dynamic = 0, dirty_static = 0;  // bytes of it that some launch may have used
    unsigned ready_warps = 0;
    int arrived = 0, done = 0, predicates = 0, barrier_result = 0;
    Place barrier_place{};
    uint64_t random_state = 0;
};

extern thread_local Worker* this_worker;

// (x, y, z), and a thread by its index
std::string text(uint3 i);
std::string describe(const Thread* thread);

// signals.cpp
void give_thread_a_signal_stack();
struct CatchSignals {  // for as long as it lives
    CatchSignals();
    ~CatchSignals();
};

// interrupts.cpp
void start_watcher();  // once in each process
struct Interruptible {  // for as long as it lives, that many interrupts end the launch
    Interruptible(Launch* launch, int interrupts);
    ~Interruptible();

  private:
    bool mine_too = false;  // whether SIGINT is caught: not where it would kill, or is ignored
};

constexpr unsigned kPoison = 0x7fff7fffu;  // see scheduler.cpp

// checks.cpp: every access in a checked mode comes through here, and ends the launch if it is wrong
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


// banks.cpp
BankLog* start_bank_log();
void finish_bank_log(BankLog* log);
void bank_new_block(Worker* worker);
void bank_access(Worker* worker, size_t offset, size_t bytes, void* code);
void bank_check(Worker* worker);

}  // namespace cudasim

#endif
