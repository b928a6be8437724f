// The sums of a tile of tensor_tile.cuh, after the main loop: the end of a split sum, and the way from
// fragments to rows.
//
// A lane holds two neighbours of a row here and two there (tensor_tile.cuh has the picture), so the
// sums go through shared memory, 16 rows of a warp at a time, and leave it as rows:
//
//   a fragment's lanes        a warp's 16 rows in shared memory         stores of 16 bytes
//   4g + t: 2 of row g   ->   WN floats and 8 of padding each:     ->   8 or 16 lanes a row of 64,
//   and 2 of row g + 8        rows g and g + 4 share banks, and         adjacent columns
//                             lanes of one store do not

#ifndef GPUCNN_TENSOR_RESULTS_CUH
#define GPUCNN_TENSOR_RESULTS_CUH

#include "common.cuh"
#include "ptx.cuh"
#include "splits.cuh"

// PAIRED_ROWS: a fragment's rows r and r + 8 (r < 8) are rows 2r and 2r + 1 of its 16.
template <int TM, int TN, int WM, int WN, bool PAIRED_ROWS>
struct TensorResults {
    static constexpr int WARPS_M = TM / WM, WARPS_N = TN / WN;
    static constexpr int THREADS = WARPS_M * WARPS_N * WARP;
    static constexpr int BLOCKS_M = WM / 16, BLOCKS_N = WN / 8;  // fragments of a warp
    static constexpr int LINE = WN + 8;                          // floats of a row in shared memory
    static constexpr int EPILOGUE_BYTES = WARPS_M * WARPS_N * 16 * LINE * 4;

    using Sums = float[BLOCKS_M][BLOCKS_N][4];

    // Calls store(row, column, v) with N (4 or 8) neighbours of a row of the block's tile, until all
    // are stored: adjacent lanes have adjacent columns, so 16-byte stores are coalesced.  The sums
    // travel through shared memory, 16 rows of a warp at a time.
    template <int N, class Store>
    __device__ static void for_each_chunk(char* shared, const Sums& sum, Store store) {
        static_assert(N == 4 || N == 8, "16 bytes of float or of 16-bit numbers");
        int thread = thread_again();
        int warp = thread / WARP, lane = thread % WARP, g = lane / 4, t = lane % 4;
        float* buffer = reinterpret_cast<float*>(shared) + warp * 16 * LINE;
        int first_row = warp / WARPS_N * WM, first_column = warp % WARPS_N * WN;
        constexpr int CHUNKS = WN / N;  // of a row
        constexpr int LANES = CHUNKS <= 2 ? 2 : CHUNKS <= 4 ? 4 : CHUNKS <= 8 ? 8 : CHUNKS <= 16 ? 16 : 32;
        int column = lane % LANES * N;
#pragma unroll
        for (int i = 0; i < BLOCKS_M; ++i) {
            __syncwarp();  // the previous rows are read
            write_fragments(buffer + g * LINE, t, sum[i]);
            __syncwarp();
#pragma unroll
            for (int r = lane / LANES; r < 16; r += WARP / LANES) {
                if (column >= WN) continue;
                float v[N];
                read_chunk(v, buffer + r * LINE + column, lane);
                int row = PAIRED_ROWS ? r % 8 * 2 + r / 8 : r;
                store(first_row + i * 16 + row, first_column + column, v);
            }
        }
    }

    // Rows g and g + 8 of the warp's fragments i; `row` is row g.
    __device__ static void write_fragments(float* row, int t, const float (&sum)[BLOCKS_N][4]) {
#pragma unroll
        for (int h = 0; h < 2; ++h, row += 8 * LINE) {
#pragma unroll
            for (int j = 0; j < BLOCKS_N; ++j)
                *reinterpret_cast<float2*>(row + j * 8 + 2 * t) =
                    make_float2(sum[j][2 * h], sum[j][2 * h + 1]);
        }
    }

    __device__ static void read_chunk(float (&v)[4], const float* from, int) {
        float4 four = load4(from);
        v[0] = four.x;
        v[1] = four.y;
        v[2] = four.z;
        v[3] = four.w;
    }

    // Lanes 4 to 7 of 8 read their second half first: 8 lanes then read from all 32 banks.
    __device__ static void read_chunk(float (&v)[8], const float* from, int lane) {
        bool swap = lane & 4;
        float4 one = load4(from + (swap ? 4 : 0)), two = load4(from + (swap ? 0 : 4));
        float4 low = swap ? two : one, high = swap ? one : two;
        v[0] = low.x;
        v[1] = low.y;
        v[2] = low.z;
        v[3] = low.w;
        v[4] = high.x;
        v[5] = high.y;
        v[6] = high.z;
        v[7] = high.w;
    }

    // Adds the sums of `splits` blocks with the same `tile`: each writes its own to `part`, and the
    // last to arrive adds them in the order 0, 1, 2, ..., so that the result does not depend on
    // which is last.  Returns true in the block that has the total in `sum`.
    //   part      (splits, tiles, TM * TN) floats, in the order of the fragments
    //   arrived   (tiles), zero before and after
    __device__ static bool add_splits(float* part, unsigned* arrived, int split, int splits,
                                      int tile, int tiles, Sums& sum) {
        if (splits == 1) return true;
        constexpr int SIZE = TM * TN;
        float4* mine = reinterpret_cast<float4*>(part + (int64)tile * SIZE) + (unsigned)thread_again();
        int64 stride = (int64)tiles * (SIZE / 4);
#pragma unroll
        for (int i = 0; i < BLOCKS_M; ++i)
#pragma unroll
            for (int j = 0; j < BLOCKS_N; ++j)
                mine[split * stride + (i * BLOCKS_N + j) * THREADS] = make_float4(
                    sum[i][j][0], sum[i][j][1], sum[i][j][2], sum[i][j][3]);
        if (!last_to_arrive(arrived + tile, splits)) return false;
#pragma unroll
        for (int i = 0; i < BLOCKS_M; ++i)
#pragma unroll
            for (int j = 0; j < BLOCKS_N; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) sum[i][j][e] = 0.0f;
        for (int s = 0; s < splits; ++s)
#pragma unroll
            for (int i = 0; i < BLOCKS_M; ++i) {
                __syncwarp();  // the compiler would load all parts at once, into too many registers
#pragma unroll
                for (int j = 0; j < BLOCKS_N; ++j) {
                    float4 v = mine[s * stride + (i * BLOCKS_N + j) * THREADS];
                    sum[i][j][0] += v.x;
                    sum[i][j][1] += v.y;
                    sum[i][j][2] += v.z;
                    sum[i][j][3] += v.w;
                }
            }
        return true;
    }
};

#endif
