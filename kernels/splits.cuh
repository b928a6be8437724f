// The end of a split sum without a second launch: every block stores its part in global memory, and
// the last one to finish adds the parts, in order.

#ifndef GPUCNN_SPLITS_CUH
#define GPUCNN_SPLITS_CUH

#include "common.cuh"

// Whether this block is the last of `blocks` to call this with the same counter, which is 0 before
// and after.  What the others wrote to global memory before their call is then visible.  All threads
// of the block call it and get the same answer.
__device__ inline bool last_to_arrive(unsigned* arrived, int blocks) {
    __syncthreads();  // all of this block's stores precede the fence
    bool last = false;
    if (threadIdx.x == 0) {
        __threadfence();
        last = atomicInc(arrived, blocks - 1) == blocks - 1;  // the last wraps the counter to 0
        __threadfence();
    }
    return __syncthreads_or(last);
}

#endif
