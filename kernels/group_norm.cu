// Group normalisation: each group of an image's channels gets mean 0 and variance 1.  Layer
// normalisation is the case of one pixel and one group: a row is an image.
//
//   y = (x - mean) * scale * gamma + beta        scale = 1 / sqrt(var + eps)
//
// One launch forward, two backward:
//
//   group_norm_forward    block -> one group of one image: its mean, its variance and y
//   group_norm_backward   block -> the same group: dx
//   group_norm_products   block -> a tile of channels x one split of the rows, as
//                         batch_norm_products: sums of dy and of dy * normalised x
//
//                  channels
//              | group 0 | group 1 |         a block steps over its group's pixels x run numbers,
//    pixel 0   |  t t t  |         |         run = channels / groups; thread t owns N adjacent
//    pixel 1   |  t t t  |         |         ones: LANES (16 bytes), or one where those do not
//    ...                                     divide the run
//
//   x, y, dy, dx   (images, pixels, channels) of type X; written (=)
//   mean, scale    (images, groups) float
//   gamma, beta    (channels) float; either may be null, which stands for 1 or 0
//
// The mean is a sum of differences from the group's first number, corrected by the mean deviation
// that is left; the variance is that of the deviations from it (Chan, Golub and LeVeque 1983).  So
// both are as accurate as a float32 sum, however large the mean.  x is read three times forward and
// twice backward, the first time from memory: a group mostly stays in the cache.
//
// Blocks of up to 256 threads, whole warps, at most 64 registers a thread: 32 warps per
// multiprocessor.  group_norm_products keeps two sums a channel: at most 80 registers a thread: 24
// warps.
// No AlexNet uses these; networks for small batches do.

#ifndef X
#define X float  // or half, bfloat16
#endif

#include "batch_norm_sums.cuh"

struct Pair {
    float a, b;
};

// Both sums over the block, in every thread.
__device__ inline Pair block_sums(float a, float b, Pair* warps) {
    a = warp_sum(a);
    b = warp_sum(b);
    __syncthreads();  // the last sums may still be read
    if (threadIdx.x % WARP == 0) warps[threadIdx.x / WARP] = Pair{a, b};
    __syncthreads();
    Pair total = {0.0f, 0.0f};
    for (int warp = 0; warp < blockDim.x / WARP; ++warp) {
        total.a += warps[warp].a;
        total.b += warps[warp].b;
    }
    return total;
}

// The numbers of this block's group.
struct Group {
    int64 start;
    int channel, channels, run, pixels;

    __device__ inline Group(int pixels, int channels, int groups)
        : channels(channels), run(channels / groups), pixels(pixels) {
        int image = blockIdx.x / groups;
        channel = (blockIdx.x - image * groups) * run;
        start = (int64)image * pixels * channels + channel;
    }

    // Calls see(offset in the array, channel) for this thread's N numbers at a time.
    template <int N, class See>
    __device__ inline void each(const Divisor& parts, See see) const {
        for (int i = threadIdx.x; i < pixels * parts.divisor; i += blockDim.x) {
            int pixel = divide(i, parts), part = (i - pixel * parts.divisor) * N;
            see(start + (int64)pixel * channels + part, channel + part);
        }
    }
};

// v = from[0 .. N - 1], or `otherwise` without an array.
template <int N>
__device__ inline void load_or(const float* from, int at, float otherwise, float (&v)[N]) {
#pragma unroll
    for (float& value : v) value = otherwise;
    if (from) load(from + at, v);
}

template <int N>
__device__ inline void forward(const X* x, const float* gamma, const float* beta, X* y, float* mean,
                               float* scale, const Group& group, float eps, const Divisor& parts,
                               Pair* warps) {
    float reference = to_float(x[group.start]), count = (float)group.pixels * group.run;
    float sum = 0.0f, squares = 0.0f;
    group.each<N>(parts, [&](int64 at, int) {
        float v[N];
        load(x + at, v);
#pragma unroll
        for (int i = 0; i < N; ++i) sum += v[i] - reference;
    });
    float average = reference + block_sums(sum, 0.0f, warps).a / count;
    sum = 0.0f;
    group.each<N>(parts, [&](int64 at, int) {
        float v[N];
        load(x + at, v);
#pragma unroll
        for (int i = 0; i < N; ++i) {
            float away = v[i] - average;
            sum += away;
            squares += away * away;
        }
    });
    Pair total = block_sums(sum, squares, warps);
    float left = total.a / count, variance = total.b / count - left * left;
    variance = variance < 0.0f ? 0.0f : variance;  // NaN stays
    average += left;
    float factor = 1.0f / sqrtf(variance + eps);
    if (threadIdx.x == 0) {
        mean[blockIdx.x] = average;
        scale[blockIdx.x] = factor;
    }
    group.each<N>(parts, [&](int64 at, int channel) {
        float v[N], weight[N], offset[N];
        load(x + at, v);
        load_or(gamma, channel, 1.0f, weight);
        load_or(beta, channel, 0.0f, offset);
#pragma unroll
        for (int i = 0; i < N; ++i) v[i] = (v[i] - average) * factor * weight[i] + offset[i];
        store(y + at, v);
    });
}

// parts: the N-number parts of a run.
extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void group_norm_forward(
    const X* x, const float* gamma, const float* beta, X* y, float* mean, float* scale, int pixels,
    int channels, int groups, float eps, Divisor parts) {
    __shared__ Pair warps[8];
    Group group(pixels, channels, groups);
    if (parts.divisor < group.run)
        forward<LANES>(x, gamma, beta, y, mean, scale, group, eps, parts, warps);
    else
        forward<1>(x, gamma, beta, y, mean, scale, group, eps, parts, warps);
}

// With d = dy * gamma and n = normalised x: dx = (d - mean of d - n * mean of d * n) * scale.
template <int N>
__device__ inline void backward(const X* dy, const X* x, const float* gamma, const float* mean,
                                const float* scale, X* dx, const Group& group,
                                const Divisor& parts, Pair* warps) {
    float average = mean[blockIdx.x], factor = scale[blockIdx.x];
    float count = (float)group.pixels * group.run, sum = 0.0f, products = 0.0f;
    group.each<N>(parts, [&](int64 at, int channel) {
        float d[N], v[N], weight[N];
        load(dy + at, d);
        load(x + at, v);
        load_or(gamma, channel, 1.0f, weight);
#pragma unroll
        for (int i = 0; i < N; ++i) {
            d[i] *= weight[i];
            sum += d[i];
            products += d[i] * ((v[i] - average) * factor);
        }
    });
    Pair total = block_sums(sum, products, warps);
    float offset = total.a / count, slope = total.b / count;
    group.each<N>(parts, [&](int64 at, int channel) {
        float d[N], v[N], weight[N];
        load(dy + at, d);
        load(x + at, v);
        load_or(gamma, channel, 1.0f, weight);
#pragma unroll
        for (int i = 0; i < N; ++i)
            d[i] = (d[i] * weight[i] - offset - (v[i] - average) * factor * slope) * factor;
        store(dx + at, d);
    });
}

extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void group_norm_backward(
    const X* dy, const X* x, const float* gamma, const float* mean, const float* scale, X* dx,
    int pixels, int channels, int groups, Divisor parts) {
    __shared__ Pair warps[8];
    Group group(pixels, channels, groups);
    if (parts.divisor < group.run)
        backward<LANES>(dy, x, gamma, mean, scale, dx, group, parts, warps);
    else
        backward<1>(dy, x, gamma, mean, scale, dx, group, parts, warps);
}

template <int N>
__device__ inline void products(const X* dy, const X* x, const float* mean, const float* scale,
                                float* part, unsigned* counters, float* sums, int64 rows,
                                int channels, int groups, const Divisor& pixels,
                                const Divisor& width, Exchange& exchange) {
    Place at = place<N>(rows, channels, width);
    Sums<N> mine = {};
    if (at.exists) {
        int group = at.channel / (channels / groups);  // N divides the run: one for all N channels
        for (int64 row = at.begin + at.line; row < at.end; row += at.lines) {
            int64 statistic = (int64)divide((int)row, pixels) * groups + group;
            float average = mean[statistic], factor = scale[statistic], d[N], v[N];
            load(dy + row * channels + at.channel, d);
            load(x + row * channels + at.channel, v);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                mine.a[i] += d[i];
                mine.b[i] += d[i] * ((v[i] - average) * factor);
            }
        }
    }
    if (!merge_all<Totals>(mine, at, part, counters, rows, channels, width.divisor, exchange))
        return;
    store(sums + at.channel, mine.a);
    store(sums + channels + at.channel, mine.b);
}

// rows = images * pixels.  sums (2, channels): dbeta, then dgamma.
extern "C" __global__ __launch_bounds__(256, 3) wide_offsets void group_norm_products(
    const X* dy, const X* x, const float* mean, const float* scale, float* part,
    unsigned* counters, float* sums, int64 rows, int channels, int groups, int vector,
    Divisor pixels, Divisor width) {
    __shared__ Exchange exchange;
    if (vector)
        products<LANES>(dy, x, mean, scale, part, counters, sums, rows, channels, groups, pixels,
                        width, exchange);
    else
        products<1>(dy, x, mean, scale, part, counters, sums, rows, channels, groups, pixels, width,
                    exchange);
}
