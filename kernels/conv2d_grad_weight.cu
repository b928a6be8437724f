// dweight, the gradient of a convolution's filters, as one matrix product:
//
//     DWEIGHT (OC x K)  =  DY^T (OC x M)  *  X (M x K)     M = N * OH * OW pixels, K = KH * KW * C
//
// M is long and the result small, so this is a split-K product: the pixels are split over blocks,
// each split writes its own sum, and sum_splits (reduce.cu) adds the splits in order.  Without
// atomics the result is reproducible.  The number of splits depends only on the shapes.
//
//   block   TM filters x TN of K, over one split of the pixels, in one group
//           grid: K tiles, filter tiles, groups * splits
//   warp    32 filters x 64 of K
//   thread  8 x 8 results (gemm_tile.cuh)
//   step    8 pixels.  A row of the tile is one pixel: TM elements of dy, TN elements of x
//
//   x     (N, H, W, C)                          channels = C / groups, filters = OC / groups
//   dy    (N, OH, OW, OC)
//   part  (splits, split_size)                  written (=): the first OC * K floats of each split
//                                               are its sum for dweight (OC, KH, KW, channels);
//                                               with one split, part is dweight itself
//
//   vector  channels and filters divisible by 4: 16-byte loads        scalar  any number
// Both need fewer than 2^31 - 8 * splits pixels, and fewer than 2^31 floats in an image and in
// weight.
//
// 128 threads, at most 168 registers each: 12 warps per multiprocessor.  A 128 x 128 tile would
// need more than its 128 registers: walking over the pixels takes six.
// All layers of AlexNet use them.

#include "common.cuh"
#include "gemm_tile.cuh"

// The pixel of x that one tap of output pixel p reads; p advances by 8 per step.
struct Walk {
    int image, row, column;
    int row_end, column_end;  // the first row and column past this tap's: carry there
};

// Eight output pixels as images, rows and columns of x: a step adds these and carries.
// Kept in shared memory and reread where needed: registers are this kernel's scarcest resource.
struct alignas(16) Stride {
    int images, rows, columns;
    int image_size;  // in floats
};

__device__ inline Stride eight_pixels(const Geometry& g) {
    int image = g.oh * g.ow;
    return Stride{TILE_K / image, TILE_K % image / g.ow * g.stride_h, TILE_K % g.ow * g.stride_w,
                  g.h * g.w * g.c};
}

__device__ inline Walk start_walk(int p, int tap, const Geometry& g) {
    int row0 = tap / g.kw * g.dilation_h - g.top, column0 = tap % g.kw * g.dilation_w - g.left;
    return Walk{p / g.ow / g.oh, p / g.ow % g.oh * g.stride_h + row0,
                p % g.ow * g.stride_w + column0, g.oh * g.stride_h + row0,
                g.ow * g.stride_w + column0};
}

__device__ inline void step(Walk& walk, const Stride& by, const Geometry& g) {
    walk.image += by.images;
    walk.row += by.rows;
    walk.column += by.columns;
    if (walk.column >= walk.column_end) {
        walk.column -= g.ow * g.stride_w;
        walk.row += g.stride_h;
    }
    if (walk.row >= walk.row_end) {
        walk.row -= g.oh * g.stride_h;
        ++walk.image;
    }
}

__device__ inline bool on_image(int row, int column, const Geometry& g) {
    return (uint32)row < (uint32)g.h && (uint32)column < (uint32)g.w;
}

template <int TM, int TN, bool VECTOR>
__device__ inline void grad_weight(const float* x, const float* dy, float* part, const Geometry& g,
                                   int channels, int filters, int splits, int64 split_size) {
    using T = Tile<TM, TN>;
    static_assert(T::B_QUADS == 1, "a step's pixels of x are one load per thread");
    __shared__ SharedTile<TM, TN> tiles[2];
    __shared__ Stride eight;
    if (threadIdx.x == 0) eight = eight_pixels(g);
    int oc_count = filters * g.groups, depth = g.kh * g.kw * channels;
    int group = blockIdx.z / splits, split = blockIdx.z % splits;
    int pixels = g.n * g.oh * g.ow;
    int share = ceil_div(ceil_div(pixels, TILE_K), splits) * TILE_K;  // pixels per split
    int begin = split * share, end = min(begin + share, pixels);

    // dy: TM / 4 adjacent threads load TM filters of one pixel, for A_QUADS pixels.
    constexpr int A_ROWS = TILE_K / T::A_QUADS;
    int a_row = threadIdx.x / (TM / 4), a_quad = threadIdx.x % (TM / 4) * 4;
    int filters_left = quad_left<VECTOR>(blockIdx.y * TM + a_quad, filters);
    int a_pixels = end - begin - a_row;  // pixels left, from this thread's on
    const float* gradient = dy + (int64)(begin + a_row) * oc_count + group * filters +
                            quad_start<VECTOR>(blockIdx.y * TM + a_quad, filters);

    // x: TN / 4 adjacent threads load TN of K at one pixel; past the end of K, any element.
    int b_row = threadIdx.x / (TN / 4), b_quad = threadIdx.x % (TN / 4) * 4;
    int b_pixels = end - begin - b_row;
    x += group * channels;
    constexpr int WALKS = VECTOR ? 1 : 4;  // if channels % 4 == 0, four neighbours in K share a tap
    Walk walk[WALKS];
    int channel[WALKS];
#pragma unroll
    for (int i = 0; i < WALKS; ++i) {
        int at = min(blockIdx.x * TN + b_quad + i, depth - (VECTOR ? 4 : 1));
        walk[i] = start_walk(begin + b_row, at / channels, g);
        channel[i] = at % channels;
    }

    float4 next_a[T::A_QUADS];
    float next_b[4];
    auto load_next = [&] {
#pragma unroll
        for (int q = 0; q < T::A_QUADS; ++q)
            next_a[q] = load_quad<VECTOR>(gradient + q * A_ROWS * oc_count,
                                          a_pixels > q * A_ROWS ? filters_left : 0);
        Stride by = eight;
#pragma unroll
        for (int i = 0; i < WALKS; ++i) {
            bool exists = b_pixels > 0 && on_image(walk[i].row, walk[i].column, g);
            const float* from = x + (int64)walk[i].image * by.image_size +
                                ((walk[i].row * g.w + walk[i].column) * g.c + channel[i]);
            if (VECTOR)
                unpack(load_quad<true>(from, exists ? 4 : 0), next_b);
            else
                next_b[i] = exists ? *from : 0.0f;
            step(walk[i], by, g);
        }
        a_pixels -= TILE_K;
        b_pixels -= TILE_K;
        gradient += TILE_K * oc_count;
    };
    auto store_next = [&](SharedTile<TM, TN>& tile) {
#pragma unroll
        for (int q = 0; q < T::A_QUADS; ++q)
            store4(&tile.a[a_row + q * A_ROWS][a_quad], next_a[q]);
        store4(&tile.b[b_row][b_quad],
               make_float4(next_b[0], next_b[1], next_b[2], next_b[3]));
    };

    float sum[8][8] = {};
    __syncthreads();  // `eight` is set
    int steps = ceil_div(max(end - begin, 0), TILE_K);
    if (steps > 0) multiply_steps<TM, TN>(steps, tiles, load_next, store_next, sum);

    int column = blockIdx.x * TN + lane_column<TM, TN>();
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        int filter = blockIdx.y * TM + lane_row<TM, TN>() + row_of(i);
        if (filter >= filters) break;
        float* to = part + split * split_size + (int64)(group * filters + filter) * depth + column;
        store_quad(to, sum[i], depth - column, VECTOR);
        store_quad(to + 32, sum[i] + 4, depth - column - 32, VECTOR);
    }
}

extern "C" __global__ __launch_bounds__(128, 3) wide_offsets void conv2d_grad_weight_128x64_vector(
    const float* x, const float* dy, float* part, Geometry g, int channels,
    int filters, int splits, int64 split_size) {
    grad_weight<128, 64, true>(x, dy, part, g, channels, filters, splits, split_size);
}

extern "C" __global__ __launch_bounds__(128, 3) wide_offsets void conv2d_grad_weight_128x64_scalar(
    const float* x, const float* dy, float* part, Geometry g, int channels,
    int filters, int splits, int64 split_size) {
    grad_weight<128, 64, false>(x, dy, part, g, channels, filters, splits, split_size);
}
