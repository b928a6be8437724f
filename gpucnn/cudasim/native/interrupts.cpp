// Lets Ctrl-C end a kernel that does not terminate.
//
// A signal can arrive at any instruction.  A thread in the kernel's own code holds no lock, so its
// stack can be abandoned as after an error.  A thread elsewhere, in printf or in the simulator, is
// left alone and signalled again a little later, until the launch has ended.

#include <cerrno>
#include <pthread.h>
#include <signal.h>
#include <thread>
#include <unistd.h>

#ifdef __ELF__
#include <link.h>
#endif
#include <ucontext.h>

#include "worker.h"

namespace cudasim {
namespace {

constexpr int kPause = 5000;  // microseconds between two signals to a thread

std::atomic<int> asked, enough;  // interrupts during this launch, and the number that ends it
int wake_up = -1;                // the handler writes to this pipe, the watcher reads it
uintptr_t code_begin, code_end;  // of the module being interrupted
struct sigaction before_interrupt, before_nudge;

struct Watch {
    std::mutex mutex;
    Launch* launch = nullptr;
};
Watch* watch;  // never destroyed: its thread may still wait at exit

uintptr_t program_counter(void* context) {
    [[maybe_unused]] auto* machine = &static_cast<ucontext_t*>(context)->uc_mcontext;
#if defined(__linux__) && defined(__x86_64__)
    return machine->gregs[REG_RIP];
#elif defined(__linux__) && defined(__aarch64__)
    return machine->pc;
#else
    return 0;  // unknown: barriers and checked accesses still end the launch
#endif
}

void pass_on(const struct sigaction& to, int number, siginfo_t* info, void* context) {
    if (to.sa_flags & SA_SIGINFO)
        to.sa_sigaction(number, info, context);
    else if (to.sa_handler != SIG_DFL && to.sa_handler != SIG_IGN)
        to.sa_handler(number);
}

void on_interrupt(int number, siginfo_t* info, void* context) {
    int error = errno;
    pass_on(before_interrupt, number, info, context);  // Python sets its own flag
    if (++asked >= enough) {
        [[maybe_unused]] ssize_t written = write(wake_up, "", 1);
    }
    errno = error;
}

void on_nudge(int number, siginfo_t* info, void* context) {
    Worker* worker = this_worker;
    if (!worker || !worker->launch || !worker->launch->interrupted) {
        pass_on(before_nudge, number, info, context);
    } else if (worker->current()) {
        uintptr_t here = program_counter(context);
        if (code_begin <= here && here < code_end) worker->abandon();
    }
}

#ifdef __ELF__
int find_code(dl_phdr_info* library, size_t, void* entry) {
    for (int i = 0; i < library->dlpi_phnum; ++i) {
        const auto& part = library->dlpi_phdr[i];
        uintptr_t begin = library->dlpi_addr + part.p_vaddr, address = uintptr_t(entry);
        if (part.p_type != PT_LOAD || address < begin || address - begin >= part.p_memsz) continue;
        code_begin = begin;
        code_end = begin + part.p_memsz;
        return 1;
    }
    return 0;
}
#endif

// Signals the threads of the watched launch if it should end.  Returns whether to signal again.
bool nudge(Watch* the_watch) {
    std::lock_guard<std::mutex> lock(the_watch->mutex);
    Launch* launch = the_watch->launch;
    if (!launch || asked < enough) return false;
#ifdef __ELF__
    if (!launch->interrupted)
        dl_iterate_phdr(find_code, reinterpret_cast<void*>(launch->request->entry));
#endif
    launch->interrupted = true;
    launch->stop = true;
    std::lock_guard<std::mutex> runners_lock(launch->mutex);
    for (pthread_t member : launch->runners) pthread_kill(member, SIGURG);
    return true;
}

}  // namespace

void start_watcher() {
    int ends[2];
    if (pipe(ends)) return;  // Ctrl-C will not end kernels
    watch = new Watch;
    wake_up = ends[1];
    std::thread([the_watch = watch, input = ends[0]] {
        char byte;
        for (;;) {
            if (read(input, &byte, 1) < 0 && errno != EINTR) return;
            while (nudge(the_watch)) usleep(kPause);
        }
    }).detach();
}

Interruptible::Interruptible(Launch* launch, int interrupts) {
    if (!watch) return;
    asked = 0;
    enough = interrupts;
    {
        std::lock_guard<std::mutex> lock(watch->mutex);
        watch->launch = launch;
    }
    struct sigaction mine = {};
    mine.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
    mine.sa_sigaction = on_interrupt;
    sigaction(SIGINT, nullptr, &before_interrupt);
    bool unwanted = !(before_interrupt.sa_flags & SA_SIGINFO) &&
                    (before_interrupt.sa_handler == SIG_DFL || before_interrupt.sa_handler == SIG_IGN);
    catches_sigint = !unwanted;
    if (catches_sigint) sigaction(SIGINT, &mine, nullptr);
    mine.sa_flags |= SA_NODEFER;  // the handler leaves by switching to another stack
    mine.sa_sigaction = on_nudge;
    sigaction(SIGURG, &mine, &before_nudge);
}

Interruptible::~Interruptible() {
    if (!watch) return;
    {
        std::lock_guard<std::mutex> lock(watch->mutex);  // no thread is signalled after this
        watch->launch = nullptr;
    }
    if (catches_sigint) sigaction(SIGINT, &before_interrupt, nullptr);
    sigaction(SIGURG, &before_nudge, nullptr);
}

}  // namespace cudasim
