// Sums down the columns of a matrix by one block: a bias' gradient beside the weight's.

#ifndef GPUCNN_LINE_SUMS_CUH
#define GPUCNN_LINE_SUMS_CUH

#include "common.cuh"
#include "chunks.cuh"

struct LineSum {
    int at;  // the column of this thread's sum, or -1
    float value;
};

// The sums of COLUMNS columns from x on over `rows` rows, which are `stride` numbers apart; only the
// first `left` columns exist.  THREADS threads call it; shared has (THREADS + COLUMNS) * 16 / sizeof(E)
// floats.  Adjacent threads read 16 adjacent bytes each: x and stride are multiples of 16 bytes.
template <int COLUMNS, int THREADS, class E>
__device__ inline LineSum sum_lines(float* shared, const E* x, int64 stride, int rows, int left) {
    constexpr int N = CHUNK_OF<E>, CHUNKS = COLUMNS / N, GROUPS = THREADS / CHUNKS;
    constexpr int PLANE = THREADS + CHUNKS;  // the threads' i-th sums; planes start in other banks
    static_assert(COLUMNS % N == 0 && THREADS % CHUNKS == 0, "whole chunks");
    static_assert(COLUMNS <= THREADS, "a thread for each column");
    int chunk = threadIdx.x % CHUNKS, group = threadIdx.x / CHUNKS;
    float sum[N] = {};
    x += chunk * N;
#pragma unroll 4
    for (int row = group; row < rows; row += GROUPS) {
        float v[N];
        load_chunk(v, x + row * stride, left - chunk * N, true);
#pragma unroll
        for (int i = 0; i < N; ++i) sum[i] += v[i];
    }
#pragma unroll
    for (int i = 0; i < N; ++i) shared[i * PLANE + threadIdx.x] = sum[i];
    __syncthreads();
    int thread = threadIdx.x;
    if (thread >= COLUMNS) return {-1, 0.0f};
    float total = 0.0f;
    const float* from = shared + thread / CHUNKS * PLANE + thread % CHUNKS;
    for (int g = 0; g < GROUPS; ++g) total += from[g * CHUNKS];
    return {thread % CHUNKS * N + thread / CHUNKS, total};
}

#endif
