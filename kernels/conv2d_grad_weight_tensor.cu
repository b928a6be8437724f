// dweight and dbias of a convolution on tensor cores.  Read conv2d_grad_weight.cu, the same on CUDA
// cores, and tensor_tile.cuh first.
//
//     DWEIGHT (OC x K)  =  DY^T (OC x M)  *  X (M x K)     M = N * OH * OW pixels, K = KH * KW * C
//
//   block    TILE_M filters x TILE_N of K, over one split of the pixels, in one group
//            grid: K tiles, filter tiles, groups * splits
//            With a bias, TILE_M / 32 columns of blocks after the last K tile sum dy (bias_sum.cuh).
//   k-tile   32 pixels (tf32: 16).  In shared memory a line is one pixel of dy or x (MN_MAJOR)
//   thread   copies chunks of 16 bytes: neighbours in OC of dy, or channels of one tap of x.  All
//            its chunks come from LINES pixels and, of x, TAPS taps
//
//   x        (N, H, W, C), ELEMENT              channels = C / groups, filters = OC / groups
//   dy       (N, OH, OW, OC), ELEMENT
//   dweight  (OC, KH, KW, channels)             written (=)
//   dbias    (OC), or null                      written (=)
//   workspace, arrived                          of split_sum.cuh, for the tiles of dweight, then for
//                                               those of dbias; null with one split
//
// ELEMENT: half, bfloat16 or tf32 (float numbers, of which the tensor cores use the upper 19 bits).
// Channels and filters are multiples of 16 bytes, and so are the addresses of x and dy.
//
// A chunk's address is that of its pixel plus the offset of its tap.  Only pixels advance from k-tile
// to k-tile, so this takes ten instructions a line, whatever the number of taps.  The caller computes
// the constants (Walk).

#include "bias_sum.cuh"
#include "common.cuh"
#include "split_sum.cuh"
#include "tensor_tile.cuh"

#ifndef ELEMENT
#define ELEMENT half
#endif
#ifndef TILE_M
#define TILE_M 128
#endif
#ifndef TILE_N
#define TILE_N 128
#endif
#ifndef WARP_M
#define WARP_M 64
#endif
#ifndef WARP_N
#define WARP_N 64
#endif
#ifndef BLOCKS
#define BLOCKS 1
#endif
#ifndef STAGES
#define STAGES 4
#endif

using Tile = TensorTile<ELEMENT, TILE_M, TILE_N, WARP_M, WARP_N, STAGES, MN_MAJOR, MN_MAJOR>;

constexpr int PASS = Tile::THREADS / 8;  // lines that all threads copy at once
constexpr int LINES = PASS < Tile::K ? Tile::K / PASS : 1;
constexpr int FILTERS = Tile::A_COPIES / LINES, TAPS = Tile::B_COPIES / LINES;
static_assert(FILTERS * LINES == Tile::A_COPIES && TAPS * LINES == Tile::B_COPIES, "whole lines");

// The bias' gradient sums all bits of tf32 numbers.
__device__ inline const float* numbers(const tf32* p) { return &p->value; }

template <class E>
__device__ inline const E* numbers(const E* p) {
    return p;
}

// gpucnn.ops.conv2d.grad_weight.Walk: how a pixel advances by Tile::K output pixels.  A place is a row
// of x times 2^16 plus a column; chunks are 16 bytes.
struct Walk {
    int place, chunks;                             // each step
    int column_end, column_place, column_chunks;   // past the last column: to the next row
    int row_end, row_chunks;                       // past the last row: to the next image
    int last_place;                                // of an image
    int dy_chunks, dy_pass;                        // of dy: each step, and from line to line
};

// What tap (0, 0) of an output pixel reads if there is no padding.
struct Pixel {
    uint32 place;
    int chunk;
};

__device__ inline Pixel pixel_at(int p, const Geometry& g) {
    int row = p / g.ow % g.oh * g.stride_h, column = p % g.ow * g.stride_w;
    int64 at = ((int64)(p / g.ow / g.oh) * g.h + row) * g.w + column;
    return Pixel{(uint32)row << 16 | column, (int)(at * (g.c / Tile::CHUNK))};
}

__device__ inline void advance(Pixel& pixel, const Walk& walk) {
    pixel.place += walk.place;
    pixel.chunk += walk.chunks;
    if ((pixel.place & 0xffff) >= walk.column_end) {
        pixel.place += walk.column_place;
        pixel.chunk += walk.column_chunks;
    }
    if (pixel.place >= walk.row_end) {
        pixel.place -= walk.row_end;
        pixel.chunk += walk.row_chunks;
    }
}

// Whether both halves of a place are on the image: neither they nor their distances from the last
// row and column are negative.
__device__ inline bool on_image(uint32 place, const Walk& walk) {
    return ((place | (walk.last_place - place)) & 0x80008000u) == 0;
}

__device__ inline const ELEMENT* chunk_of(const ELEMENT* array, int chunk) {
    return reinterpret_cast<const ELEMENT*>(reinterpret_cast<const uint4*>(array) + chunk);
}

extern "C" __global__ __launch_bounds__(Tile::THREADS, BLOCKS) wide_offsets
void conv2d_grad_weight_tensor(const ELEMENT* x, const ELEMENT* dy, float* dweight, float* dbias,
                               float* workspace, unsigned* arrived, Geometry g, Walk walk,
                               int channels, int filters, int splits) {
    extern __shared__ uint4 shared[];
    __shared__ int group_again, split_again;  // for the end: registers are scarce
    int oc_count = filters * g.groups, depth = g.kh * g.kw * channels;
    int group = blockIdx.z / splits, split = blockIdx.z % splits;
    int pixels = g.n * g.oh * g.ow;
    int share = ceil_div(ceil_div(pixels, Tile::K), splits) * Tile::K;  // pixels per split
    int begin = split * share, left = min(share, pixels - begin);
    int steps = ceil_div(max(left, 0), Tile::K);

    int k_tiles = gridDim.x - (dbias ? TILE_M / BIAS_FILTERS : 0);
    if (blockIdx.x >= k_tiles) {
        int filter = blockIdx.y * TILE_M + (blockIdx.x - k_tiles) * BIAS_FILTERS;
        if (filter >= filters) return;
        int at = group * filters + filter, tile = at / BIAS_FILTERS + group;  // no other block's
        if (splits > 1) {
            int tiles = k_tiles * gridDim.y * g.groups;
            workspace += (int64)tiles * splits * (TILE_M * TILE_N) +
                         (int64)tile * splits * BIAS_FILTERS;
            arrived += (tiles + tile) * families(splits);
        }
        sum_bias<Tile::THREADS, true>(numbers(dy + (int64)begin * oc_count + at), oc_count, left,
                                      filters - filter, reinterpret_cast<float*>(shared), split,
                                      splits, workspace, arrived, dbias + at);
        return;
    }

    if (threadIdx.x == 0) {
        group_again = group;
        split_again = split;
    }
    // Filters and channels past the end are replaced by the last ones: their sums are not stored.
    // Places are counted in chunks: 31 bits reach 32 GiB.
    int first = begin + Tile::a_line(0), filter_chunk[FILTERS], tap_chunk[TAPS];
    uint32 tap_place[TAPS];
    Pixel pixel[LINES];
    left -= Tile::a_line(0);
#pragma unroll
    for (int l = 0; l < LINES; ++l) pixel[l] = pixel_at(first + l * PASS, g);
    int dy_chunk = (int64)first * (oc_count / Tile::CHUNK);
#pragma unroll
    for (int f = 0; f < FILTERS; ++f)
        filter_chunk[f] = (group * filters + min(blockIdx.y * TILE_M + Tile::a_start(f * LINES),
                                                 filters - Tile::CHUNK)) / Tile::CHUNK;
#pragma unroll
    for (int t = 0; t < TAPS; ++t) {
        int at = min(blockIdx.x * TILE_N + Tile::b_start(t * LINES), depth - Tile::CHUNK);
        int tap = at / channels;
        int row = tap / g.kw * g.dilation_h - g.top, column = tap % g.kw * g.dilation_w - g.left;
        tap_place[t] = row * 65536 + column;
        tap_chunk[t] = (row * g.w + column) * (g.c / Tile::CHUNK) +
                       (group * channels + at % channels) / Tile::CHUNK;
    }

    auto load = [&](Tile::Copies& copies) {
#pragma unroll
        for (int l = 0; l < LINES; ++l) {
            bool exists = left > l * PASS;
#pragma unroll
            for (int f = 0; f < FILTERS; ++f)
                copies.a(f * LINES + l, chunk_of(dy, filter_chunk[f] + dy_chunk + l * walk.dy_pass),
                         exists);
#pragma unroll
            for (int t = 0; t < TAPS; ++t)
                copies.b(t * LINES + l, chunk_of(x, tap_chunk[t] + pixel[l].chunk),
                         exists && on_image(pixel[l].place + tap_place[t], walk));
        }
    };
    auto step = [&] {
#pragma unroll
        for (int l = 0; l < LINES; ++l) advance(pixel[l], walk);
        dy_chunk += walk.dy_chunks;
        left -= Tile::K;
    };
    Tile::Sums sum = {};
    Tile::multiply((char*)shared, steps, load, step, sum);

    if (splits > 1) {
        constexpr int COUNT = Tile::BLOCKS_M * Tile::BLOCKS_N * 4;
        int tile = (blockIdx.y * k_tiles + blockIdx.x) * g.groups + group_again;
        workspace += (int64)tile * splits * (TILE_M * TILE_N);
        arrived += tile * families(splits);
        if (!sum_splits<Tile::THREADS>(reinterpret_cast<float(&)[COUNT]>(sum), split_again, splits,
                                       workspace, arrived))
            return;
    }
    float* to = dweight + (int64)group_again * filters * depth;
    int first_filter = blockIdx.y * TILE_M, first_column = blockIdx.x * TILE_N;
    Tile::for_each_chunk<4>((char*)shared, sum, [&](int row, int column, const float (&v)[4]) {
        int filter = first_filter + row, k = first_column + column;
        if (filter < filters && k < depth)
            store4(to + (int64)filter * depth + k, make_float4(v[0], v[1], v[2], v[3]));
    });
}
