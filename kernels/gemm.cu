// Matrix products on CUDA cores, in float32: for any size and alignment.  gemm_tensor.cu computes
// the same products on tensor cores, and explains the forms.
//
//     Y (M x N)  =  A (M x K)  *  B (K x N)
//
//   FORM   a is stored as     b as        for a dense layer, weight (OUT, IN)
//   NT     (M, K)             (N, K)      y = x * weight^T + bias, ReLU
//   NN     (M, K)             (K, N)      dx = dy * weight; with `mask`, dx *= scale * (mask != 0)
//   TN     (K, M)             (K, N)      dweight = dy^T * x, and dbias: the sums of dy's columns
//
//   block    128 x 64 of y, over one split of K       grid: row tiles, column tiles, splits
//            TN: with one more column of blocks, these add up the rows of A in column_sum
//   thread   8 x 8 sums (gemm_tile.cuh)
//   step     8 of K, double-buffered
//
//   a, b     ELEMENT: float, half or bfloat16, converted to float as they are loaded
//   bias     (N) BIAS, or null
//   mask     (M, N) RESULT, or null
//   y        (M, N) RESULT, written (=)
//   column_sum   (M), written (=) if the grid has blocks for it
//   part, arrived   as in gemm_tensor.cu
//
// ALIGNED: rows of a, b and y are multiples of 4 numbers, and aligned: 4 numbers a load.
// Each split has a multiple of 8 of K.
//
// Blocks of 128 threads, at most 168 registers each: 12 warps per multiprocessor.

#include "common.cuh"
#include "gemm_tile.cuh"
#include "ptx.cuh"
#include "splits.cuh"

#ifndef ELEMENT
#define ELEMENT float
#endif
#ifndef RESULT
#define RESULT float
#endif
#ifndef BIAS
#define BIAS float
#endif
#ifndef FORM
#define FORM NT
#endif
#ifndef ALIGNED
#define ALIGNED 1
#endif

enum Form { NT, NN, TN };

constexpr int ROWS = 128, COLUMNS = 64;
using T = Tile<ROWS, COLUMNS>;

__device__ inline float4 load_four(const float* p, int left) { return load_quad<ALIGNED>(p, left); }

template <class E>
__device__ inline float4 load_four(const E* p, int left) {
    float v[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (ALIGNED) {
        if (left > 0) {
            uint2 bits = *reinterpret_cast<const uint2*>(p);
            const unsigned short parts[4] = {
                (unsigned short)bits.x, (unsigned short)(bits.x >> 16), (unsigned short)bits.y,
                (unsigned short)(bits.y >> 16)};
#pragma unroll
            for (int i = 0; i < 4; ++i) v[i] = to_float(E{parts[i]});
        }
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (i < left) v[i] = to_float(p[i]);
    }
    return make_float4(v[0], v[1], v[2], v[3]);
}

// One operand's part of a step: QUADS times four numbers, on their way to ROW lines of a tile.
//   along K   two adjacent threads load the 8 numbers of one line
//   else      ROW / 4 adjacent threads load 4 lines each of one k
template <bool ALONG_K, int ROW, int QUADS>
struct Operand {
    const ELEMENT* from;
    int64 pass, step;  // numbers from one quad to the next, and from one step to the next
    int k, line;       // of the first quad
    int left;          // of the lines (not along K): how many exist from this quad's on
    float4 next[QUADS];

    // size: lines that exist; first: the block's first line; length: numbers in a row of the matrix.
    __device__ Operand(const ELEMENT* x, int first, int size, int length, int begin) {
        if (ALONG_K) {
            k = threadIdx.x % 2 * 4;
            line = threadIdx.x / 2;
            from = x + (int64)first * length + begin + k;
            pass = length;
            step = TILE_K;
            left = size - first;
        } else {
            k = threadIdx.x / (ROW / 4);
            line = threadIdx.x % (ROW / 4) * 4;
            from = x + (int64)(begin + k) * length + first + line;
            pass = (int64)T::THREADS / (ROW / 4) * length;
            step = (int64)TILE_K * length;
            left = size - first - line;
        }
    }

    __device__ void load(int depth) {  // depth: numbers of K left, from this step on
#pragma unroll
        for (int q = 0; q < QUADS; ++q) {
            if (ALONG_K) {
                int at = min(line + q * (T::THREADS / 2), left - 1);  // past the end: any line
                next[q] = load_four(from + at * pass, depth - k);
            } else {
                bool exists = k + q * (T::THREADS / (ROW / 4)) < depth;
                next[q] = load_four(from + q * pass, exists ? left : 0);
            }
        }
        from += step;
    }

    __device__ void store(float (&tile)[TILE_K][ROW + PAD]) const {
#pragma unroll
        for (int q = 0; q < QUADS; ++q)
            if (ALONG_K)
                store_transposed(tile, k, line + q * (T::THREADS / 2), next[q]);
            else
                store4(&tile[k + q * (T::THREADS / (ROW / 4))][line], next[q]);
    }
};

// The sums of `splits` blocks, added by the last to arrive: as TensorTile::add_splits.
__device__ inline bool add_splits(float* part, unsigned* arrived, int splits, int tile, int tiles,
                                  float (&sum)[8][8]) {
    if (splits == 1) return true;
    float4* mine = reinterpret_cast<float4*>(part + (int64)tile * (ROWS * COLUMNS)) + threadIdx.x;
    int64 stride = (int64)tiles * (ROWS * COLUMNS / 4);
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        const float* v = &sum[i / 2][i % 2 * 4];
        mine[blockIdx.z * stride + i * T::THREADS] = make_float4(v[0], v[1], v[2], v[3]);
    }
    if (!last_to_arrive(arrived + tile, splits)) return false;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        float4 total = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        for (int s = 0; s < splits; ++s) {
            float4 v = mine[s * stride + i * T::THREADS];
            total.x += v.x;
            total.y += v.y;
            total.z += v.z;
            total.w += v.w;
        }
        unpack(total, &sum[i / 2][i % 2 * 4]);
    }
    return true;
}

// column_sum[i] = the sum over k of A's row i; thread -> one row.
__device__ inline void sum_rows_of_a(const ELEMENT* a, float* column_sum, float* part,
                                     unsigned* arrived, int m, int begin, int end, int splits) {
    int row = blockIdx.x * ROWS + threadIdx.x;
    float sum = 0.0f;
    if (row < m) {
#pragma unroll 4
        for (int k = begin; k < end; ++k) sum += to_float(a[(int64)k * m + row]);
    }
    if (splits > 1) {
        if (row < m) part[(int64)blockIdx.z * m + row] = sum;
        if (!last_to_arrive(arrived, splits)) return;
        sum = 0.0f;
        if (row < m)
            for (int s = 0; s < splits; ++s) sum += part[(int64)s * m + row];
    }
    if (row < m) column_sum[row] = sum;
}

// Four results of a row: at most `left` of them exist.
__device__ inline void write_four(const float* sum, const BIAS* bias, const RESULT* mask, RESULT* y,
                                  int left, int relu, float scale) {
    float v[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        if (j >= left) break;
        v[j] = sum[j] + (bias ? to_float(bias[j]) : 0.0f);
        if (relu && v[j] < 0.0f) v[j] = 0.0f;  // NaN passes through
        if (mask) v[j] = to_float(mask[j]) != 0.0f ? v[j] * scale : 0.0f;
    }
    if constexpr (ALIGNED && sizeof(RESULT) == 4) {
        store_quad(reinterpret_cast<float*>(y), v, left, true);
    } else {
#pragma unroll
        for (int j = 0; j < 4; ++j)
            if (j < left) y[j] = from_float<RESULT>(v[j]);
    }
}

extern "C" __global__ __launch_bounds__(128, 3) wide_offsets void gemm(
    const ELEMENT* a, const ELEMENT* b, const BIAS* bias, const RESULT* mask, RESULT* y,
    float* column_sum, float* part, unsigned* arrived, int m, int n, int k, int splits, int relu,
    float scale) {
    __shared__ SharedTile<ROWS, COLUMNS> tiles[2];
    int row = blockIdx.x * ROWS, column = blockIdx.y * COLUMNS;
    int columns = ceil_div(n, COLUMNS), tile_count = gridDim.x * columns;
    int share = ceil_div(ceil_div(k, TILE_K), splits) * TILE_K;
    int begin = min((int)blockIdx.z * share, k), end = min(begin + share, k);
    if (FORM == TN && blockIdx.y == columns) {
        sum_rows_of_a(a, column_sum, part + (int64)splits * tile_count * (ROWS * COLUMNS),
                      arrived + tile_count + blockIdx.x, m, begin, end, splits);
        return;
    }
    Operand<FORM != TN, ROWS, T::A_QUADS> from_a(a, row, m, FORM == TN ? m : k, begin);
    Operand<FORM == NT, COLUMNS, T::B_QUADS> from_b(b, column, n, FORM == NT ? k : n, begin);
    int depth = end - begin;
    auto load_next = [&] {
        from_a.load(depth);
        from_b.load(depth);
        depth -= TILE_K;
    };
    auto store_next = [&](SharedTile<ROWS, COLUMNS>& tile) {
        from_a.store(tile.a);
        from_b.store(tile.b);
    };
    float sum[8][8] = {};
    multiply_steps<ROWS, COLUMNS>(ceil_div(depth, TILE_K), tiles, load_next, store_next, sum);
    if (!add_splits(part, arrived, splits, blockIdx.y * gridDim.x + blockIdx.x, tile_count, sum))
        return;

    row += lane_row<ROWS, COLUMNS>();
    column += lane_column<ROWS, COLUMNS>();
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        int at_row = row + row_of(i);
        if (at_row >= m) break;
#pragma unroll
        for (int j = 0; j < 8; j += 4) {
            int at_column = column + column_of(j);
            int64 at = (int64)at_row * n + at_column;
            if (at_column < n)
                write_four(sum[i] + j, bias ? bias + at_column : nullptr,
                           mask ? mask + at : nullptr, y + at, n - at_column, relu, scale);
        }
    }
}
