// A kernel that reads far outside its arrays ends its launch with an error, not the process.

#include <signal.h>
#include <sys/mman.h>

#include "worker.h"

namespace cudasim {
namespace {

constexpr int kCount = 4, kSignals[kCount] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
constexpr size_t kSignalStack = 64 << 10;
struct sigaction before[kCount];

void on_signal(int number, siginfo_t* info, void*) {
    if (this_worker && this_worker->launch && this_worker->current()) {  // in a kernel
        if (number == SIGFPE) cudasim_fail("divides an integer by zero");
        if (number == SIGILL)  // where the compiler sees no meaning it puts a trap
            cudasim_fail("does what the compiler knows to be wrong, such as dividing by zero");
        cudasim_fail("touches address %p, where no memory is; GPUCNN_CUDASIM=address says which "
                     "line and array", info->si_addr);
    }
    for (int i = 0; i < kCount; ++i) sigaction(kSignals[i], &before[i], nullptr);
    raise(number);  // somebody else's: as if we had not been here
}

}  // namespace

void give_thread_a_signal_stack() {
    stack_t stack = {};
    stack.ss_sp = mmap(nullptr, kSignalStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                       -1, 0);
    stack.ss_size = kSignalStack;
    if (stack.ss_sp != MAP_FAILED) sigaltstack(&stack, nullptr);
}

CatchSignals::CatchSignals() {
    struct sigaction mine = {};
    mine.sa_sigaction = on_signal;
    // NODEFER: the handler leaves by switching to another stack, and never returns.
    mine.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int i = 0; i < kCount; ++i) sigaction(kSignals[i], &mine, &before[i]);
}

CatchSignals::~CatchSignals() {
    for (int i = 0; i < kCount; ++i) sigaction(kSignals[i], &before[i], nullptr);
}

}  // namespace cudasim
