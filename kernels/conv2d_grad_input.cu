// dx, the gradient of a convolution's input, as one matrix product per phase:
//
//     DX (M x C)  =  DY (M x K)  *  WEIGHT (K x C)      K = the phase's live taps * OC
//
// Tap r reaches input pixel h from output (h + top - r * dilation) / stride, if that division is
// exact.  With stride 2, three of four taps are dead, and which ones depends only on h % 2 and
// w % 2.  A phase is the set of pixels with equal remainders.  They have the same live taps, whose
// outputs lie at fixed distances, as if the stride were 1.  With stride 1 there is one phase and
// every tap is live.
//
//   block   TM pixels of one phase x TN channels of one group
//           grid: pixel tiles of the largest phase, channel tiles, groups * stride_h * stride_w
//   warp    32 pixels x 64 channels
//   thread  8 x 8 results (gemm_tile.cuh)
//   step    8 of K: 8 filters of one tap
//
//   dy      (N, OH, OW, OC)              one pixel: `filters` contiguous floats
//   weight  (OC, KH, KW, channels)       one tap: `channels` contiguous floats
//   dx      (N, H, W, C)                 written (=), with zeros where no output reads the pixel
//   channels = C / groups, filters = OC / groups: those of one group
//
//   vector  channels and filters divisible by 4, at most 2^32 floats in dy: 16-byte loads
//   scalar  any number
// Both need kh + kw <= 31, and fewer than 2^31 - 128 pixels, floats in one image of dy, and
// floats in weight; the plain kernel handles anything larger.
//
// 128 x 128: 256 threads, at most 128 registers each: 16 warps per multiprocessor.
// 128 x 64: 128 threads, at most 168 registers each: 12 warps per multiprocessor.
// All layers of AlexNet but the first use them.

#include "common.cuh"
#include "conv2d_gather.cuh"
#include "gemm_tile.cuh"

// One axis of a phase: its live taps first, first + step, ... and the outputs they read.
struct Axis {
    int phase, pixels;       // pixel i of the phase is pixel phase + i * stride of the image
    int first, step, count;  // live taps
    int output, distance;    // the output that tap `first` of pixel 0 reads; the distance from
                             // there to the output of the next live tap
};

__device__ inline Axis live_taps(int phase, int size, int stride, int before, int dilation,
                                 int taps) {
    Axis axis = {phase, phase < size ? ceil_div(size - phase, stride) : 0, 0, 1, 0, 0, 0};
    for (int tap = 0; tap < taps; ++tap) {
        if ((phase + before - tap * dilation) % stride != 0) continue;
        if (axis.count == 0) axis.first = tap;
        if (axis.count == 1) axis.step = tap - axis.first;
        ++axis.count;
    }
    axis.output = (phase + before - axis.first * dilation) / stride;
    axis.distance = -axis.step * dilation / stride;
    return axis;
}

// The work of a block.  Kept in shared memory and reread where needed: registers are scarce in the
// main loop.
struct Phase {
    Axis rows, columns;
    int group, pixels;
};

__device__ inline Phase phase_of(int block, const Geometry& g) {
    int phases = g.stride_h * g.stride_w, phase = block % phases;
    Axis rows = live_taps(phase / g.stride_w, g.h, g.stride_h, g.top, g.dilation_h, g.kh);
    Axis columns = live_taps(phase % g.stride_w, g.w, g.stride_w, g.left, g.dilation_w, g.kw);
    return Phase{rows, columns, block / phases, g.n * rows.pixels * columns.pixels};
}

// Where pixel m of the phase starts to read dy, and which of its live taps have an output.
// first: the unit of the first filter that the thread reads; oc_count: units per pixel of dy.
template <bool VECTOR>
__device__ inline Pixel<VECTOR> output_pixel(int first, int m, const Phase& phase,
                                             const Geometry& g, int oc_count) {
    const Axis &rows = phase.rows, &columns = phase.columns;
    int j = m % columns.pixels, i = m / columns.pixels % rows.pixels;
    int n = m / columns.pixels / rows.pixels;
    int row = i + rows.output, column = j + columns.output;
    uint32 on_image = bits_inside(row, rows.distance, rows.count, g.oh, 0) |
                      bits_inside(column, columns.distance, columns.count, g.ow, g.kh);
    int64 start = (((int64)n * g.oh + row) * g.ow + column) * oc_count + first;
    bool exists = n < g.n;  // past the end: an offset that cannot overflow
    return {(typename Pixel<VECTOR>::Offset)(exists ? start : 0), exists ? on_image : 0};
}

template <int TM, int TN, bool VECTOR>
__device__ inline void grad_input(const float* dy, const float* weight, float* dx,
                                  const Geometry& g, int channels, int filters) {
    using T = Tile<TM, TN>;
    static_assert(T::B_QUADS == 1, "a step's filters are one load per thread");
    __shared__ SharedTile<TM, TN> tiles[2];
    __shared__ Tap taps[MAX_TAPS];
    __shared__ Phase phase;
    if (threadIdx.x == 0) phase = phase_of(blockIdx.z, g);
    __syncthreads();
    if (blockIdx.x * TM >= phase.pixels) return;  // the grid covers the largest phase

    const Axis &rows = phase.rows, &columns = phase.columns;
    constexpr int U = UNIT<VECTOR>;
    int units = filters / U, oc_count = units * g.groups;
    int count = rows.count * columns.count;
    if (threadIdx.x == 0) taps[count] = Tap{};
    for (int t = threadIdx.x; t < count; t += T::THREADS) {
        int a = t / columns.count, b = t % columns.count;
        int r = rows.first + a * rows.step, s = columns.first + b * columns.step;
        taps[t] = Tap{(a * rows.distance * g.ow + b * columns.distance) * oc_count,
                      (r * g.kw + s) * (channels / U), tap_bits(a, b, g.kh), units};
    }

    // Two adjacent threads load the 8 filters of one pixel of dy ...
    int k = threadIdx.x % 2 * (4 / U), line = threadIdx.x / 2;
    constexpr int LINES = T::THREADS / 2;
    Pixel<VECTOR> pixel[T::A_QUADS];
#pragma unroll
    for (int q = 0; q < T::A_QUADS; ++q)
        pixel[q] = output_pixel<VECTOR>(phase.group * units + k,
                                        blockIdx.x * TM + line + q * LINES, phase, g, oc_count);
    // ... and TN / 4 adjacent threads load TN channels of one filter.
    int filter = threadIdx.x / (TN / 4), quad = threadIdx.x % (TN / 4) * 4;
    int depth = g.kh * g.kw * (channels / U);  // units per filter
    int channels_left = quad_left<VECTOR>(blockIdx.y * TN + quad, channels);
    int filter_start = (phase.group * filters + filter) * depth +
                       quad_start<VECTOR>(blockIdx.y * TN + quad, channels) / U;

    float4 next_a[T::A_QUADS], next_b;
    const Tap* tap = taps;  // the next step: 8 filters of this tap, from unit f on
    int f = 0;
    auto load_next = [&] {
        Tap now = *tap;
#pragma unroll
        for (int q = 0; q < T::A_QUADS; ++q)
            next_a[q] = load_quad<VECTOR>(dy + (int64)(pixel[q].start + now.pixel + f) * U,
                                          sees(pixel[q], now) ? (now.channels - k - f) * U : 0);
        next_b = load_quad<VECTOR>(weight + (int64)(filter_start + now.weight + f * U * depth) * U,
                                   f * U + filter < now.channels * U ? channels_left : 0);
        f += TILE_K / U;
        if (f >= units) {
            f = 0;
            ++tap;
        }
    };
    auto store_next = [&](SharedTile<TM, TN>& tile) {
#pragma unroll
        for (int q = 0; q < T::A_QUADS; ++q)
            store_transposed(tile.a, k * U, line + q * LINES, next_a[q]);
        store4(&tile.b[filter][quad], next_b);
    };

    float sum[8][8] = {};
    __syncthreads();  // the table is complete
    int steps = count * ceil_div(filters, TILE_K);
    if (steps > 0) multiply_steps<TM, TN>(steps, tiles, load_next, store_next, sum);

    int column = blockIdx.y * TN + lane_column<TM, TN>();
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        int m = blockIdx.x * TM + lane_row<TM, TN>() + row_of(i);
        if (m >= phase.pixels) break;
        int across = columns.phase + m % columns.pixels * g.stride_w;
        int down = rows.phase + m / columns.pixels % rows.pixels * g.stride_h;
        int64 n = m / columns.pixels / rows.pixels;
        float* to = dx + ((n * g.h + down) * g.w + across) * g.c + phase.group * channels + column;
        store_quad(to, sum[i], channels - column, VECTOR);
        store_quad(to + 32, sum[i] + 4, channels - column - 32, VECTOR);
    }
}

extern "C" __global__ __launch_bounds__(256, 2) wide_offsets void conv2d_grad_input_128x128_vector(
    const float* dy, const float* weight, float* dx, Geometry g, int channels, int filters) {
    grad_input<128, 128, true>(dy, weight, dx, g, channels, filters);
}

extern "C" __global__ __launch_bounds__(128, 3) wide_offsets void conv2d_grad_input_128x64_vector(
    const float* dy, const float* weight, float* dx, Geometry g, int channels, int filters) {
    grad_input<128, 64, true>(dy, weight, dx, g, channels, filters);
}

extern "C" __global__ __launch_bounds__(128, 3) wide_offsets void conv2d_grad_input_128x64_scalar(
    const float* dy, const float* weight, float* dx, Geometry g, int channels, int filters) {
    grad_input<128, 64, false>(dy, weight, dx, g, channels, filters);
}
