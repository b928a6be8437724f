// CUDA's keywords and functions for a C++ compiler.  Prepended to every kernel.

#ifndef CUDASIM_CUDA_H
#define CUDASIM_CUDA_H

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include "runtime.h"

#define __CUDASIM__ 1
#define __CUDACC_RTC__ 1
#define __CUDA_ARCH__ 900  // the newest architecture whose instructions the simulator has

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
#define __grid_constant__
// __shared__ declarations are rewritten before the compiler sees them (gpucnn/cudasim/source.py).

static constexpr int warpSize = 32;

#define __trap() cudasim_fail("calls __trap at %s:%d", __FILE__, __LINE__)
#undef assert
#define assert(condition)                                                                     \
    ((condition) ? (void)0                                                                    \
                 : cudasim_fail("fails assert(%s) at %s:%d", #condition, __FILE__, __LINE__))

// Marks a function of the simulator, whose accesses are not checked.
#if !defined(CUDASIM_CHECKED)
#define CUDASIM_QUIET
#elif defined(__clang__)
#define CUDASIM_QUIET __attribute__((noinline, disable_sanitizer_instrumentation))
#else
#define CUDASIM_QUIET __attribute__((noinline, no_sanitize("thread")))
#endif

// Runs a kernel's body for one thread: arguments[i] points to argument i.
namespace cudasim {
template <class... A, size_t... I>
inline __attribute__((always_inline)) void call(void (*kernel)(A...), void** arguments,
                                                std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_cv_t<std::remove_reference_t<A>>*>(arguments[I])...);
}

template <class... A>
inline __attribute__((always_inline)) void call(void (*kernel)(A...), void** arguments) {
    call(kernel, arguments, std::index_sequence_for<A...>{});
}

static size_t shared_used = 0;  // bytes of this module's __shared__ variables
}  // namespace cudasim

// cudasim_run_KERNEL is called once per thread of a launch.
#define CUDASIM_ENTRY(KERNEL)                                                                 \
    CUDASIM_EXPORT CUDASIM_QUIET void cudasim_run_##KERNEL(void** arguments) {                \
        cudasim::call(KERNEL, arguments);                                                     \
    }

#include "vector_types.h"
#include "arithmetic.h"
#include "atomics.h"
#include "warp.h"

#endif
