// dbias, the sums of dy over the pixels, by blocks of their own in the launch that computes dweight:
// it costs neither another launch nor an instruction of the product's main loop.

#ifndef GPUCNN_BIAS_SUM_CUH
#define GPUCNN_BIAS_SUM_CUH

#include "common.cuh"
#include "quads.cuh"
#include "split_sum.cuh"

// A block sums 32 filters: a pixel's are 64 or 128 bytes, read by 8 threads.  With more filters a
// block would still be reading when the product's blocks have finished.
constexpr int BIAS_FILTERS = 32;

__device__ inline void add(float (&sum)[4], float4 v) {
    sum[0] += v.x;
    sum[1] += v.y;
    sum[2] += v.z;
    sum[3] += v.w;
}

//   dy         the block's first pixel and filter; `stride` elements from pixel to pixel
//   left       filters from there on
//   shared     4 * THREADS floats
//   workspace  (splits, BIAS_FILTERS) floats, arrived: (families) counters, as for sum_splits
//   dbias      of the block's first filter on, written (=)
template <int THREADS, bool VECTOR, class E>
__device__ inline void sum_bias(const E* dy, int stride, int pixels, int left, float* shared,
                                int split, int splits, float* workspace, unsigned* arrived,
                                float* dbias) {
    constexpr int READERS = BIAS_FILTERS / 4, LINES = THREADS / READERS;  // of a pixel; pixels
    constexpr int BATCH = 8;  // loads of a thread in flight, to hide the latency of memory
    int filter = threadIdx.x % READERS * 4, first = threadIdx.x / READERS;
    const E* from = dy + (int64)first * stride + filter;
    float sum[4] = {};
    for (int pixel = first; pixel < pixels; pixel += BATCH * LINES) {
        Quad<E, VECTOR> quads[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; ++i, from += (int64)LINES * stride)
            quads[i] = Quad<E, VECTOR>::load(from, pixel + i * LINES < pixels ? left - filter : 0);
#pragma unroll
        for (int i = 0; i < BATCH; ++i) add(sum, quads[i].floats());
    }
    store4(shared + threadIdx.x * 4, make_float4(sum[0], sum[1], sum[2], sum[3]));
    __syncthreads();
    if (first == 0) {
        for (int line = 1; line < LINES; ++line)
            add(sum, load4(shared + (line * READERS + threadIdx.x) * 4));
    }
    if (!sum_splits<THREADS, READERS>(sum, split, splits, workspace, arrived) || first != 0) return;
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (filter + i < left) dbias[filter + i] = sum[i];
}

#endif
