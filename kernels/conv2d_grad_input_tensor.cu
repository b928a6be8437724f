// dx, the gradient of a convolution's input, on tensor cores.  Read conv2d_grad_input.cu first: one
// matrix product DX (M x C) = DY (M x K) * WEIGHT (K x C) for each phase of the stride, where K is
// the phase's live taps * OC; and conv2d_forward_tensor.cu: the same main loop.
//
//   block   TILE_M pixels of one phase x TILE_N channels of one group
//           grid: pixel tiles of the largest phase, channel tiles, groups * stride_h * stride_w
//   warp    WARP_M x WARP_N, and its fragments: tensor_tile.cuh draws them
//   k-tile  32 filters (tf32: 16) of one tap.  Each thread copies 16 bytes of a few pixels of dy,
//           and 16 bytes of as many filters
//
//   dy      (N, OH, OW, OC)              ELEMENT: half, bfloat16 or tf32 (float32 numbers)
//   weight  (OC, KH, KW, channels)       ELEMENT
//   mask    (N, H, W, C) RESULT, or null.  dx = mask_scale * dx where mask is not 0, else 0: the
//           gradient of a ReLU, and of its dropout, that made the convolution's input
//   dx      (N, H, W, C) RESULT          written (=), with zeros where no output reads the pixel
//   channels = C / groups, filters = OC / groups: those of one group
//
// Needs 16-byte aligned dy and weight, channels and filters divisible by 8 (tf32: 4),
// kh + kw <= 31, and fewer than 2^31 - 128 pixels, elements of an image of dy and elements of
// weight.

#ifndef ELEMENT
#define ELEMENT half
#endif
#ifndef RESULT
#define RESULT half
#endif

#include "common.cuh"
#include "conv2d_phases.cuh"
#include "conv2d_tensor.cuh"

using Tile = TensorTile<ELEMENT, TILE_M, TILE_N, WARP_M, WARP_N, STAGES, K_MAJOR, MN_MAJOR>;

// Live tap t of a phase.  last: the filters of its k-tiles before the last one.
__device__ inline Step step(int t, const Phase& phase, const Geometry& g, int oc_count, int channels,
                            int last) {
    const Axis &rows = phase.rows, &columns = phase.columns;
    int a = t / columns.count, b = t % columns.count;
    bool end_of_row = b + 1 == columns.count;  // the next tap is the first of the next row
    int down = end_of_row, across = end_of_row ? -b : 1;
    int pixels = down * rows.distance * g.ow + across * columns.distance;
    int taps = down * rows.step * g.kw + across * columns.step;
    int depth = g.kh * g.kw * channels;
    return Step{tap_bits(a, b, g.kh), (pixels * oc_count - last) * SIZE,
                (taps * channels - last * depth) * SIZE, 0};
}

extern "C" __global__ __launch_bounds__(Tile::THREADS, BLOCKS) wide_offsets void
conv2d_grad_input_tensor(const ELEMENT* dy, const ELEMENT* weight, const RESULT* mask, RESULT* dx,
                         Geometry g, int channels, int filters, float mask_scale) {
    extern __shared__ uint4 dynamic[];  // the tile, `target`, then the table of taps
    char* shared = reinterpret_cast<char*>(dynamic);
    int* target = reinterpret_cast<int*>(shared + Tile::SHARED_BYTES);  // of each row of the tile:
    Step* taps = reinterpret_cast<Step*>(target + TILE_M);              // its pixel of dx, or -1
    __shared__ Phase phase;
    if (threadIdx.x == 0) phase = phase_of(blockIdx.z, g);
    __syncthreads();
    int m = blockIdx.x * TILE_M, first = blockIdx.y * TILE_N;
    if (m >= phase.pixels) return;  // the grid covers the largest phase

    const Axis &rows = phase.rows, &columns = phase.columns;
    int oc_count = filters * g.groups, depth = g.kh * g.kw * channels;
    int count = rows.count * columns.count;
    int tiles = ceil_div(filters, Tile::K);  // of a tap
    for (int t = threadIdx.x; t <= count + STAGES; t += Tile::THREADS)
        taps[t] = t < count ? step(t, phase, g, oc_count, channels, (tiles - 1) * Tile::K)
                            : Step{NO_TAP, 0, 0, 0};
    for (int i = threadIdx.x; i < TILE_M; i += Tile::THREADS) {
        int across = columns.phase + (m + i) % columns.pixels * g.stride_w;
        int down = rows.phase + (m + i) / columns.pixels % rows.pixels * g.stride_h;
        int n = (m + i) / columns.pixels / rows.pixels;
        target[i] = m + i < phase.pixels ? (n * g.h + down) * g.w + across : -1;
    }

    int k = Tile::a_start(0);
    const char *from_a[Tile::A_COPIES], *from_b[Tile::B_COPIES];
    uint32 off_image[Tile::A_COPIES];
#pragma unroll
    for (int q = 0; q < Tile::A_COPIES; ++q) {
        auto pixel = output_pixel<false>(phase.group * filters + k, m + Tile::a_line(q), phase, g,
                                         oc_count);
        from_a[q] = bytes(dy + pixel.start);
        off_image[q] = ~pixel.on_image;
    }
    int tap_0 = (rows.first * g.kw + columns.first) * channels;
#pragma unroll
    for (int q = 0; q < Tile::B_COPIES; ++q) {
        int channel = min(first + Tile::b_start(q), channels - Tile::CHUNK);  // past the end: any
        int from = (phase.group * filters + Tile::b_line(q)) * depth + tap_0 + channel;
        from_b[q] = bytes(weight + from);
    }

    __syncthreads();  // the tables are complete
    const Step* tap = taps;  // of the next k-tile
    int left = filters;  // of this tap
    auto load = [&](Tile::Copies& copies) {
        uint32 bits = k < left ? tap->bits : NO_TAP;
        int b_left = (int)tap->bits >= 0 ? left : 0;
#pragma unroll
        for (int q = 0; q < Tile::A_COPIES; ++q)
            copies.a(q, elements(from_a[q]), (off_image[q] & bits) == 0);
#pragma unroll
        for (int q = 0; q < Tile::B_COPIES; ++q)
            copies.b(q, elements(from_b[q]), Tile::b_k() < b_left - Tile::b_k_step(q));
    };
    auto advance = [&] {
        left -= Tile::K;
        int a_step = LINE, b_step = Tile::K * depth * SIZE;
        if (left <= 0) {
            a_step = tap->image;
            b_step = tap->weight;
            left = filters;
            ++tap;
        }
#pragma unroll
        for (int q = 0; q < Tile::A_COPIES; ++q) from_a[q] += a_step;
#pragma unroll
        for (int q = 0; q < Tile::B_COPIES; ++q) from_b[q] += b_step;
    };

    Tile::Sums sum = {};
    Tile::multiply(shared, count * tiles, load, advance, sum);

    Tile::for_each_chunk<CHUNK>(shared, sum, [&](int row, int column, float(&v)[CHUNK]) {
        int left = channels - first - column;
        if (target[row] < 0 || left <= 0) return;
        int64 to = (int64)target[row] * g.c + phase.group * channels + first + column;
        if (mask) {
            float made[CHUNK];
            load_chunk(made, mask + to, left, true);
#pragma unroll
            for (int i = 0; i < CHUNK; ++i) v[i] = made[i] == 0.0f ? 0.0f : mask_scale * v[i];
        }
        store_chunk(dx + to, v, left, true);
    });
}
