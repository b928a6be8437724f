// Batch normalisation of a matrix whose columns are the channels: (N * H * W, C).
//
//   y = (x - mean) * scale * gamma + beta        scale = 1 / sqrt(var + eps)
//
// Forward in three launches, backward in three:
//
//   batch_norm_moments    (32 columns, split of the rows) -> mean and squared deviations there
//   batch_norm_combine    thread -> one column: joins the splits, in order
//   batch_norm_apply      thread -> one number of y
//   batch_norm_products   (32 columns, split) -> sum of dy, and of dy * normalised x
//   sum_splits            (reduce.cu) joins those: dbeta and dgamma
//   batch_norm_backward   thread -> one number of dx
//
//   x, y, dy, dx   (rows, channels)           mean, var, scale, gamma, beta   (channels)
//   part           (splits, 2, channels)
//
// All write (=).  Blocks of 256 threads with at most 64 registers: 32 warps to a
// multiprocessor.  In the split kernels a warp reads 32 neighbouring channels of every 8th row.
// alexnet_cifar10_bn comes here after each convolution, alexnet_cifar10 never.

#include "common.cuh"

constexpr int ROWS = 8;  // rows that a block reads at once: one warp each

// The sum over the block's warps, for each lane, in every thread of warp 0.
__device__ inline float across_warps(float value, float (&sums)[ROWS][WARP]) {
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    __syncthreads();  // the sums may still be read from the last call
    sums[warp][lane] = value;
    __syncthreads();
    float total = 0.0f;
    for (int i = 0; i < ROWS; ++i) total += sums[i][lane];
    return total;
}

// The deviations are from the split's own mean, not from zero: E[x^2] - E[x]^2 would lose every
// digit where the mean is large.  The second reading of the split comes from the cache.
extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void batch_norm_moments(
    const float* x, float* part, int64 rows, int channels) {
    __shared__ float sums[ROWS][WARP];
    int channel = blockIdx.x * WARP + threadIdx.x % WARP;
    int64 share = (rows + gridDim.y - 1) / gridDim.y;
    int64 begin = blockIdx.y * share, end = min(begin + share, rows);
    bool exists = channel < channels;
    float sum = 0.0f, squares = 0.0f;
    if (exists)
        for (int64 row = begin + threadIdx.x / WARP; row < end; row += ROWS)
            sum += x[row * channels + channel];
    float mean = across_warps(sum, sums) / (float)max(end - begin, (int64)1);
    if (exists)
        for (int64 row = begin + threadIdx.x / WARP; row < end; row += ROWS) {
            float away = x[row * channels + channel] - mean;
            squares += away * away;
        }
    squares = across_warps(squares, sums);
    if (threadIdx.x < WARP && exists) {
        float* to = part + (int64)blockIdx.y * 2 * channels + channel;
        to[0] = mean;
        to[channels] = squares;
    }
}

// Source: Chan, Golub and LeVeque 1979, on joining the moments of two samples.
extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void batch_norm_combine(
    const float* part, float* mean, float* var, float* scale, int64 rows, int channels, int splits,
    float eps) {
    int channel = blockIdx.x * blockDim.x + threadIdx.x;
    if (channel >= channels) return;
    int64 share = (rows + splits - 1) / splits;
    float count = 0.0f, average = 0.0f, squares = 0.0f;
    for (int split = 0; split < splits; ++split) {
        int64 begin = split * share, end = min(begin + share, rows);
        if (end <= begin) break;
        const float* from = part + (int64)split * 2 * channels + channel;
        float more = (float)(end - begin), apart = from[0] - average;
        average += apart * (more / (count + more));
        squares += from[channels] + apart * apart * (count * (more / (count + more)));
        count += more;
    }
    mean[channel] = average;
    var[channel] = squares / count;
    scale[channel] = 1.0f / sqrtf(squares / count + eps);
}

extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void batch_norm_apply(
    const float* x, const float* mean, const float* scale, const float* gamma, const float* beta,
    float* y, int64 size, int channels) {
    int64 i = global_thread();
    if (i >= size) return;
    int c = i % channels;
    y[i] = (x[i] - mean[c]) * (scale[c] * gamma[c]) + beta[c];
}

extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void batch_norm_products(
    const float* dy, const float* x, const float* mean, const float* scale, float* part, int64 rows,
    int channels) {
    __shared__ float sums[ROWS][WARP];
    int channel = blockIdx.x * WARP + threadIdx.x % WARP;
    int64 share = (rows + gridDim.y - 1) / gridDim.y;
    int64 begin = blockIdx.y * share, end = min(begin + share, rows);
    bool exists = channel < channels;
    float sum = 0.0f, products = 0.0f;
    if (exists)
        for (int64 row = begin + threadIdx.x / WARP; row < end; row += ROWS) {
            int64 i = row * channels + channel;
            sum += dy[i];
            products += dy[i] * ((x[i] - mean[channel]) * scale[channel]);
        }
    sum = across_warps(sum, sums);
    products = across_warps(products, sums);
    if (threadIdx.x < WARP && exists) {
        float* to = part + (int64)blockIdx.y * 2 * channels + channel;
        to[0] = sum;
        to[channels] = products;
    }
}

// sums is (2, channels): dbeta, then dgamma.
extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void batch_norm_backward(
    const float* dy, const float* x, const float* mean, const float* scale, const float* gamma,
    const float* sums, float* dx, int64 size, int channels, float rows) {
    int64 i = global_thread();
    if (i >= size) return;
    int c = i % channels;
    float normal = (x[i] - mean[c]) * scale[c];
    dx[i] = (dy[i] - sums[c] / rows - normal * (sums[channels + c] / rows)) * (scale[c] * gamma[c]);
}

// y = x * scale + shift, channel by channel: with given statistics nothing else is left to do.
extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void scale_shift(
    const float* x, const float* scale, const float* shift, float* y, int64 size, int channels) {
    int64 i = global_thread();
    if (i >= size) return;
    int c = i % channels;
    y[i] = x[i] * scale[c] + shift[c];
}
