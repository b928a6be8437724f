// The heart of every tiled product: a block of threads adds A (TM x 8) times B (8 x TN) to its
// TM x TN sums, which live in registers.
//
//   block  TM x TN sums, TM * TN / 64 threads       128 x 128: 256 threads = 4 x 2 warps
//   warp   32 x 64 sums, 4 x 8 lanes
//   lane   8 x 8 sums: rows 4 * i .. + 3 and 16 further down, columns 4 * j .. + 3 and 32 further
//
//              columns 0        32       64
//      rows 0  |  j=0 .. j=7  |  again  |        a lane owns four 4 x 4 patches, so that each of
//           16 |  again       |  again  |        its loads from shared memory is 16 bytes and the
//           32                                   8 lanes side by side read 128 bytes in a row
//
// Eight by eight because each loaded number is then used eight times: 64 multiply-adds for four
// 16-byte loads.  64 sums, 16 factors and the addresses fit the 128 registers at which two
// blocks of 256 threads share one multiprocessor.

#ifndef GPUCNN_GEMM_TILE_CUH
#define GPUCNN_GEMM_TILE_CUH

#include "common.cuh"

constexpr int TILE_K = 8;  // 8 floats are a 32-byte sector, the least that memory hands out

// Four floats of padding per row: k and k + 4 then lie 16 banks apart, so that the transposed
// store below writes 32 different banks; and rows stay multiples of 16 bytes.
constexpr int PAD = 4;

template <int TM, int TN>
struct Tile {
    static constexpr int THREADS = TM * TN / 64;
    static constexpr int WARPS_N = TN / 64;
    static constexpr int A_QUADS = TM * TILE_K / 4 / THREADS;  // 16-byte loads of a thread per step
    static constexpr int B_QUADS = TN * TILE_K / 4 / THREADS;
};

template <int TM, int TN>
struct SharedTile {
    alignas(16) float a[TILE_K][TM + PAD];
    alignas(16) float b[TILE_K][TN + PAD];
};

// The first row and column of this lane's sums inside the block's tile.
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

// Row of sum i, and column of sum j, counted from lane_row and lane_column.
__device__ constexpr int row_of(int i) { return i < 4 ? i : 16 + i - 4; }
__device__ constexpr int column_of(int j) { return j < 4 ? j : 32 + j - 4; }

__device__ inline void unpack(float4 v, float* to) {
    to[0] = v.x;
    to[1] = v.y;
    to[2] = v.z;
    to[3] = v.w;
}

// sum += A * B, one lane's share.
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

// The main loop.  load_next() fetches a step's numbers into registers, store_next(buffer) puts
// them into that shared buffer; the step before is multiplied in between, so that the trip to
// global memory costs no time.  The last load_next() is asked for a step too many and must
// touch no memory; were it behind an `if`, the compiler would move the loads down to the stores.
template <int TM, int TN, class Load, class Store>
__device__ inline void multiply_steps(int steps, SharedTile<TM, TN> (&tiles)[2], Load load_next,
                                      Store store_next, float (&sum)[8][8]) {
    const float* a = &tiles[0].a[0][lane_row<TM, TN>()];
    const float* b = &tiles[0].b[0][lane_column<TM, TN>()];
    // `buffer` counts floats from tiles[0] to the one that is read, not tiles: a number of its own
    // and its product with the size would both be kept in registers.
    int buffer = 0, size = sizeof(SharedTile<TM, TN>) / sizeof(float);
    load_next();
    store_next(tiles[0]);
    __syncthreads();
    for (; steps > 0; --steps) {
        load_next();
        multiply<TM, TN>(a + buffer, b + buffer, sum);
        buffer = size - buffer;
        store_next(tiles[buffer != 0]);
        __syncthreads();  // the other buffer is full, and no thread reads this one any more
    }
}

// Puts four neighbours along k under each other, at [k .. k + 3][row].
template <int ROW>
__device__ inline void store_transposed(float (&tile)[TILE_K][ROW], int k, int row, float4 v) {
    tile[k][row] = v.x;
    tile[k + 1][row] = v.y;
    tile[k + 2][row] = v.z;
    tile[k + 3][row] = v.w;
}

// The `left` numbers from p on, and zeros after them; left <= 0 touches no memory.
// VECTOR: left is a multiple of 4 and p of 16 bytes.
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

// Where to read four neighbours of a row of `count` numbers, of which those from `at` on are
// wanted.  A whole quad past the end is moved back onto the row: its products are never stored,
// and a load without a condition is one instruction and one register less.
template <bool VECTOR>
__device__ inline int quad_start(int at, int count) {
    return VECTOR ? min(at, count - 4) : at;
}

template <bool VECTOR>
__device__ inline int quad_left(int at, int count) {
    return VECTOR ? 4 : count - at;
}

// Writes the first `left` of four numbers; `vector` says that p is a multiple of 16 bytes.
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
