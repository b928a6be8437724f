// What a compiled kernel and the simulator's runtime know of each other.
//
// A block of threads runs on one core, each of its threads on a stack of its own (a fiber).  A
// thread runs until it has to wait for others, then the schedule picks who goes on.

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
constexpr size_t kStaticShared = 1 << 20;     // of all the kernels in one module together
constexpr size_t kStaticLimit = 48 << 10;     // CUDA's limit for one kernel's static variables

// Where a meeting was called: for errors, and because all must come from the same place.
struct Place {
    const char* what;
    const char* file;
    int line;
};

// The last lane to arrive does the work for all: lanes[i] is what lane i brought, null if
// lane i is not part of the meeting.
typedef void (*Combine)(void* const* lanes, void* extra);

}  // namespace cudasim

extern "C" {
#pragma GCC visibility push(default)

// What a kernel may ask about the thread that this core is running.  Variables of the core, with
// the quickest access there is, and set whenever another thread goes on; to a kernel, which
// cannot see the others run, they never change.  A debugger knows them by these names.
#ifndef CUDASIM_RUNTIME
#define CUDASIM_OF_THREAD extern __thread __attribute__((tls_model("initial-exec"))) const
#else
#define CUDASIM_OF_THREAD extern __thread __attribute__((tls_model("initial-exec")))
#endif
CUDASIM_OF_THREAD uint3 threadIdx, blockIdx, blockDim, gridDim;
CUDASIM_OF_THREAD int cudasim_lane;
// The block's shared memory: kDynamicShared bytes, then the static variables.
CUDASIM_OF_THREAD struct CudasimShared { char* start; } cudasim_shared;

// All threads of the block; returns how many of them brought a predicate other than 0.
int cudasim_barrier(int predicate, cudasim::Place place);
// The lanes in mask.
void cudasim_meet(unsigned mask, void* mine, cudasim::Combine combine, void* extra,
                  cudasim::Place place);
// Ends the launch with an error about the calling thread.
[[noreturn]] void cudasim_fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Asynchronous copies: queued here, done when their group is waited for.
void cudasim_copy_async(void* to, const void* from, int bytes, int from_bytes);
void cudasim_copy_commit();
void cudasim_copy_wait(int groups_left);

// Memory that the kernel's own code did not touch, but an instruction did on its behalf.
void cudasim_touch(const void* address, size_t bytes, int write, int atomic);

// Room for one __shared__ variable of a module: its offset from the block's shared memory, or
// ~0 if there is none left, which cudasim_no_shared then says.
size_t cudasim_reserve_shared(size_t* used, size_t bytes, size_t alignment, const char* name);
[[noreturn]] void cudasim_no_shared(size_t bytes, const char* name);
#pragma GCC visibility pop
}

#endif
