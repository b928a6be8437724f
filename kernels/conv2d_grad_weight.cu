// dweight, the gradient of a convolution's filters, as one matrix product:
//
//     DWEIGHT (OC x K)  =  DY^T (OC x M)  *  X (M x K)     M = N * OH * OW pixels, K = KH * KW * C
//
// M is long and the result small, so this is a split-K product: the pixels are split over blocks,
// and the last block of a tile adds its splits in order (split_sum.cuh): the result is reproducible.
// The number of splits depends only on the shapes.
//
//   block   TM filters x TN of K, over one split of the pixels, in one group
//           grid: K tiles, filter tiles, groups * splits
//           With a bias, TM / 32 columns of blocks after the last K tile sum dy (bias_sum.cuh).
//   warp    32 filters x 64 of K
//   thread  8 x 8 results (gemm_tile.cuh)
//   step    8 pixels.  A row of the tile is one pixel: TM elements of dy, TN elements of x
//
//   x        (N, H, W, C), IMAGE                channels = C / groups, filters = OC / groups
//   dy       (N, OH, OW, OC), ELEMENT
//   dweight  (OC, KH, KW, channels)             written (=)
//   dbias    (OC), or null                      written (=)
//   workspace, arrived                          of split_sum.cuh, for the tiles of dweight, then for
//                                               those of dbias; null with one split
//
// IMAGE and ELEMENT: float, half or bfloat16.  Float images are rounded to ELEMENT, as the operands
// of a product in half precision are.
//
//   vector  channels and filters divisible by 4: a load is 4 numbers       scalar  any number
// Both need fewer than 2^31 - 8 * splits pixels, and fewer than 2^31 floats in an image and in
// weight.
//
// 128 threads, at most 168 registers each: 12 warps per multiprocessor.  A 128 x 128 tile would
// need more than its 128 registers: walking over the pixels takes six.
// All layers of AlexNet use them.

#include "bias_sum.cuh"
#include "common.cuh"
#include "quads.cuh"
#include "gemm_tile.cuh"
#include "pixel_walk.cuh"
#include "split_sum.cuh"

#ifndef IMAGE
#define IMAGE float
#endif
#ifndef ELEMENT
#define ELEMENT float
#endif

// x as an operand: of the precision of ELEMENT.
__device__ inline float operand(float x) {
    return sizeof(IMAGE) > sizeof(ELEMENT) ? to_float(from_float<ELEMENT>(x)) : x;
}

template <int TM, int TN>
__device__ inline void grad_weight(const IMAGE* x, const ELEMENT* dy, float* dweight, float* dbias,
                                   float* workspace, unsigned* arrived, const Geometry& g,
                                   int channels, int filters, int splits) {
    using T = Tile<TM, TN>;
    static_assert(T::B_QUADS == 1, "a step's pixels of x are one load per thread");
    __shared__ SharedTile<TM, TN> buffers[2];
    // Reread where they are needed: registers are this kernel's scarcest resource.
    __shared__ Stride eight;
    __shared__ int group_again, split_again;
    int oc_count = filters * g.groups, depth = g.kh * g.kw * channels;
    int group = blockIdx.z / splits, split = blockIdx.z % splits;
    if (threadIdx.x == 0) {
        eight = stride_of(TILE_K, g);
        group_again = group;
        split_again = split;
    }
    int pixels = g.n * g.oh * g.ow;
    int share = ceil_div(ceil_div(pixels, TILE_K), splits) * TILE_K;  // pixels per split
    int begin = split * share, end = min(begin + share, pixels);

    int k_tiles = gridDim.x - (dbias ? TM / BIAS_FILTERS : 0);
    if (blockIdx.x >= k_tiles) {
        int filter = blockIdx.y * TM + (blockIdx.x - k_tiles) * BIAS_FILTERS;
        if (filter >= filters) return;
        int at = group * filters + filter, tile = at / BIAS_FILTERS + group;  // no other block's
        if (splits > 1) {
            int tiles = k_tiles * gridDim.y * g.groups;
            workspace += (int64)tiles * splits * (TM * TN) + (int64)tile * splits * BIAS_FILTERS;
            arrived += (tiles + tile) * families(splits);
        }
        sum_bias<T::THREADS, true>(dy + (int64)begin * oc_count + at, oc_count, end - begin,
                                     filters - filter, &buffers[0].a[0][0], split, splits,
                                     workspace, arrived, dbias + at);
        return;
    }

    // dy: TM / 4 adjacent threads load TM filters of one pixel, for A_QUADS pixels.
    constexpr int A_ROWS = TILE_K / T::A_QUADS;
    int a_row = threadIdx.x / (TM / 4), a_quad = threadIdx.x % (TM / 4) * 4;
    int filters_left = quad_left<true>(blockIdx.y * TM + a_quad, filters);
    int a_pixels = end - begin - a_row;  // pixels left, from this thread's on
    const ELEMENT* gradient = dy + (int64)(begin + a_row) * oc_count + group * filters +
                            quad_start<true>(blockIdx.y * TM + a_quad, filters);

    // x: TN / 4 adjacent threads load TN of K at one pixel; past the end of K, any element.
    int b_row = threadIdx.x / (TN / 4), b_quad = threadIdx.x % (TN / 4) * 4;
    int b_pixels = end - begin - b_row;
    int at = min(blockIdx.x * TN + b_quad, depth - 4);
    Walk walk = start_walk(begin + b_row, at / channels, g);
    int channel = at % channels;
    x += group * channels;

    Quad<ELEMENT, true> next_a[T::A_QUADS];
    Quad<IMAGE, true> next_b;
    auto load_next = [&] {
#pragma unroll
        for (int q = 0; q < T::A_QUADS; ++q)
            next_a[q] = Quad<ELEMENT, true>::load(gradient + q * A_ROWS * oc_count,
                                                  a_pixels > q * A_ROWS ? filters_left : 0);
        Stride by = eight;
        bool exists = b_pixels > 0 && on_image(walk.row, walk.column, g);
        next_b = Quad<IMAGE, true>::load(x + (int64)walk.image * by.image_size +
                                             ((walk.row * g.w + walk.column) * g.c + channel),
                                         exists ? 4 : 0);
        step(walk, by, g);
        a_pixels -= TILE_K;
        b_pixels -= TILE_K;
        gradient += TILE_K * oc_count;
    };
    auto store_next = [&](SharedTile<TM, TN>& tile) {
#pragma unroll
        for (int q = 0; q < T::A_QUADS; ++q)
            store4(&tile.a[a_row + q * A_ROWS][a_quad], next_a[q].floats());
        float4 b = next_b.floats();
        store4(&tile.b[b_row][b_quad], make_float4(operand(b.x), operand(b.y), operand(b.z),
                                                   operand(b.w)));
    };

    float sum[8][8] = {};
    __syncthreads();  // `eight` is set
    int steps = ceil_div(max(end - begin, 0), TILE_K);
    if (steps > 0) multiply_steps<TM, TN>(steps, buffers, load_next, store_next, sum);

    if (splits > 1) {
        int tile = (blockIdx.y * k_tiles + blockIdx.x) * g.groups + group_again;
        workspace += (int64)tile * splits * (TM * TN);
        arrived += tile * families(splits);
        if (!sum_splits<T::THREADS>(reinterpret_cast<float(&)[64]>(sum), split_again, splits,
                                    workspace, arrived))
            return;
    }

    int column = blockIdx.x * TN + lane_column<TM, TN>();
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        int filter = blockIdx.y * TM + lane_row<TM, TN>() + row_of(i);
        if (filter >= filters) break;
        float* to = dweight + (int64)(group_again * filters + filter) * depth + column;
        store_quad(to, sum[i], depth - column, true);
        store_quad(to + 32, sum[i] + 4, depth - column - 32, true);
    }
}

extern "C" __global__ __launch_bounds__(128, 3) wide_offsets void conv2d_grad_weight_128x64(
    const IMAGE* x, const ELEMENT* dy, float* dweight, float* dbias, float* workspace,
    unsigned* arrived, Geometry g, int channels, int filters, int splits) {
    grad_weight<128, 64>(x, dy, dweight, dbias, workspace, arrived, g, channels, filters, splits);
}
