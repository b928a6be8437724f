// A fiber: a stack and a saved context.

#ifndef CUDASIM_FIBER_H
#define CUDASIM_FIBER_H

#include <sys/mman.h>

#include <cstdint>

#if !(defined(__x86_64__) && defined(__ELF__)) && !defined(CUDASIM_UCONTEXT)
#define CUDASIM_UCONTEXT
#endif

#ifdef CUDASIM_UCONTEXT
#include <ucontext.h>
#endif

namespace cudasim {

#ifdef CUDASIM_UCONTEXT
struct Context {
    ucontext_t state;
};

inline void switch_context(Context* from, Context* to) { swapcontext(&from->state, &to->state); }
#else
struct Context {
    void* stack_pointer;
};

// Saves the callee-saved registers on the old stack and restores them from the new one.
extern "C" void cudasim_switch(void** from, void** to);
asm(R"(
.text
.globl cudasim_switch
.hidden cudasim_switch
.type cudasim_switch, @function
cudasim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq (%rsi), %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size cudasim_switch, .-cudasim_switch
)");

inline void switch_context(Context* from, Context* to) {
    cudasim_switch(&from->stack_pointer, &to->stack_pointer);
}
#endif

struct Fiber {
    Context context;
    char *low, *high;  // the stack
    bool prepared;     // has started, or is ready to
};

// 256 KB: printf of floats needs several KB; untouched pages cost nothing.
constexpr size_t kPage = 4096, kStack = 64 * kPage, kStride = kStack + kPage;

// Allocates all stacks at once, each above a guard page; null if memory runs out.
inline char* allocate_stacks(int count) {
    void* memory = mmap(nullptr, kStride * count, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    char* base = static_cast<char*>(memory);
    for (int i = 0; i < count; ++i) mprotect(base + kStride * i, kPage, PROT_NONE);
    return base;
}

// Makes `fiber` start in `entry` at the first switch to it.  Stacks start at different offsets within
// their pages: 256 stacks in use at one offset would compete for the same cache lines.
inline void prepare_fiber(Fiber* fiber, int number, void (*entry)()) {
    char* top = fiber->high - number % 32 * 128;
#ifdef CUDASIM_UCONTEXT
    getcontext(&fiber->context.state);
    fiber->context.state.uc_stack.ss_sp = fiber->low;
    fiber->context.state.uc_stack.ss_size = top - fiber->low;
    fiber->context.state.uc_link = nullptr;
    makecontext(&fiber->context.state, entry, 0);
#else
    void** stack = reinterpret_cast<void**>(top);
    *--stack = nullptr;  // no return address: debuggers stop unwinding here
    *--stack = reinterpret_cast<void*>(entry);
    for (int saved = 0; saved < 6; ++saved) *--stack = nullptr;
    fiber->context.stack_pointer = stack;
#endif
}

}  // namespace cudasim

#endif
