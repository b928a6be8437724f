// dweight and dbias where K = KH * KW * C is small, as of a network's first layer, or where channels
// or filters are not multiples of 4.  Read conv2d_grad_weight.cu first: it computes the same with
// tiles of 128 x 64, of which the first layer of alexnet_cifar10 (K = 27, 64 filters) fills a fifth.
//
//   block   32 of K x 64 filters, over one split of the pixels, in one group
//           grid: K tiles, filter tiles, groups * splits
//           With a bias, 2 columns of blocks after the last K tile sum dy (bias_sum.cuh).
//   warp    all 32 x 64 sums, over every fourth step of 8 pixels: warps meet only at the end, when
//           the block adds up its four warps
//   lane    8 x 8 sums (gemm_tile.cuh).  Of each of the 8 pixels it loads one number, at its own
//           place in K
//
//   Eight lanes find where the 8 pixels lie in x, one pixel each, and all lanes read that from shared
//   memory.  So the walk over the pixels costs a lane little, and K need not be a multiple of 4.
//
//   x        (N, H, W, C), IMAGE                channels = C / groups, filters = OC / groups
//   dy       (N, OH, OW, OC), ELEMENT           read by 4 filters if VECTOR: multiples of 4
//   dweight  (OC, KH, KW, channels)             written (=)
//   dbias    (OC), or null                      written (=)
//   workspace, arrived                          of split_sum.cuh, for the tiles of dweight, then for
//                                               those of dbias; null with one split
//
// IMAGE and ELEMENT: float, half or bfloat16.  Float images are rounded to ELEMENT, as the operands
// of a product in half precision are.
// Fewer than 2^31 - 32 * splits pixels, and fewer than 2^31 numbers in an image and in weight.
//
// 128 threads, at most 256 registers each: 8 warps per multiprocessor.  With 168, for 12 warps, some
// variants spill; loads are issued a whole step before their use, so 8 hide their latency.

#include "bias_sum.cuh"
#include "common.cuh"
#include "gemm_tile.cuh"
#include "pixel_walk.cuh"
#include "quads.cuh"
#include "split_sum.cuh"

#ifndef IMAGE
#define IMAGE float
#endif
#ifndef ELEMENT
#define ELEMENT float
#endif

constexpr int THREADS = 128, WARPS = THREADS / WARP;
constexpr int TILE_DEPTH = 32, TILE_FILTERS = 64;
constexpr int STEP = WARPS * TILE_K;  // pixels of a block's step
constexpr int SUMS = TILE_DEPTH * TILE_FILTERS;

struct Place {  // of a pixel in x, for tap (0, 0)
    int64 start;
    int row, column;
};

struct Buffer {  // of a warp
    alignas(16) float x[TILE_K][TILE_DEPTH + PAD];
    alignas(16) float dy[TILE_K][TILE_FILTERS + PAD];
    Place places[TILE_K];  // of the pixels that are loaded next
};

constexpr int BUFFERS = WARPS * 2 * sizeof(Buffer) / sizeof(float);
constexpr int FLOATS = WARPS * SUMS;  // 32 KiB: two blocks fit into the 64 KiB of sm_75
static_assert(BUFFERS + sizeof(Stride) / sizeof(float) <= FLOATS && BUFFERS % 4 == 0, "room");

// x as an operand: of the precision of ELEMENT.
__device__ inline float operand(IMAGE x) {
    float value = to_float(x);
    return sizeof(IMAGE) > sizeof(ELEMENT) ? to_float(from_float<ELEMENT>(value)) : value;
}

// Where the sum of (k, filter) lies: a warp's stores of 4 neighbours in K hit different banks.
__device__ inline int sum_at(int k, int filter) {
    return filter * TILE_DEPTH + ((k / 4 ^ filter / 4) % 8 * 4 + k % 4);
}

template <bool VECTOR>
__device__ inline void grad_weight(const IMAGE* x, const ELEMENT* dy, float* dweight, float* dbias,
                                   float* workspace, unsigned* arrived, const Geometry& g,
                                   int channels, int filters, int splits) {
    __shared__ alignas(16) float shared[FLOATS];
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int oc_count = filters * g.groups, depth = g.kh * g.kw * channels;
    int group = blockIdx.z / splits, split = blockIdx.z % splits;
    int pixels = g.n * g.oh * g.ow;
    int share = ceil_div(ceil_div(pixels, STEP), splits) * STEP;  // pixels per split
    int begin = split * share, end = min(begin + share, pixels);

    int k_tiles = gridDim.x - (dbias ? TILE_FILTERS / BIAS_FILTERS : 0);
    if (blockIdx.x >= k_tiles) {
        int filter = blockIdx.y * TILE_FILTERS + (blockIdx.x - k_tiles) * BIAS_FILTERS;
        if (filter >= filters) return;
        int at = group * filters + filter, tile = at / BIAS_FILTERS + group;  // no other block's
        if (splits > 1) {
            int tiles = k_tiles * gridDim.y * g.groups;
            workspace += (int64)tiles * splits * SUMS + (int64)tile * splits * BIAS_FILTERS;
            arrived += (tiles + tile) * families(splits);
        }
        sum_bias<THREADS, VECTOR>(dy + (int64)begin * oc_count + at, oc_count, end - begin,
                                  filters - filter, shared, split, splits, workspace, arrived,
                                  dbias + at);
        return;
    }
    Buffer* buffers = reinterpret_cast<Buffer*>(shared) + warp * 2;
    // Behind the buffers, and reread where needed: registers are scarce.
    Stride& stride = *reinterpret_cast<Stride*>(shared + BUFFERS);
    if (threadIdx.x == 0) stride = stride_of(STEP, g);

    // x: the lane's number of K; past the end of K, the last one, whose sums are not stored twice.
    int k = min(blockIdx.x * TILE_DEPTH + lane, depth - 1), tap = k / channels;
    int tap_row = tap / g.kw * g.dilation_h, tap_column = tap % g.kw * g.dilation_w;
    const IMAGE* from = x + group * channels + k % channels + (tap_row * g.w + tap_column) * g.c;

    // A lane of the first 8 works out the place of its pixel.
    int left = end - begin - warp * TILE_K;  // pixels, from the warp's next step on
    Walk walk = start_walk(begin + warp * TILE_K + lane % TILE_K, 0, g);
    auto store_place = [&](Buffer& buffer) {
        Stride by = stride;
        if (lane < TILE_K) {
            int64 start = (int64)walk.image * by.image_size + (walk.row * g.w + walk.column) * g.c;
            int row = left > lane ? walk.row : -(1 << 30);  // off the image with every tap
            buffer.places[lane] = Place{start, row, walk.column};
        }
        step(walk, by, g);
    };

    // dy: 16 adjacent lanes load 64 filters of one pixel, for 4 pixels.
    constexpr int QUADS = TILE_K * TILE_FILTERS / 4 / WARP, ROWS = TILE_K / QUADS;
    int row = lane / 16, quad = lane % 16 * 4, filter = blockIdx.y * TILE_FILTERS + quad;
    int filters_left = quad_left<VECTOR>(filter, filters);
    const ELEMENT* gradient = dy + (int64)(begin + warp * TILE_K + row) * oc_count +
                              group * filters + quad_start<VECTOR>(filter, filters);

    Quad<ELEMENT, VECTOR> next_dy[QUADS];
    IMAGE next_x[TILE_K];
    auto load_next = [&](const Buffer& buffer) {
#pragma unroll
        for (int q = 0; q < QUADS; ++q)
            next_dy[q] = Quad<ELEMENT, VECTOR>::load(gradient + q * ROWS * oc_count,
                                                     left > row + q * ROWS ? filters_left : 0);
#pragma unroll
        for (int i = 0; i < TILE_K; ++i) {
            Place at = buffer.places[i];
            bool exists = on_image(at.row + tap_row, at.column + tap_column, g);
            next_x[i] = exists ? from[at.start] : IMAGE{};
        }
        left -= STEP;
        gradient += (int64)STEP * oc_count;
    };
    auto store_next = [&](Buffer& buffer) {
#pragma unroll
        for (int q = 0; q < QUADS; ++q)
            store4(&buffer.dy[row + q * ROWS][quad], next_dy[q].floats());
#pragma unroll
        for (int i = 0; i < TILE_K; ++i) buffer.x[i][lane] = operand(next_x[i]);
    };

    float sum[8][8] = {};
    int lane_k = lane / 8 * 4, lane_filter = lane % 8 * 4, now = 0;
    __syncthreads();  // `stride` is set
    store_place(buffers[0]);
    __syncwarp();
    load_next(buffers[0]);
    store_next(buffers[0]);
    store_place(buffers[1]);
    __syncwarp();
    for (int steps = ceil_div(max(end - begin, 0), STEP); steps > 0; --steps) {
        load_next(buffers[1 - now]);
        __syncwarp();  // or the compiler would move the loads down to their uses
        multiply<TILE_DEPTH, TILE_FILTERS>(&buffers[now].x[0][lane_k],
                                           &buffers[now].dy[0][lane_filter], sum);
        store_place(buffers[now]);
        now = 1 - now;
        store_next(buffers[now]);
        __syncwarp();  // the other buffer is full, and no lane still reads this one
    }

    __syncthreads();  // no warp needs its buffers
#pragma unroll
    for (int i = 0; i < 8; i += 4)
#pragma unroll
        for (int j = 0; j < 8; ++j)
            store4(shared + warp * SUMS + sum_at(lane_k + row_of(i), lane_filter + column_of(j)),
                   make_float4(sum[i][j], sum[i + 1][j], sum[i + 2][j], sum[i + 3][j]));
    __syncthreads();
    constexpr int OWN = SUMS / THREADS;  // sums of a thread
    float total[OWN] = {};
#pragma unroll
    for (int i = 0; i < OWN; ++i)
#pragma unroll
        for (int w = 0; w < WARPS; ++w)
            total[i] += shared[w * SUMS + sum_at(lane, warp + i * WARPS)];
    if (splits > 1) {
        int tile = (blockIdx.y * k_tiles + blockIdx.x) * g.groups + group;
        workspace += (int64)tile * splits * SUMS;
        arrived += tile * families(splits);
        if (!sum_splits<THREADS>(total, split, splits, workspace, arrived)) return;
    }
    k = blockIdx.x * TILE_DEPTH + lane;
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
        int f = blockIdx.y * TILE_FILTERS + warp + i * WARPS;
        if (k < depth && f < filters)
            dweight[(int64)(group * filters + f) * depth + k] = total[i];
    }
}

extern "C" __global__ __launch_bounds__(128, 2) wide_offsets void conv2d_grad_weight_32x64_vector(
    const IMAGE* x, const ELEMENT* dy, float* dweight, float* dbias, float* workspace,
    unsigned* arrived, Geometry g, int channels, int filters, int splits) {
    grad_weight<true>(x, dy, dweight, dbias, workspace, arrived, g, channels, filters, splits);
}

extern "C" __global__ __launch_bounds__(128, 2) wide_offsets void conv2d_grad_weight_32x64_scalar(
    const IMAGE* x, const ELEMENT* dy, float* dweight, float* dbias, float* workspace,
    unsigned* arrived, Geometry g, int channels, int filters, int splits) {
    grad_weight<false>(x, dy, dweight, dbias, workspace, arrived, g, channels, filters, splits);
}
