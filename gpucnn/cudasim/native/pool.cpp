// Distributes the blocks of a launch over the cores.

#include <condition_variable>
#include <cstdio>
#include <memory>
#include <numeric>
#include <thread>

#include <unistd.h>

#include "worker.h"

namespace cudasim {
namespace {

Worker* worker_of_this_thread() {
    if (!this_worker) {
        // Freed when the thread ends: the guard pages of its stacks are 2050 of the 65530 memory
        // mappings that Linux gives a process.
        thread_local std::unique_ptr<Worker> worker;
        thread_local std::unique_ptr<SignalStack> signal_stack;
        worker = std::make_unique<Worker>();
        signal_stack = std::make_unique<SignalStack>();
        this_worker = worker.get();
    }
    return this_worker;
}

// Helper threads that wait for launches.  The launching thread runs blocks too.
class Pool {
  public:
    void run(Launch* launch, int workers) {
        {
            std::lock_guard<std::mutex> lock(mutex);
            while (int(helpers) < workers - 1) {
                std::thread([this, number = helpers] { help(number); }).detach();
                ++helpers;
            }
            job = launch;
            wanted = workers - 1;
            busy = wanted;
            ++generation;
        }
        if (workers > 1) wake.notify_all();
        worker_of_this_thread()->run_blocks(launch);
        std::unique_lock<std::mutex> lock(mutex);
        finished.wait(lock, [this] { return busy == 0; });
    }

  private:
    void help(int number) {
        uint64_t seen = 0;
        for (;;) {
            Launch* launch;
            {
                std::unique_lock<std::mutex> lock(mutex);
                wake.wait(lock, [&] { return generation != seen; });
                seen = generation;
                if (number >= wanted) continue;
                launch = job;
            }
            worker_of_this_thread()->run_blocks(launch);
            std::lock_guard<std::mutex> lock(mutex);
            if (--busy == 0) finished.notify_one();
        }
    }

    std::mutex mutex;
    std::condition_variable wake, finished;
    Launch* job = nullptr;
    int helpers = 0, wanted = 0, busy = 0;
    uint64_t generation = 0;
};

// Sets the order in which blocks start: up, down, or by a stride that visits each block once.
void order_blocks(Launch* launch) {
    uint64_t blocks = launch->blocks, seed = launch->request->seed;
    launch->stride = 1;
    launch->offset = 0;
    if (launch->request->schedule == kHighest) {
        launch->stride = launch->offset = blocks - 1;
    } else if (launch->request->schedule == kRandom) {
        launch->offset = seed * 0x9e3779b97f4a7c15u % blocks;
        launch->stride = seed * 0xbf58476d1ce4e5b9u % blocks;
        while (std::gcd(launch->stride, blocks) != 1) ++launch->stride;
    }
}

}  // namespace
}  // namespace cudasim

using namespace cudasim;

// Runs a launch to its end.  Returns 0, 1 with an error in `message`, or 2 if interrupted.
CUDASIM_EXPORT int cudasim_launch(const Request* request, char* message, size_t message_bytes) {
    static std::mutex one_launch;  // Python threads may launch concurrently
    static Pool* pool = nullptr;  // never destroyed: its threads may still wait at exit
    static pid_t owner = 0;       // a forked process has none of its parent's threads
    std::lock_guard<std::mutex> lock(one_launch);
    if (owner != getpid()) {
        pool = new Pool;
        start_watcher();
        owner = getpid();
    }
    Launch launch;
    launch.request = request;
    launch.blocks = uint64_t(request->grid[0]) * request->grid[1] * request->grid[2];
    order_blocks(&launch);
    launch.next_block = 0;
    launch.stop = false;
    launch.interrupted = false;
    launch.races = request->checks & kRace ? start_race_log(request) : nullptr;
    launch.banks = request->checks & kBankConflicts ? start_bank_log() : nullptr;
    uint64_t workers = request->workers;
    if (workers > launch.blocks) workers = launch.blocks;
    // Waking another core takes as long as running a thousand short threads.
    uint64_t threads = launch.blocks * request->block[0] * request->block[1] * request->block[2];
    if (workers > 1 + threads / 1024) workers = 1 + threads / 1024;
    if (workers > 0) {
        CatchSignals guard;
        Interruptible ctrl_c(&launch, request->interrupts);
        pool->run(&launch, int(workers));
    }
    if (launch.races) finish_race_log(launch.races);
    if (launch.banks) finish_bank_log(launch.banks);
    fflush(stdout);
    if (launch.interrupted) return 2;
    if (launch.error.empty()) return 0;
    snprintf(message, message_bytes, "%s", launch.error.c_str());
    return 1;
}
