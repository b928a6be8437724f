// Column sums of a tall matrix, for bias gradients, and the final sum of every split reduction.
//
// A sum over many rows is split over blocks.  Each split writes its own sum, and sum_splits adds
// the splits in order: without atomics the result is reproducible.
// Blocks of 256 threads, at most 64 registers a thread: 32 warps per multiprocessor.  The backward
// pass of every convolution ends with these kernels.

#include "common.cuh"

constexpr int ROWS = 8;  // rows that a block reads at a time: one per warp of 256 threads

// part[split][c] = sum of this split's rows of x in column c
//
//   block   32 columns x one split of the rows     grid: column tiles, splits
//   warp    every 8th row; its 32 lanes read 32 adjacent columns
//
//   x     (rows, columns)
//   part  (splits, split_size); the first `columns` of each split are written (=)
extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void column_sums(
    const float* x, float* part, int64 rows, int columns, int64 split_size) {
    __shared__ float sums[ROWS][WARP];
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int column = blockIdx.x * WARP + lane;
    int64 share = (rows + gridDim.y - 1) / gridDim.y;
    int64 begin = blockIdx.y * share, end = min(begin + share, rows);
    float sum = 0.0f;
    if (column < columns)
        for (int64 row = begin + warp; row < end; row += ROWS) sum += x[row * columns + column];
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && column < columns) {
        float total = 0.0f;
        for (int i = 0; i < ROWS; ++i) total += sums[i][lane];
        part[blockIdx.y * split_size + column] = total;
    }
}

// sum[i] = part[0][i] + part[1][i] + ...: thread -> sum[i], written (=); part is (splits, size).
extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void sum_splits(
    const float* part, float* sum, int64 size, int splits) {
    int64 i = global_thread();
    if (i >= size) return;
    float total = 0.0f;
    for (int split = 0; split < splits; ++split) total += part[split * size + i];
    sum[i] = total;
}
