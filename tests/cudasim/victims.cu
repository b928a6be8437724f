// Small correct kernels of every kind that gpucnn has.  victims.py has the result of each and the
// faults to seed into it.

#include "ptx.h"

// x (n) -> y (blocks): sums; 128 threads a block.
extern "C" __global__ void reduce(const float* x, float* y, int n) {
    __shared__ float partial[4];
    float sum = 0.0f;
    for (int i = blockIdx.x * 128 + threadIdx.x; i < n; i += gridDim.x * 128) sum += x[i];
    for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x < 32) {
        float total = threadIdx.x < 4 ? partial[threadIdx.x] : 0.0f;
        for (int d = 2; d > 0; d /= 2) total += __shfl_xor_sync(0xffffffffu, total, d);
        if (threadIdx.x == 0) y[blockIdx.x] = total;
    }
}

// x (rows, columns) -> y (columns, rows) through a tile of 32 x 32; 32 x 8 threads.
extern "C" __global__ void transpose(const float* x, float* y, int rows, int columns) {
    __shared__ float tile[32][33];
    int row = blockIdx.y * 32, column = blockIdx.x * 32;
    for (int r = threadIdx.y; r < 32; r += 8)
        if (row + r < rows && column + threadIdx.x < columns)
            tile[r][threadIdx.x] = x[(row + r) * columns + column + threadIdx.x];
    __syncthreads();
    for (int r = threadIdx.y; r < 32; r += 8)
        if (column + r < columns && row + threadIdx.x < rows)
            y[(column + r) * rows + row + threadIdx.x] = tile[threadIdx.x][r];
}

// c (m, n) = a (m, k) b (k, n), two buffers in turn, one barrier a step; 16 x 16 threads.
extern "C" __global__ void gemm(const float* a, const float* b, float* c, int m, int n, int k) {
    __shared__ float left[2][16][17], right[2][16][16];
    int row = blockIdx.y * 16 + threadIdx.y, column = blockIdx.x * 16 + threadIdx.x;
    int steps = (k + 15) / 16;
    float sum = 0.0f;
    for (int step = 0; step < steps; ++step) {
        int buffer = step % 2, at = step * 16;
        left[buffer][threadIdx.y][threadIdx.x] =
            row < m && at + threadIdx.x < k ? a[row * k + at + threadIdx.x] : 0.0f;
        right[buffer][threadIdx.y][threadIdx.x] =
            column < n && at + threadIdx.y < k ? b[(at + threadIdx.y) * n + column] : 0.0f;
        __syncthreads();
        for (int i = 0; i < 16; ++i)
            sum += left[buffer][threadIdx.y][i] * right[buffer][i][threadIdx.x];
    }
    if (row < m && column < n) c[row * n + column] = sum;
}

// y (32): sums of x (steps, 128), loaded by a three-stage pipeline of asynchronous copies.
extern "C" __global__ void pipeline(const float* x, float* y, int steps) {
    extern __shared__ float stages[];  // 3 of 128 floats
    int t = threadIdx.x;
    float sum = 0.0f;
    for (int s = 0; s < 2; ++s) {
        copy_async<16>(stages + s * 128 + 4 * t, x + s * 128 + 4 * t, s < steps ? 16 : 0);
        copy_async_commit();
    }
    for (int s = 0; s < steps; ++s) {
        copy_async_wait<1>();
        __syncthreads();
        int next = s + 2;
        if (next < steps)
            copy_async<16>(stages + next % 3 * 128 + 4 * t, x + next * 128 + 4 * t);
        copy_async_commit();
        for (int i = 0; i < 4; ++i) sum += stages[s % 3 * 128 + (t + 32 * i + 17) % 128];
    }
    y[t] = sum;
}

// c (16, 8) = a (16, 32) b (32, 8) on tensor cores; one warp.
extern "C" __global__ void tensor(const half* a, const half* b, float* c) {
    // 16 x 32 times 32 x 8; the 16-byte chunks of each 64-byte row are swizzled so that the
    // eight rows of a matrix lie in different banks.
    __shared__ __align__(16) half left[16][32], right[32][8];
    int lane = threadIdx.x;
    for (int i = lane; i < 64; i += 32)
        for (int e = 0; e < 8; ++e)
            left[i / 4][(i % 4 ^ i / 8 % 4) * 8 + e] = a[i * 8 + e];
    for (int e = 0; e < 8; ++e) right[lane][e] = b[lane * 8 + e];
    __syncwarp();
    float d[4] = {};
    for (int k = 0; k < 32; k += 16) {
        unsigned fa[4], fb[2];
        int row = lane % 16, chunk = k / 8 + lane / 16;
        load_matrices(fa, &left[row][(chunk ^ row / 2 % 4) * 8]);
        load_matrices_transposed(fb, right[k + lane % 16]);
        multiply_half(d, fa, fb);
    }
    for (int i = 0; i < 4; ++i) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
}

// counts (16) += how often each residue of 16 is in x (n); 64 threads a block.
extern "C" __global__ void histogram(const unsigned char* x, int* counts, int n) {
    __shared__ int bins[16];
    if (threadIdx.x < 16) bins[threadIdx.x] = 0;
    __syncthreads();
    int i = blockIdx.x * 64 + threadIdx.x;
    if (i < n) atomicAdd(&bins[x[i] % 16], 1);
    __syncthreads();
    if (threadIdx.x < 16) atomicAdd(&counts[threadIdx.x], bins[threadIdx.x]);
}

// y (64): the sum of the blocks' 64 numbers, by the last block to count.
extern "C" __global__ void last_block(const float* x, float* part, unsigned* counter, float* y) {
    int i = threadIdx.x;
    part[blockIdx.x * 64 + i] = x[blockIdx.x * 64 + i];
    __syncthreads();  // all parts are written
    bool last = false;
    if (i == 0) {
        __threadfence();  // before the block counts
        last = atomicInc(counter, gridDim.x - 1) == gridDim.x - 1;
        __threadfence();  // before it reads
    }
    if (!__syncthreads_or(last)) return;
    float sum = 0.0f;
    for (int b = 0; b < gridDim.x; ++b) sum += part[b * 64 + (i + 1) % 64];
    y[(i + 1) % 64] = sum;
}

// y (n): quads of x in the order of `order`, each reversed, divided by n / 4.
extern "C" __global__ void vector(const float* x, const int* order, float* y, int n) {
    int i = (blockIdx.x * 32 + threadIdx.x) * 4;
    if (i >= n) return;
    float4 v = *reinterpret_cast<const float4*>(x + order[i / 4] * 4);
    float w[4] = {v.w, v.z, v.y, v.x};
    for (int j = 0; j < 4; ++j) y[i + j] = w[j] / float(n / 4);
}
