// dx, the gradient of a convolution's input, as one matrix product per phase:
//
//     DX (M x C)  =  DY (M x K)  *  W (K x C)      K = the phase's taps * OC
//
// Input pixel (h, w) was seen by output (h + top - r * dilation) / stride where that division
// is exact, so with stride 2 three of four taps are dead, and which ones depends on h % 2 and
// w % 2 alone.  A phase is the set of pixels with equal remainders: all of them have the same
// live taps, and for live taps the outputs lie at fixed distances, as if the stride were 1.
// With stride 1 there is one phase and every tap is live.
//
//   block   TM pixels of one phase x TN channels of one group
//           grid: pixel tiles of the largest phase, channel tiles, groups * stride_h * stride_w
//   thread  8 x 8 results (gemm_tile.cuh)
//   step    8 of K: 8 filters of one tap
//
//   dy  (N, OH, OW, OC)              one pixel's `filters` floats in a row
//   w   (OC, KH, KW, channels)       one tap's `channels` floats in a row
//   dx  (N, H, W, C)                 written (=), zeros included where no output looked
//   channels = C / groups, filters = OC / groups: what one group has
//
//   vector  channels and filters divisible by 4, and at most 2^32 floats in dy: 16 bytes at a time
//   scalar  any number
// Both need kh + kw <= 31, and fewer than 2^31 - 128 pixels, floats in one image of dy, and
// floats in w; the plain kernel takes what is larger.
//
// 256 threads with at most 128 registers (128 x 128): 16 warps to a multiprocessor; 128 threads
// with at most 168 (128 x 64): 12 warps.  All layers of AlexNet but the first come here.

#include "common.cuh"
#include "conv2d_gather.cuh"
#include "gemm_tile.cuh"

// Along one axis: the live taps first, first + step, ... of a phase, and where they look.
struct Axis {
    int phase, pixels;       // pixel number i of the phase is pixel phase + i * stride
    int first, step, count;  // its live taps
    int output, distance;    // the output that tap `first` of pixel 0 looks at, and from there
                             // to the next live tap's
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

// What a block works on.  It lives in shared memory: read again when it is needed, it takes none
// of the registers, which are scarce in the main loop.
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

// Where pixel m of the phase begins to read dy, and which of its live taps look at an output.
// first: its first filter's unit.  oc_count: units of a pixel of dy.
template <bool VECTOR>
__device__ inline Pixel<VECTOR> output_pixel(int first, int m, const Phase& phase, const Geometry& g,
                                             int oc_count) {
    const Axis &rows = phase.rows, &columns = phase.columns;
    int j = m % columns.pixels, i = m / columns.pixels % rows.pixels;
    int n = m / columns.pixels / rows.pixels;
    int row = i + rows.output, column = j + columns.output;
    uint32 on_image = bits_inside(row, rows.distance, rows.count, g.oh, 0) |
                      bits_inside(column, columns.distance, columns.count, g.ow, g.kh);
    int64 start = (((int64)n * g.oh + row) * g.ow + column) * oc_count + first;
    bool exists = n < g.n;  // past the end, an offset that surely fits
    return {(typename Pixel<VECTOR>::Offset)(exists ? start : 0), exists ? on_image : 0};
}

template <int TM, int TN, bool VECTOR>
__device__ inline void grad_input(const float* dy, const float* w, float* dx, const Geometry& g,
                                  int channels, int filters) {
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

    // Two threads side by side read the 8 filters of one pixel of dy ...
    int k = threadIdx.x % 2 * (4 / U), line = threadIdx.x / 2;
    constexpr int LINES = T::THREADS / 2;
    Pixel<VECTOR> pixel[T::A_QUADS];
#pragma unroll
    for (int q = 0; q < T::A_QUADS; ++q)
        pixel[q] = output_pixel<VECTOR>(phase.group * units + k,
                                        blockIdx.x * TM + line + q * LINES, phase, g, oc_count);
    // ... and TN / 4 threads side by side read TN channels of one filter.
    int filter = threadIdx.x / (TN / 4), quad = threadIdx.x % (TN / 4) * 4;
    int depth = g.kh * g.kw * (channels / U);  // units in a filter
    int channels_left = quad_left<VECTOR>(blockIdx.y * TN + quad, channels);
    int weights = (phase.group * filters + filter) * depth +
                  quad_start<VECTOR>(blockIdx.y * TN + quad, channels) / U;

    float4 next_a[T::A_QUADS], next_b;
    const Tap* tap = taps;  // what to load next: 8 filters of this tap, from unit f on
    int f = 0;
    auto load_next = [&] {
        Tap now = *tap;
#pragma unroll
        for (int q = 0; q < T::A_QUADS; ++q)
            next_a[q] = load_quad<VECTOR>(dy + (int64)(pixel[q].start + now.pixel + f) * U,
                                          sees(pixel[q], now) ? (now.channels - k - f) * U : 0);
        next_b = load_quad<VECTOR>(w + (int64)(weights + now.weight + f * U * depth) * U,
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
    __syncthreads();  // the table is filled
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
    const float* dy, const float* w, float* dx, Geometry g, int channels, int filters) {
    grad_input<128, 128, true>(dy, w, dx, g, channels, filters);
}

extern "C" __global__ __launch_bounds__(128, 3) wide_offsets void conv2d_grad_input_128x64_vector(
    const float* dy, const float* w, float* dx, Geometry g, int channels, int filters) {
    grad_input<128, 64, true>(dy, w, dx, g, channels, filters);
}

extern "C" __global__ __launch_bounds__(128, 3) wide_offsets void conv2d_grad_input_128x64_scalar(
    const float* dy, const float* w, float* dx, Geometry g, int channels, int filters) {
    grad_input<128, 64, false>(dy, w, dx, g, channels, filters);
}
