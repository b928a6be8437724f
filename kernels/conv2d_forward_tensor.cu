// y = relu(conv(x, weight) + bias) on tensor cores.  Read conv2d_forward.cu first: the
// same implicit matrix product Y (M x OC) = X (M x K) * WEIGHT (K x OC), M = N * OH * OW pixels.
//
//   block   TILE_M pixels x TILE_N filters of one group     grid: pixel tiles, filter tiles, groups
//   warp    WARP_M x WARP_N, and its fragments: tensor_tile.cuh draws them
//   k-tile  32 channels (tf32: 16) of one tap.  Each thread copies 16 bytes of a few pixels and of
//           as many filters from global to shared memory, STAGES k-tiles ahead (cp.async)
//
//   x       (N, H, W, C) ELEMENT            half, bfloat16 or tf32 (float32 numbers)
//   weight  (OC, KH, KW, channels) ELEMENT
//   bias    (OC) float, or null
//   y       (N, OH, OW, OC) RESULT          written (=); ELEMENT, or float for tf32
//   channels = C / groups, filters = OC / groups: those of one group
//
// Needs 16-byte aligned x and weight, channels divisible by 8 (tf32: 4), kh + kw <= 31, and fewer
// than 2^31 - 128 pixels, elements of an image and elements of weight.
//
// Such a loop must not spend its time on addresses.  A thread has a pointer for each of its copies,
// and steps it from k-tile to k-tile by one 64-bit addition.  For each pixel it has one bit for each
// row and each column of the window, set if that is off the image: one test.  The table of taps in
// shared memory has the distance to the next tap.  Padding, ragged edges and the end of K cost no
// branch: such a copy reads nothing and stores zeros.

#ifndef ELEMENT
#define ELEMENT half
#endif
#ifndef RESULT
#define RESULT half
#endif

#include "common.cuh"
#include "conv2d_gather.cuh"
#include "conv2d_tensor.cuh"

using Tile = TensorTile<ELEMENT, TILE_M, TILE_N, WARP_M, WARP_N, STAGES, K_MAJOR, K_MAJOR>;

// Tap t of the window: `bytes` long in x and in weight, `last` of them before its last k-tile.
__device__ inline Step step(int t, const Geometry& g, int bytes, int last) {
    int r = t / g.kw, s = t % g.kw;
    bool end_of_row = s + 1 == g.kw;  // the next tap is the first of the next row
    int down = end_of_row ? g.dilation_h : 0, across = end_of_row ? -s : 1;
    int pixels = down * g.w + across * g.dilation_w;
    return Step{tap_bits(r, s, g.kh), pixels * g.c * SIZE - last, bytes - last, 0};
}

extern "C" __global__ __launch_bounds__(Tile::THREADS, BLOCKS) wide_offsets void
conv2d_forward_tensor(const ELEMENT* x, const ELEMENT* weight, const float* bias, RESULT* y,
                      Geometry g, int channels, int filters, int relu) {
    extern __shared__ uint4 dynamic[];  // the tile, then the table of taps
    char* shared = reinterpret_cast<char*>(dynamic);
    Step* taps = reinterpret_cast<Step*>(shared + Tile::SHARED_BYTES);
    int count = g.kh * g.kw, pixels = g.n * g.oh * g.ow;
    int tiles = ceil_div(channels, Tile::K), last = (tiles - 1) * LINE;  // of a tap
    for (int t = threadIdx.x; t <= count + STAGES; t += Tile::THREADS)
        taps[t] = t < count ? step(t, g, channels * SIZE, last) : Step{NO_TAP, 0, 0, 0};

    int m = blockIdx.x * TILE_M, f = blockIdx.y * TILE_N, k = Tile::a_start(0);
    const char *from_a[Tile::A_COPIES], *from_b[Tile::B_COPIES];
    uint32 off_image[Tile::A_COPIES];
#pragma unroll
    for (int q = 0; q < Tile::A_COPIES; ++q) {
        auto pixel = input_pixel<false>(blockIdx.z * channels + k, m + Tile::a_line(q), pixels, g);
        from_a[q] = bytes(x + pixel.start);
        off_image[q] = ~pixel.on_image;
    }
#pragma unroll
    for (int q = 0; q < Tile::B_COPIES; ++q) {
        int filter = blockIdx.z * filters + min(f + Tile::b_line(q), filters - 1);
        from_b[q] = bytes(weight + filter * (count * channels) + k);
    }

    __syncthreads();  // the table is complete
    const Step* tap = taps;  // of the next k-tile
    int c = 0, own = (channels - k) * SIZE, all = channels * SIZE;  // in bytes of a tap
    auto load = [&](Tile::Copies& copies) {
        uint32 bits = c < own ? tap->bits : NO_TAP;
#pragma unroll
        for (int q = 0; q < Tile::A_COPIES; ++q)
            copies.a(q, elements(from_a[q]), (off_image[q] & bits) == 0);
#pragma unroll
        for (int q = 0; q < Tile::B_COPIES; ++q) copies.b(q, elements(from_b[q]), (int)bits >= 0);
    };
    auto advance = [&] {
        c += LINE;
        int a_step = LINE, b_step = LINE;
        if (c >= all) {
            a_step = tap->image;
            b_step = tap->weight;
            c = 0;
            ++tap;
        }
#pragma unroll
        for (int q = 0; q < Tile::A_COPIES; ++q) from_a[q] += a_step;
#pragma unroll
        for (int q = 0; q < Tile::B_COPIES; ++q) from_b[q] += b_step;
    };

    Tile::Sums sum = {};
    Tile::multiply(shared, count * tiles, load, advance, sum);

    int oc_count = filters * g.groups;
    Tile::for_each_chunk<CHUNK>(shared, sum, [&](int row, int column, float(&v)[CHUNK]) {
        int left = filters - f - column, oc = blockIdx.z * filters + f + column;
        if (m + row >= pixels || left <= 0) return;
        bool whole = filters % CHUNK == 0;
        int64 at = (int64)(m + row) * oc_count + oc;
#pragma unroll
        for (int i = 0; i < CHUNK; ++i)
            if (bias && i < left) v[i] += bias[oc + i];
#pragma unroll
        for (int i = 0; i < CHUNK; ++i) v[i] = relu && v[i] < 0.0f ? 0.0f : v[i];  // NaN passes
        store_chunk(y + at, v, left, whole);
    });
}
