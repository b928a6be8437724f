// Matrix products on tensor cores: dense layers, their gradients, and matmul.
//
//     Y (M x N)  =  A (M x K)  *  B (K x N)
//
//   FORM   a is stored as     b as       for a dense layer, weight (OUT, IN)
//   NT     (M, K)             (N, K)     y = x * weight^T + bias, ReLU
//   NN     (M, K)             (K, N)     dx = dy * weight; with `mask`, dx *= scale * (mask != 0)
//   TN     (K, M)             (K, N)     dweight = dy^T * x, and dbias: the sums of dy's columns
//
//   block    TILE_M x TILE_N of y, over one split of K       grid: row tiles, column tiles, splits
//            TN: one more column of blocks, if the grid has it, adds up the rows of A in column_sum
//   warp     WARP_M x WARP_N, and its fragments: tensor_tile.cuh draws them
//
//   a, b     ELEMENT: half, bfloat16 or tf32 (float32 numbers); 16-byte aligned.  Rows are
//            contiguous, and their length a multiple of 16 bytes
//   bias     (N) BIAS, or null
//   mask     (M, N) RESULT, or null
//   y        (M, N) RESULT, written (=)
//   column_sum   (M), written (=) if the grid has blocks for it
//   part     null with one split; else, for each split, `tiles` tiles and then one row per split
//            of the column sums
//   arrived  null with one split; else zeros, one for each tile and row tile
//
// Sums are float32.  The column sum adds all bits of its numbers, also if ELEMENT is tf32.  splits.cuh
// explains `part` and `arrived`.
// 128 x 128: at most 255 registers a thread, 2 blocks of 4 warps on a multiprocessor.

#include "common.cuh"
#include "ptx.cuh"
#include "chunks.cuh"
#include "line_sums.cuh"
#include "splits.cuh"
#include "tensor_tile.cuh"

#ifndef ELEMENT
#define ELEMENT half
#endif
#ifndef RESULT
#define RESULT float
#endif
#ifndef FORM
#define FORM NT
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
#define BLOCKS 2
#endif
#ifndef BIAS
#define BIAS float
#endif
#ifndef STAGES
#define STAGES 4
#endif

enum Form { NT, NN, TN };

using Tile = TensorTile<ELEMENT, TILE_M, TILE_N, WARP_M, WARP_N, STAGES,
                        FORM == TN ? MN_MAJOR : K_MAJOR, FORM == NT ? K_MAJOR : MN_MAJOR>;

// The blocks of one tile's splits: which part of K this one has, and what it shares with the others.
struct Split {
    int index, count;
    int begin, end;  // of K
};

__device__ inline Split split_of_k(int k, int splits) {
    int share = ceil_div(ceil_div(k, Tile::K), splits) * Tile::K, begin = blockIdx.z * share;
    return {(int)blockIdx.z, splits, begin, min(begin + share, k)};
}

// column_sum[i] = the sum over k of A's row i, for this block's rows: a bias' gradient.
__device__ inline void sum_rows_of_a(float* shared, const ELEMENT* a, float* column_sum,
                                     float* part, unsigned* arrived, int m, Split split) {
    int first = blockIdx.x * TILE_M;
    LineSum sum = sum_lines<TILE_M, Tile::THREADS>(shared, a + (int64)split.begin * m + first, m,
                                                   split.end - split.begin, m - first);
    int padded = gridDim.x * TILE_M;
    if (split.count > 1) {
        if (sum.at >= 0) part[(int64)split.index * padded + first + sum.at] = sum.value;
        if (!last_to_arrive(arrived, split.count)) return;
        sum.value = 0.0f;
        if (sum.at >= 0)
            for (int s = 0; s < split.count; ++s)
                sum.value += part[(int64)s * padded + first + sum.at];
    }
    if (sum.at >= 0 && first + sum.at < m) column_sum[first + sum.at] = sum.value;
}

extern "C" __global__ __launch_bounds__(Tile::THREADS, BLOCKS) wide_offsets void gemm_tensor(
    const ELEMENT* a, const ELEMENT* b, const BIAS* bias, const RESULT* mask, RESULT* y,
    float* column_sum, float* part, unsigned* arrived, int m, int n, int k, int splits, int relu,
    float scale) {
    extern __shared__ uint4 shared_memory[];
    char* shared = reinterpret_cast<char*>(shared_memory);
    int row = blockIdx.x * TILE_M, column = blockIdx.y * TILE_N;
    int columns = ceil_div(n, TILE_N), tiles = gridDim.x * columns;
    Split split = split_of_k(k, splits);
    if (FORM == TN && blockIdx.y == columns) {
        sum_rows_of_a(reinterpret_cast<float*>(shared), a, column_sum,
                      part + (int64)splits * tiles * (TILE_M * TILE_N), arrived + tiles + blockIdx.x,
                      m, split);
        return;
    }

    // A pointer for the block and 32-bit offsets for the thread take half the registers of pointers.
    // Rows and columns past the end are loaded from the last ones, and not stored.
    const ELEMENT* block_a = FORM == TN ? a + (int64)split.begin * m + row
                                        : a + (int64)row * k + split.begin;
    const ELEMENT* block_b = FORM == NT ? b + (int64)column * k + split.begin
                                        : b + (int64)split.begin * n + column;
    uint32 from_a[Tile::A_COPIES], from_b[Tile::B_COPIES];
#pragma unroll
    for (int q = 0; q < Tile::A_COPIES; ++q)
        from_a[q] = FORM == TN
                        ? Tile::a_line(q) * m + min(Tile::a_start(q), m - Tile::CHUNK - row)
                        : min(Tile::a_line(q), m - 1 - row) * k + Tile::a_start(q);
#pragma unroll
    for (int q = 0; q < Tile::B_COPIES; ++q)
        from_b[q] = FORM == NT
                        ? min(Tile::b_line(q), n - 1 - column) * k + Tile::b_start(q)
                        : Tile::b_line(q) * n + min(Tile::b_start(q), n - Tile::CHUNK - column);
    // Not a constant for NT (m is not 0): the compiler would join the two pointers, and spill.
    int64 a_step = FORM == TN ? (int64)Tile::K * m : Tile::K * min(m, 1);
    int64 b_step = FORM == NT ? Tile::K : (int64)Tile::K * n;
    int depth = split.end - split.begin;
    int left_a = depth - Tile::a_k(), left_b = depth - Tile::b_k();  // of K, from this thread's on
    auto load = [&](Tile::Copies& copies) {
#pragma unroll
        for (int q = 0; q < Tile::A_COPIES; ++q)
            copies.a(q, block_a + from_a[q], left_a > Tile::a_k_step(q));
#pragma unroll
        for (int q = 0; q < Tile::B_COPIES; ++q)
            copies.b(q, block_b + from_b[q], left_b > Tile::b_k_step(q));
        block_a += a_step;
        block_b += b_step;
        left_a -= Tile::K;
        left_b -= Tile::K;
    };
    Tile::Sums sum = {};
    Tile::multiply(shared, ceil_div(max(depth, 0), Tile::K), load, sum);
    if (!Tile::add_splits(part, arrived, blockIdx.z, gridDim.z, blockIdx.y * gridDim.x + blockIdx.x,
                          tiles, sum))
        return;

    constexpr int N = CHUNK_OF<RESULT>;
    bool vector = n % N == 0;
    Tile::for_each_chunk<N>(shared, sum, [&](int r, int c, float (&v)[N]) {
        int at_row = row + r, at_column = column + c, count = n - at_column;
        if (at_row >= m || count <= 0) return;
        int64 at = (int64)at_row * n + at_column;
        if (bias) {
#pragma unroll
            for (int i = 0; i < N; ++i)
                if (i < count) v[i] += to_float(bias[at_column + i]);
        }
        if (relu) {
#pragma unroll
            for (int i = 0; i < N; ++i) v[i] = v[i] < 0.0f ? 0.0f : v[i];  // NaN passes through
        }
        if (mask) {
            float x[N];
            load_chunk(x, mask + at, count, vector);
#pragma unroll
            for (int i = 0; i < N; ++i) v[i] = x[i] != 0.0f ? v[i] * scale : 0.0f;
        }
        store_chunk(y + at, v, count, vector);
    });
}
