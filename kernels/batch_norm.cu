// Batch normalisation of a (rows, channels) matrix, rows = N * H * W.
//
//   y = (x - mean) * scale * gamma + beta        scale = 1 / sqrt(var + eps)
//
// Three launches forward, three backward:
//
//   batch_norm_moments    block -> 32 channels x one split of the rows: mean, squared deviations
//   batch_norm_combine    thread -> one channel: merges the splits, in order
//   batch_norm_apply      thread -> one element of y
//   batch_norm_products   block -> 32 channels x one split: sums of dy and of dy * normalised x
//   sum_splits            (reduce.cu) adds the splits: dbeta and dgamma
//   batch_norm_backward   thread -> one element of dx
//
//   x, y, dy, dx   (rows, channels)           mean, var, scale, gamma, beta   (channels)
//   part           (splits, 2, channels)
//
// All results are written (=).  Blocks of 256 threads, at most 64 registers a thread: 32 warps per
// multiprocessor.  In the split kernels, warp w of the 8 reads rows w, w + 8, ... of the split; its
// lanes read 32 adjacent channels.
// alexnet_cifar10_bn launches these after each convolution; alexnet_cifar10 has no batch norm.

#include "common.cuh"

constexpr int ROWS = 8;  // rows that a block reads at a time: one per warp of 256 threads

// Lane l gets the sum of lane l's value over the block's warps.
__device__ inline float across_warps(float value, float (&sums)[ROWS][WARP]) {
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    __syncthreads();  // the sums of the last call may still be read
    sums[warp][lane] = value;
    __syncthreads();
    float total = 0.0f;
    for (int i = 0; i < ROWS; ++i) total += sums[i][lane];
    return total;
}

// Deviations are taken from the split's own mean: E[x^2] - E[x]^2 would lose every digit where
// the mean is large.  The second pass over the split hits the cache.
// part[split] = (mean, sum of squared deviations)
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

// Merges the moments of two samples at a time.  Source: Chan, Golub and LeVeque 1979.
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

// sums (2, channels): dbeta, then dgamma.
extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void batch_norm_backward(
    const float* dy, const float* x, const float* mean, const float* scale, const float* gamma,
    const float* sums, float* dx, int64 size, int channels, float rows) {
    int64 i = global_thread();
    if (i >= size) return;
    int c = i % channels;
    float normal = (x[i] - mean[c]) * scale[c];
    dx[i] = (dy[i] - sums[c] / rows - normal * (sums[channels + c] / rows)) * (scale[c] * gamma[c]);
}

// y = x * scale + shift per channel: inference, where the statistics are constants.
extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void scale_shift(
    const float* x, const float* scale, const float* shift, float* y, int64 size, int channels) {
    int64 i = global_thread();
    if (i >= size) return;
    int c = i % channels;
    y[i] = x[i] * scale[c] + shift[c];
}
