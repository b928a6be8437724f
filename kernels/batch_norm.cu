// Batch normalisation of a (rows, channels) matrix, rows = N * H * W.
//
//   y = (x - mean) * scale * gamma + beta        scale = 1 / sqrt(var + eps); clipped with relu
//
// Two launches forward, two backward, one in inference:
//
//   batch_norm_moments    block -> a tile of channels x one split of the rows: mean and variance;
//                         the last block of a tile merges the splits and moves the running averages
//   batch_norm_apply      thread -> N channels of every `step`-th row of y
//   batch_norm_products   block -> the same tiles: sums of dy and of dy * normalised x
//   batch_norm_backward   thread -> N channels of every `step`-th row of dx
//   batch_norm_infer, scale_shift   as batch_norm_apply, with given statistics
//
//   x, y, dy, dx   (rows, channels) of type X; written (=)
//   mean, var, scale, gamma, beta   (channels) float; running averages are updated in place
//   part           (splits, 2, channels) float: scratch memory
//   counters       one a tile: 0 before and after
//
//   tile of the split kernels: `width` groups of N channels; thread t has group t % width and the
//   rows t / width, t / width + lines, ... of the split, lines = 256 / width
//
//          group 0  1  2  ...  width - 1            N adjacent channels: LANES (16 bytes), or one
//   row 0  t =   0  1  2                            where those do not divide the channels
//   row 1    width  ...
//
// Each x is read once.  A thread sums x - k and (x - k)^2 with k its own first value, and moments
// are merged pairwise, with means relative to row 0: differences stay exact however large the mean.
// k is one of the values, so what E[x^2] - E[x]^2 cancels is at most what one value contributes,
// times the thread's rows: the variance has a relative error of at most 2^-22 a row of a thread.
//
// Blocks of 256 threads, at most 64 registers a thread: 32 warps per multiprocessor.
// batch_norm_backward keeps four numbers a channel: at most 80 registers a thread: 24 warps.
// alexnet_cifar10_bn launches these after each convolution; alexnet_cifar10 has no batch norm.

#ifndef X
#define X float  // or half, bfloat16
#endif

#include "batch_norm_sums.cuh"

template <int N>
__device__ inline void moments(const X* x, float* part, unsigned* counters, float* mean, float* var,
                               float* scale, float* running_mean, float* running_var, int64 rows,
                               int channels, float eps, float keep, float momentum, float unbiased,
                               const Divisor& width, Exchange& exchange) {
    Place at = place<N>(rows, channels, width);
    Sums<N> mine = {};
    if (at.exists && at.begin + at.line < at.end) {
        const X* from = x + (at.begin + at.line) * channels + at.channel;
        int count = (int)((at.end - at.begin - at.line + at.lines - 1) / at.lines);
        int64 stride = (int64)at.lines * channels;
        float k[N];
        load(from, k);
#pragma unroll 2
        for (int row = 1; row < count; ++row) {
            float v[N];
            load(from + row * stride, v);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                float away = v[i] - k[i];
                mine.a[i] += away;
                mine.b[i] += away * away;
            }
        }
        mine.count = (float)count;
        float reference[N];
        load(x + at.channel, reference);
#pragma unroll
        for (int i = 0; i < N; ++i) {
            float away = mine.a[i] / mine.count, squares = mine.b[i] - away * mine.a[i];
            mine.a[i] = (k[i] - reference[i]) + away;
            mine.b[i] = squares < 0.0f ? 0.0f : squares;  // NaN stays
        }
    }
    if (!merge_all<Moments>(mine, at, part, counters, rows, channels, width.divisor,
                            exchange))
        return;
#pragma unroll 1
    for (int i = 0; i < N; ++i) {
        int c = at.channel + i;
        float average = to_float(x[c]) + mine.a[0], variance = mine.b[0] / mine.count;
        mean[c] = average;
        var[c] = variance;
        scale[c] = 1.0f / sqrtf(variance + eps);
        if (running_mean) {  // each step is rounded, as on the CPU
            running_mean[c] =
                __fadd_rn(__fmul_rn(running_mean[c], keep), __fmul_rn(momentum, average));
            running_var[c] = __fadd_rn(__fmul_rn(running_var[c], keep),
                                       __fmul_rn(momentum, __fmul_rn(variance, unbiased)));
        }
#pragma unroll
        for (int j = 1; j < N; ++j) {  // the next channel: registers have no index
            mine.a[j - 1] = mine.a[j];
            mine.b[j - 1] = mine.b[j];
        }
    }
}

// running_mean and running_var may both be null; keep is 1 - momentum, unbiased rows / (rows - 1).
extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void batch_norm_moments(
    const X* x, float* part, unsigned* counters, float* mean, float* var, float* scale,
    float* running_mean, float* running_var, int64 rows, int channels, float eps, float keep,
    float momentum, float unbiased, int vector, Divisor width) {
    __shared__ Exchange exchange;
    if (vector)
        moments<LANES>(x, part, counters, mean, var, scale, running_mean, running_var, rows,
                       channels, eps, keep, momentum, unbiased, width, exchange);
    else
        moments<1>(x, part, counters, mean, var, scale, running_mean, running_var, rows, channels,
                   eps, keep, momentum, unbiased, width, exchange);
}

template <int N>
__device__ inline void products(const X* dy, const X* x, const float* mean, const float* scale,
                                float* part, unsigned* counters, float* sums, int64 rows,
                                int channels, const Divisor& width, Exchange& exchange) {
    Place at = place<N>(rows, channels, width);
    Sums<N> mine = {};
    if (at.exists) {
        float average[N];
        load(mean + at.channel, average);
#pragma unroll 2
        for (int64 row = at.begin + at.line; row < at.end; row += at.lines) {
            float d[N], v[N];
            load(dy + row * channels + at.channel, d);
            load(x + row * channels + at.channel, v);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                mine.a[i] += d[i];
                mine.b[i] += d[i] * (v[i] - average[i]);
            }
        }
        float factor[N];
        load(scale + at.channel, factor);
#pragma unroll
        for (int i = 0; i < N; ++i) mine.b[i] *= factor[i];
    }
    if (!merge_all<Totals>(mine, at, part, counters, rows, channels, width.divisor,
                           exchange))
        return;
    store(sums + at.channel, mine.a);
    store(sums + channels + at.channel, mine.b);
}

// sums (2, channels): dbeta, then dgamma.
extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void batch_norm_products(
    const X* dy, const X* x, const float* mean, const float* scale, float* part,
    unsigned* counters, float* sums, int64 rows, int channels, int vector, Divisor width) {
    __shared__ Exchange exchange;
    if (vector)
        products<LANES>(dy, x, mean, scale, part, counters, sums, rows, channels, width, exchange);
    else
        products<1>(dy, x, mean, scale, part, counters, sums, rows, channels, width, exchange);
}

// --- element by element ---

// The first number of a thread, and where its rows end: those of `at`, `at` + stride, ...
struct Column {
    int channel;
    int64 at, end, stride;
};

template <int N>
__device__ inline Column column(int64 rows, int channels, int step, const Divisor& groups) {
    int index = blockIdx.x * blockDim.x + threadIdx.x, row = divide(index, groups);
    int channel = (index - row * groups.divisor) * N;
    int64 end = row < step ? rows * channels : 0;
    return Column{channel, (int64)row * channels + channel, end, (int64)step * channels};
}

// y = (x - shift) * factor + offset, clipped at 0 with relu
template <int N>
__device__ inline void apply(const X* x, X* y, const float (&shift)[N], const float (&factor)[N],
                             const float (&offset)[N], bool relu, const Column& mine) {
#pragma unroll 2
    for (int64 at = mine.at; at < mine.end; at += mine.stride) {
        float v[N];
        load(x + at, v);
#pragma unroll
        for (int i = 0; i < N; ++i) {
            v[i] = (v[i] - shift[i]) * factor[i] + offset[i];
            if (relu && v[i] < 0.0f) v[i] = 0.0f;  // NaN passes through
        }
        store(y + at, v);
    }
}

template <int N>
__device__ inline void normalize(const X* x, const float* mean, const float* scale,
                                 const float* gamma, const float* beta, X* y, int64 rows,
                                 int channels, int step, float eps, bool relu,
                                 const Divisor& groups) {
    Column mine = column<N>(rows, channels, step, groups);
    float average[N], factor[N], weight[N], offset[N];
    load(mean + mine.channel, average);
    load(scale + mine.channel, factor);
    load(gamma + mine.channel, weight);
    load(beta + mine.channel, offset);
#pragma unroll
    for (int i = 0; i < N; ++i) {
        if (eps >= 0.0f) factor[i] = 1.0f / sqrtf(factor[i] + eps);
        factor[i] *= weight[i];
    }
    apply(x, y, average, factor, offset, relu, mine);
}

extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void batch_norm_apply(
    const X* x, const float* mean, const float* scale, const float* gamma, const float* beta, X* y,
    int64 rows, int channels, int step, int relu, Divisor groups) {
    if (groups.divisor < channels)
        normalize<LANES>(x, mean, scale, gamma, beta, y, rows, channels, step, -1.0f, relu, groups);
    else
        normalize<1>(x, mean, scale, gamma, beta, y, rows, channels, step, -1.0f, relu, groups);
}

// Inference: mean and var are the running averages.
extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void batch_norm_infer(
    const X* x, const float* mean, const float* var, const float* gamma, const float* beta, X* y,
    int64 rows, int channels, int step, float eps, int relu, Divisor groups) {
    if (groups.divisor < channels)
        normalize<LANES>(x, mean, var, gamma, beta, y, rows, channels, step, eps, relu, groups);
    else
        normalize<1>(x, mean, var, gamma, beta, y, rows, channels, step, eps, relu, groups);
}

template <int N>
__device__ inline void backward(const X* dy, const X* x, const float* mean, const float* scale,
                                const float* gamma, const float* sums, X* dx, int64 rows,
                                int channels, int step, float count, const Divisor& groups) {
    Column mine = column<N>(rows, channels, step, groups);
    float average[N], slope[N], offset[N], factor[N];
    load(mean + mine.channel, average);
    load(scale + mine.channel, factor);
    load(sums + mine.channel, offset);
    load(sums + channels + mine.channel, slope);
#pragma unroll
    for (int i = 0; i < N; ++i) {
        offset[i] /= count;
        slope[i] = factor[i] * (slope[i] / count);
        factor[i] *= gamma[mine.channel + i];
    }
#pragma unroll 1
    for (int64 at = mine.at; at < mine.end; at += mine.stride) {
        float d[N], v[N];
        load(dy + at, d);
        load(x + at, v);
#pragma unroll
        for (int i = 0; i < N; ++i)
            d[i] = (d[i] - offset[i] - (v[i] - average[i]) * slope[i]) * factor[i];
        store(dx + at, d);
    }
}

// sums (2, channels) as batch_norm_products wrote them, over `count` values a channel.
extern "C" __global__ __launch_bounds__(256, 3) wide_offsets void batch_norm_backward(
    const X* dy, const X* x, const float* mean, const float* scale, const float* gamma,
    const float* sums, X* dx, int64 rows, int channels, int step, float count, Divisor groups) {
    if (groups.divisor < channels)
        backward<LANES>(dy, x, mean, scale, gamma, sums, dx, rows, channels, step, count, groups);
    else
        backward<1>(dy, x, mean, scale, gamma, sums, dx, rows, channels, step, count, groups);
}

template <int N>
__device__ inline void scale_and_shift(const X* x, const float* scale, const float* shift, X* y,
                                       int64 rows, int channels, int step, const Divisor& groups) {
    Column mine = column<N>(rows, channels, step, groups);
    float zero[N] = {}, factor[N], offset[N];
    load(scale + mine.channel, factor);
    load(shift + mine.channel, offset);
    apply(x, y, zero, factor, offset, false, mine);
}

// y = x * scale + shift per channel.
extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void scale_shift(
    const X* x, const float* scale, const float* shift, X* y, int64 rows, int channels, int step,
    Divisor groups) {
    if (groups.divisor < channels)
        scale_and_shift<LANES>(x, scale, shift, y, rows, channels, step, groups);
    else
        scale_and_shift<1>(x, scale, shift, y, rows, channels, step, groups);
}
