// The interface between compiled kernels and the simulator's runtime.
//
// A block runs on one core, each of its threads on its own stack (a fiber).  A thread runs until it
// has to wait for others; then the schedule picks the next one.

#ifndef CUDASIM_RUNTIME_H
#define CUDASIM_RUNTIME_H

#include <cstddef>
#include <cstdint>

#define CUDASIM_EXPORT extern "C" __attribute__((visibility("default")))

struct uint3 {
    unsigned x, y, z;
};

namespace cudasim {

constexpr size_t kDynamicShared = 256 << 10;  // more than any device has
constexpr size_t kStaticShared = 1 << 20;     // for all kernels of a module together
constexpr size_t kStaticLimit = 48 << 10;     // CUDA's limit for one kernel's static variables

// Where a barrier or warp function was called: for errors, and because callers must agree on it.
struct CallSite {
    const char* what;
    const char* file;
    int line;
};

// Called by the last lane to arrive, to compute the results of all: lanes[i] is lane i's operand, null
// if lane i does not take part.
typedef void (*Combine)(void* const* lanes, void* extra);

}  // namespace cudasim

extern "C" {
#pragma GCC visibility push(default)

// The built-in variables of the thread that this core is running.  They are thread-local to the core,
// with the fastest access model, and set when another thread is resumed.  To a kernel they are
// constant.  Debuggers find them under these names.
#ifndef CUDASIM_RUNTIME
#define CUDASIM_OF_THREAD extern __thread __attribute__((tls_model("initial-exec"))) const
#else
#define CUDASIM_OF_THREAD extern __thread __attribute__((tls_model("initial-exec")))
#endif
CUDASIM_OF_THREAD uint3 threadIdx, blockIdx, blockDim, gridDim;
CUDASIM_OF_THREAD int cudasim_lane;
// The block's shared memory: kDynamicShared bytes, then the static variables.
CUDASIM_OF_THREAD struct CudasimShared { char* start; } cudasim_shared;

// Waits for all threads of the block; returns the number of nonzero predicates.
int cudasim_barrier(int predicate, cudasim::CallSite site);
// Waits for the lanes in mask.
void cudasim_warp_sync(unsigned mask, void* mine, cudasim::Combine combine, void* extra,
                  cudasim::CallSite site);
// Ends the launch with an error about the calling thread.
[[noreturn]] void cudasim_fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Asynchronous copies: queued, and performed when their group is waited for.
void cudasim_copy_async(void* to, const void* from, int bytes, int from_bytes);
void cudasim_copy_commit();
void cudasim_copy_wait(int groups_left);

// Checks an access that the compiler's instrumentation does not see.
void cudasim_touch(const void* address, size_t bytes, int write, int atomic);
// A fence of device scope: what race mode needs to know of it.
void cudasim_fence();

// Reserves space for a __shared__ variable of a module.  Returns its offset in the block's shared
// memory, or ~0 if it does not fit; cudasim_no_shared then reports that.
size_t cudasim_reserve_shared(size_t* used, size_t bytes, size_t alignment, const char* name);
[[noreturn]] void cudasim_no_shared(size_t bytes, const char* name);
#pragma GCC visibility pop
}

#endif
