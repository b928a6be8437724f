// Turns a segmentation fault in a kernel into an error of its launch; the process survives.

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
        if (number == SIGILL)  // the compiler inserts traps where behaviour is undefined
            cudasim_fail("reaches code with undefined behaviour, such as a division by zero");
        cudasim_fail("accesses unmapped address %p; GPUCNN_CUDASIM=address names the line and array",
                     info->si_addr);
    }
    for (int i = 0; i < kCount; ++i) sigaction(kSignals[i], &before[i], nullptr);
    raise(number);  // not from a kernel: the previous handler gets it
}

}  // namespace

SignalStack::SignalStack()
    : memory(mmap(nullptr, kSignalStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
                  0)) {
    stack_t stack = {};
    stack.ss_sp = memory;
    stack.ss_size = kSignalStack;
    if (memory != MAP_FAILED) sigaltstack(&stack, nullptr);
}

SignalStack::~SignalStack() {
    if (memory == MAP_FAILED) return;
    stack_t none = {};
    none.ss_flags = SS_DISABLE;
    sigaltstack(&none, nullptr);
    munmap(memory, kSignalStack);
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
