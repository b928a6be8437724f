// The core of every tiled product: a block adds A (TM x 8) * B (8 x TN) to its TM x TN sums, which
// live in registers.
//
//   block  TM x TN sums, TM * TN / 64 threads       128 x 128: 256 threads = 4 x 2 warps
//   warp   32 x 64 sums, 4 x 8 lanes
//   lane   8 x 8 sums: 4 adjacent rows and the 4 rows 16 below them, 4 adjacent columns and the 4
//          columns 32 to their right
//
//              columns 0        32       64
//      rows 0  |  j=0 .. j=7  |  again  |        a lane owns four 4 x 4 patches, so that each of
//           16 |  again       |  again  |        its loads from shared memory is 16 bytes and 8
//           32                                   adjacent lanes read 128 contiguous bytes
//
// 8 x 8, because each loaded value is then used eight times: 64 multiply-adds per four 16-byte
// loads.  64 sums, 16 factors and the addresses fit in 128 registers, the limit at which two blocks
// of 256 threads share a multiprocessor.

#ifndef GPUCNN_GEMM_TILE_CUH
#define GPUCNN_GEMM_TILE_CUH

#include "common.cuh"

constexpr int TILE_K = 8;  // 8 floats are a 32-byte sector, the unit of a memory transfer

// Floats of padding per row.  With 4, rows k and k + 4 lie 16 banks apart, so that the transposed
// store below hits 32 different banks, and rows stay 16-byte aligned.
constexpr int PAD = 4;

template <int TM, int TN>
struct Tile {
    static constexpr int THREADS = TM * TN / 64;
    static constexpr int WARPS_N = TN / 64;
    static constexpr int A_QUADS = TM * TILE_K / 4 / THREADS;  // 16-byte loads per thread and step
    static constexpr int B_QUADS = TN * TILE_K / 4 / THREADS;
};

template <int TM, int TN>
struct SharedTile {
    alignas(16) float a[TILE_K][TM + PAD];
    alignas(16) float b[TILE_K][TN + PAD];
};

// The first row and column of this lane's sums in the block's tile.
template <int TM, int TN>
__device__ inline int lane_row() {
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    return warp / Tile<TM, TN>::WARPS_N * 32 + lane / 8 * 4;
}

template <int TM, int TN>
__device__ inline int lane_column() {
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    return warp % Tile<TM, TN>::WARPS_N * 64 + lane % 8 * 4;
}

// The row of sum i relative to lane_row, and the column of sum j relative to lane_column.
__device__ constexpr int row_of(int i) { return i < 4 ? i : 16 + i - 4; }
__device__ constexpr int column_of(int j) { return j < 4 ? j : 32 + j - 4; }

__device__ inline void unpack(float4 v, float* to) {
    to[0] = v.x;
    to[1] = v.y;
    to[2] = v.z;
    to[3] = v.w;
}

// sum += A * B, for this lane's sums.
template <int TM, int TN>
__device__ inline void multiply(const float* a, const float* b, float (&sum)[8][8]) {
#pragma unroll
    for (int k = 0; k < TILE_K; ++k) {
        float left[8], right[8];
        unpack(load4(a + k * (TM + PAD)), left);
        unpack(load4(a + k * (TM + PAD) + 16), left + 4);
        unpack(load4(b + k * (TN + PAD)), right);
        unpack(load4(b + k * (TN + PAD) + 32), right + 4);
#pragma unroll
        for (int i = 0; i < 8; ++i)
#pragma unroll
            for (int j = 0; j < 8; ++j) sum[i][j] += left[i] * right[j];
    }
}

// The main loop, double-buffered.  load_next() loads a step into registers, store_next(buffer)
// stores it into that shared buffer; the previous step is multiplied in between, which hides the
// latency of global memory.  The last load_next() is one step past the end and must not touch
// memory.  It is not behind an `if`: the compiler would then move the loads down to the stores.
template <int TM, int TN, class Load, class Store>
__device__ inline void multiply_steps(int steps, SharedTile<TM, TN> (&tiles)[2], Load load_next,
                                      Store store_next, float (&sum)[8][8]) {
    const float* a = &tiles[0].a[0][lane_row<TM, TN>()];
    const float* b = &tiles[0].b[0][lane_column<TM, TN>()];
    // `buffer` is the offset in floats of the tile that is read.  With a tile index, the compiler
    // would keep both the index and its product with `size` in registers.
    int buffer = 0, size = sizeof(SharedTile<TM, TN>) / sizeof(float);
    load_next();
    store_next(tiles[0]);
    __syncthreads();
    for (; steps > 0; --steps) {
        load_next();
        multiply<TM, TN>(a + buffer, b + buffer, sum);
        buffer = size - buffer;
        store_next(tiles[buffer != 0]);
        __syncthreads();  // the other buffer is full, and no thread still reads this one
    }
}

// Stores four neighbours along k as a column, at [k .. k + 3][row].
template <int ROW>
__device__ inline void store_transposed(float (&tile)[TILE_K][ROW], int k, int row, float4 v) {
    tile[k][row] = v.x;
    tile[k + 1][row] = v.y;
    tile[k + 2][row] = v.z;
    tile[k + 3][row] = v.w;
}

// The first min(left, 4) floats at p, then zeros; left <= 0 touches no memory.
// VECTOR: left is a multiple of 4 and p is 16-byte aligned.
template <bool VECTOR>
__device__ inline float4 load_quad(const float* p, int left) {
    float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (VECTOR) {
        if (left > 0) v = load4(p);
    } else {
        if (left > 0) v.x = p[0];
        if (left > 1) v.y = p[1];
        if (left > 2) v.z = p[2];
        if (left > 3) v.w = p[3];
    }
    return v;
}

// Where to load a quad at `at` in a row of `count` floats, and how many of the quad to load.
// VECTOR: a quad past the end is moved back onto the row.  Its products are never stored, and an
// unconditional load saves an instruction and a register.
template <bool VECTOR>
__device__ inline int quad_start(int at, int count) {
    return VECTOR ? min(at, count - 4) : at;
}

template <bool VECTOR>
__device__ inline int quad_left(int at, int count) {
    return VECTOR ? 4 : count - at;
}

// Stores the first min(left, 4) floats of v at p; `vector`: p is 16-byte aligned.
__device__ inline void store_quad(float* p, const float* v, int left, bool vector) {
    if (vector && left >= 4) {
        store4(p, make_float4(v[0], v[1], v[2], v[3]));
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (i < left) p[i] = v[i];
}

#endif
