// Atomic functions.  They are atomic here too, because blocks run on several cores.

#ifndef CUDASIM_ATOMICS_H
#define CUDASIM_ATOMICS_H

// Reports the access as atomic; the compiler's instrumentation would report plain accesses.
#define CUDASIM_ATOMIC template <class T> static inline CUDASIM_QUIET
#define CUDASIM_TOUCH(address) cudasim_touch(address, sizeof *(address), 1, 1)

// Atomically replaces *address, `old`, by CHANGED; returns the old value.
#define CUDASIM_UPDATE(NAME, CHANGED)                                                        \
    CUDASIM_ATOMIC T NAME(T* address, std::common_type_t<T> value) {                         \
        CUDASIM_TOUCH(address);                                                              \
        T old, next;                                                                         \
        __atomic_load(address, &old, __ATOMIC_RELAXED);                                      \
        do next = CHANGED;                                                                   \
        while (!__atomic_compare_exchange(address, &old, &next, true, __ATOMIC_RELAXED,      \
                                          __ATOMIC_RELAXED));                                \
        return old;                                                                          \
    }

CUDASIM_UPDATE(atomicAdd, old + value)
CUDASIM_UPDATE(atomicSub, old - value)
CUDASIM_UPDATE(atomicMax, old < value ? value : old)
CUDASIM_UPDATE(atomicMin, value < old ? value : old)
CUDASIM_UPDATE(atomicExch, value)
CUDASIM_UPDATE(atomicAnd, old & value)
CUDASIM_UPDATE(atomicOr, old | value)
CUDASIM_UPDATE(atomicXor, old ^ value)
CUDASIM_UPDATE(atomicInc, old >= value ? T(0) : T(old + 1))
CUDASIM_UPDATE(atomicDec, old == 0 || old > value ? value : T(old - 1))
#undef CUDASIM_UPDATE

CUDASIM_ATOMIC T atomicCAS(T* address, std::common_type_t<T> expected, std::common_type_t<T> next) {
    CUDASIM_TOUCH(address);
    __atomic_compare_exchange(address, &expected, &next, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return expected;
}

static inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void __threadfence() {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    cudasim_fence();
}
static inline void __threadfence_system() { __threadfence(); }

#endif
