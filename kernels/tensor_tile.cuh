// The core of every tensor-core product: a block multiplies A (TM x K) by B (K x TN) and ends with
// its TM x TN sums in registers.  Read gemm_tile.cuh first: the same idea on CUDA cores.
//
//   block    TM x TN sums; a warp owns WM x WN of them, 64 x 64 if the tile is large
//   warp     16 x 8 sums an instruction (mma.sync): BLOCKS_M x BLOCKS_N of these fragments
//   k-tile   64 bytes of K: 32 numbers of 16 bits, or 16 of tf32.  Two k-steps of 32 bytes each
//
// One fragment: lane 4 * g + t (g = 0..7, t = 0..3) holds, for 16-bit numbers,
//
//            B  k = 2t, 2t + 1 of column g                D  columns 2t, 2t + 1
//               and k = 8 + 2t, 9 + 2t                       of rows g and g + 8
//                  columns
//               0  1  2  ... 7                            t=0  t=1  t=2  t=3
//   A      k 0  :  :  :     :                     row 0   0 0  1 1  2 2  3 3    g = 0
//     k 0 .. 15                                       1   4 4  5 5  6 6  7 7    g = 1
//   row 0  a[0]: row g,     k = 2t, 2t + 1            .        (the lane)       .
//       .  a[1]: row g + 8, k = 2t, 2t + 1            7   28 28  ...   31 31    g = 7
//      15  a[2], a[3]: the same, k = 8 + 2t, 9 + 2t   8   0 0  1 1  2 2  3 3    g = 0 again
//
// tf32 holds one number where 16 bits hold two.  ldmatrix loads four 8 x 16-byte matrices at once,
// in just this order.  It serves 8 rows of 16 bytes at a time, which must lie in different banks:
//
//   K_MAJOR   a line is one row of A (column of B): 64 bytes along K, half of the 32 banks.  Chunk c
//             (16 bytes) of line r is stored at c ^ (r / 2 % 4), so that the chunks c of eight
//             lines lie in different banks
//   MN_MAJOR  a line is one k: 128 bytes along M or N, TM / 64 or more such panels side by side.
//             Chunk c of line k is stored at c ^ (k % 8), and ldmatrix transposes.  It cannot
//             transpose tf32: there lanes load numbers from 4 lines at once, and chunk c is stored
//             at c ^ (2 * (k % 4)).  Of B a lane loads single numbers, 8 neighbours of each line.
//             Of A it loads pairs, 8 pairs of each line: a fragment's rows g and g + 8 are rows 2g
//             and 2g + 1 of A (PAIRED_ROWS), and both loads of a lane fill adjacent registers
//
// Global memory is read by cp.async, DEPTH k-tiles ahead; before sm_80 through registers.
// Fragments are double-buffered: one k-step's are loaded while the previous one is multiplied.
// tf32 uses the upper 19 bits of each float: the hardware truncates the lower 13, and rounding them
// (cvt) would take a third of the instruction slots.
//
// Warps of 64 x 64 take 128 registers for sums and 64 for fragments, so 128 x 128 has 4 warps, and
// two blocks share a multiprocessor.  A warp loads 8 KiB from shared memory for 64 instructions:
// with smaller warps shared memory would be the limit before the tensor cores are.

#ifndef GPUCNN_TENSOR_TILE_CUH
#define GPUCNN_TENSOR_TILE_CUH

#include "common.cuh"
#include "ptx.cuh"
#include "tensor_results.cuh"

struct tf32 {  // a float of which the tensor cores use the upper 19 bits
    float value;
};

__device__ inline float to_float(tf32 x) { return x.value; }

enum Major { K_MAJOR, MN_MAJOR };

// --- numbers ---

// D += A B, 16 x 8 sums, 32 bytes of K.
__device__ inline void multiply_step(half, float (&d)[4], const unsigned (&a)[4],
                                     const unsigned (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    multiply_half(d, a, b);
#else
    const unsigned low[2] = {a[0], a[1]}, high[2] = {a[2], a[3]};
    multiply_half(d, low, b[0]);
    multiply_half(d, high, b[1]);
#endif
}

#if __CUDA_ARCH__ >= 800
__device__ inline void multiply_step(bfloat16, float (&d)[4], const unsigned (&a)[4],
                                     const unsigned (&b)[2]) {
    multiply_bfloat16(d, a, b);
}

__device__ inline void multiply_step(tf32, float (&d)[4], const unsigned (&a)[4],
                                     const unsigned (&b)[2]) {
    multiply_tf32(d, a, b);
}
#endif

// --- the tile ---

// Whether ldmatrix cannot load the fragments.
template <class E, Major MAJOR>
constexpr bool BY_NUMBERS = MAJOR == MN_MAJOR && sizeof(E) == 4;

template <class E, int TM, int TN, int WM, int WN, int DEPTH, Major A, Major B>
struct TensorTile : TensorResults<TM, TN, WM, WN, BY_NUMBERS<E, A>> {
    using Results = TensorResults<TM, TN, WM, WN, BY_NUMBERS<E, A>>;
    using typename Results::Sums;
    using Results::BLOCKS_M, Results::BLOCKS_N, Results::THREADS, Results::WARPS_N;
    static constexpr int CHUNK = 16 / sizeof(E);                 // numbers in 16 bytes
    static constexpr int K = 4 * CHUNK;                          // numbers of K in a k-tile
    static constexpr int PANEL = 8 * CHUNK;                      // numbers in a line of MN_MAJOR
    static constexpr int A_BYTES = TM * 64, STAGE_BYTES = (TM + TN) * 64;
    static constexpr int A_COPIES = TM * 4 / THREADS, B_COPIES = TN * 4 / THREADS;  // per k-tile
    static constexpr int PASS_BYTES = THREADS * 16;  // what all threads copy at once

    static constexpr bool PAIRS_A = BY_NUMBERS<E, A>, SINGLY_B = BY_NUMBERS<E, B>;

    static constexpr int SHARED_BYTES =
        DEPTH * STAGE_BYTES > Results::EPILOGUE_BYTES ? DEPTH * STAGE_BYTES : Results::EPILOGUE_BYTES;

    static_assert(TM % WM == 0 && TN % WN == 0 && WM % 32 == 0 && WN % 16 == 0, "whole warps");
    static_assert(A_COPIES * THREADS == TM * 4 && B_COPIES * THREADS == TN * 4, "whole copies");
    static_assert(A == K_MAJOR || TM % PANEL == 0, "whole panels");
    static_assert(B == K_MAJOR || TN % PANEL == 0, "whole panels");
    static_assert(DEPTH >= 2, "one is multiplied while another is filled");

    // --- which part of the k-tile a thread copies: CHUNK numbers of A_COPIES and B_COPIES lines ---

    // Of copy q: the row of A (K_MAJOR) or k (MN_MAJOR) in the tile, and likewise of B.
    __device__ static int line(Major major, int q) {
        return major == K_MAJOR ? (int)threadIdx.x / 4 + q * (THREADS / 4)
                                : ((int)threadIdx.x / 8 + q * (THREADS / 8)) % K;
    }

    // Where the chunk begins in that line: k (K_MAJOR), or the row or column (MN_MAJOR).
    __device__ static int start(Major major, int q) {
        return major == K_MAJOR
                   ? (int)threadIdx.x % 4 * CHUNK
                   : (int)threadIdx.x % 8 * CHUNK +
                         ((int)threadIdx.x / 8 + q * (THREADS / 8)) / K * PANEL;
    }

    __device__ static int a_line(int q) { return line(A, q); }
    __device__ static int a_start(int q) { return start(A, q); }
    __device__ static int b_line(int q) { return line(B, q); }
    __device__ static int b_start(int q) { return start(B, q); }

    // The k of copy q in the k-tile is a_k() + a_k_step(q): a register and a constant.
    __device__ static int a_k() { return A == K_MAJOR ? a_start(0) : a_line(0); }
    __device__ static int b_k() { return B == K_MAJOR ? b_start(0) : b_line(0); }
    __device__ static constexpr int a_k_step(int q) {
        return A == K_MAJOR ? 0 : q * (THREADS / 8) % K;
    }
    __device__ static constexpr int b_k_step(int q) {
        return B == K_MAJOR ? 0 : q * (THREADS / 8) % K;
    }

    // --- addresses in shared memory, in bytes from the start of an operand's tile ---

    __device__ static int at_k_major(int line, int chunk) {
        return line * 64 + ((chunk ^ (line >> 1 & 3)) << 4);
    }

    // line: panel * K + k
    __device__ static int at_mn_major(int line, int chunk) {
        int swizzle = sizeof(E) == 4 ? (line & 3) << 1 : line & 7;
        return line * 128 + ((chunk ^ swizzle) << 4);
    }

    __device__ static int copy_at(Major major) {  // copy 0 of this thread; q is q * PASS_BYTES on
        return major == K_MAJOR ? at_k_major(threadIdx.x / 4, threadIdx.x % 4)
                                : at_mn_major(threadIdx.x / 8, threadIdx.x % 8);
    }

    // The copies of one k-tile.  A kernel's `load` calls a(q, from, exists) for each q < A_COPIES
    // and b(q, from, exists) for each q < B_COPIES: 16 bytes at `from`, or zeros and no access.
    struct Copies {
        char *a_to, *b_to;

        __device__ explicit Copies(char* shared)
            : a_to(shared + copy_at(A)), b_to(shared + A_BYTES + copy_at(B)) {}

#if __CUDA_ARCH__ >= 800
        int stage;

        __device__ void a(int q, const E* from, bool exists) {
            copy_async<16>(a_to + stage + q * PASS_BYTES, from, exists ? 16 : 0);
        }
        __device__ void b(int q, const E* from, bool exists) {
            copy_async<16>(b_to + stage + q * PASS_BYTES, from, exists ? 16 : 0);
        }
        __device__ void finish() { copy_async_commit(); }
#else
        int stage;
        uint4 next_a[A_COPIES], next_b[B_COPIES];

        __device__ static uint4 load(const E* from, bool exists) {
            uint4 zeros = {0, 0, 0, 0};
            return exists ? *reinterpret_cast<const uint4*>(from) : zeros;
        }
        __device__ void a(int q, const E* from, bool exists) { next_a[q] = load(from, exists); }
        __device__ void b(int q, const E* from, bool exists) { next_b[q] = load(from, exists); }
        __device__ void finish() {
#pragma unroll
            for (int q = 0; q < A_COPIES; ++q)
                *reinterpret_cast<uint4*>(a_to + stage + q * PASS_BYTES) = next_a[q];
#pragma unroll
            for (int q = 0; q < B_COPIES; ++q)
                *reinterpret_cast<uint4*>(b_to + stage + q * PASS_BYTES) = next_b[q];
        }
#endif
    };

    // --- fragments ---

    struct Fragments {
        unsigned a[BLOCKS_M][4], b[BLOCKS_N][2];
    };

    // Where this lane reads; the rest of each address is a constant.
    static constexpr int A_PARTS = A == K_MAJOR ? 1 : WM / 16;
    static constexpr int B_PARTS = B == K_MAJOR ? 1 : SINGLY_B ? WN / 8 : WN / 16;

    struct Reader {
        int a[A_PARTS], b[B_PARTS];

        __device__ Reader() {
            int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
            int row = warp / WARPS_N * WM, column = warp % WARPS_N * WN;
            int eighth = lane & 7, low = lane >> 3 & 1, high = lane >> 4;
#pragma unroll
            for (int i = 0; i < A_PARTS; ++i) {
                if (A == K_MAJOR)
                    a[i] = at_k_major(row + low * 8 + eighth, high);
                else if (PAIRS_A)
                    a[i] = number<2>(row + i * 16);
                else
                    a[i] = panel(row + i * 16 + low * 8, high * 8 + eighth);
            }
#pragma unroll
            for (int j = 0; j < B_PARTS; ++j) {
                if (B == K_MAJOR)
                    b[j] = A_BYTES + at_k_major(column + high * 8 + eighth, low);
                else if (SINGLY_B)
                    b[j] = A_BYTES + number<1>(column + j * 8);
                else
                    b[j] = A_BYTES + panel(column + j * 16 + high * 8, low * 8 + eighth);
            }
        }

        __device__ static int panel(int at, int k) {
            return at_mn_major(at / PANEL * K + k, at % PANEL / CHUNK);
        }

        // Of eight groups of COUNT numbers, the first at `at`: where group g begins, k = t.
        template <int COUNT>
        __device__ static int number(int at) {
            int g = threadIdx.x % WARP / 4 * COUNT, t = threadIdx.x % 4;
            return panel(at + g, t) + g % 4 * 4;
        }

        // The fragments of k-step `step` (0 or 1) of a stage.
        __device__ void load(Fragments& f, const char* stage, int step) const {
            constexpr int EIGHT = 8 * 128;  // bytes of 8 lines
#pragma unroll
            for (int i = 0; i < BLOCKS_M; ++i) {
                if constexpr (A == K_MAJOR) {
                    load_matrices(f.a[i], stage + (a[0] ^ step * 32) + i * 16 * 64);
                } else if constexpr (PAIRS_A) {
#pragma unroll
                    for (int half = 0; half < 2; ++half) {  // k = t and t + 4
                        uint2 rows = *reinterpret_cast<const uint2*>(
                            stage + a[i] + step * EIGHT + half * (EIGHT / 2));
                        f.a[i][2 * half] = rows.x;
                        f.a[i][2 * half + 1] = rows.y;
                    }
                } else {
                    load_matrices_transposed(f.a[i], stage + a[i] + step * 2 * EIGHT);
                }
            }
#pragma unroll
            for (int j = 0; j < BLOCKS_N; j += 2) {
                unsigned v[4];  // k = t and t + 4 of column g, and of column g + 8
                if constexpr (B == K_MAJOR) {
                    load_matrices(v, stage + (b[0] ^ step * 32) + j * 8 * 64);
                } else if constexpr (SINGLY_B) {
#pragma unroll
                    for (int part = 0; part < 4; ++part)
                        v[part] = *reinterpret_cast<const unsigned*>(
                            stage + b[j + part / 2] + step * EIGHT + part % 2 * (EIGHT / 2));
                } else {
                    load_matrices_transposed(v, stage + b[j / 2] + step * 2 * EIGHT);
                }
                f.b[j][0] = v[0];
                f.b[j][1] = v[1];
                f.b[j + 1][0] = v[2];
                f.b[j + 1][1] = v[3];
            }
        }
    };

    __device__ static void multiply_fragments(const Fragments& f, Sums& sum) {
#pragma unroll
        for (int i = 0; i < BLOCKS_M; ++i)
#pragma unroll
            for (int j = 0; j < BLOCKS_N; ++j) {
                // Back and forth: the next instruction shares an operand with this one.
                int at = i & 1 ? BLOCKS_N - 1 - j : j;
                multiply_step(E{}, sum[i][at], f.a[i], f.b[at]);
            }
    }

    // --- the main loop ---

    // sum += A * B over `tiles` k-tiles.  load(copies) starts the copies of the next k-tile each time
    // it is called: of tile 0, 1, 2, ...  It is called DEPTH times more than there are tiles:
    // past the end it must pass exists = false.  It is not behind an `if`, which would keep the
    // compiler from spreading the copies between multiplications.  step() is called between two
    // loads: what it computes for the next is spread between the other half of the multiplications.
    // Copies begin after the barrier, into the stage that it freed.  Before it, they would delay it,
    // and with it the next fragments, by all the instructions for their addresses.
    template <class Load, class Step>
    __device__ static void multiply(char* shared, int tiles, Load load, Step step, Sums& sum) {
        Copies copies(shared);
        const Reader reader;
        Fragments now, next;
#pragma unroll
        for (int s = 0; s < DEPTH; ++s) {
            copies.stage = s * STAGE_BYTES;
            load(copies);
            copies.finish();
            if (s < DEPTH - 1) step();
        }
        copies.stage = 0;
        copy_async_wait<DEPTH - 1>();
        __syncthreads();  // tile 0 is there
        reader.load(now, shared, 0);
        for (; tiles > 0; --tiles) {
            reader.load(next, shared + copies.stage, 1);
            step();
            multiply_fragments(now, sum);
            copy_async_wait<DEPTH - 2>();
            __syncthreads();  // the next tile is there, and nobody reads this one any more
            int stage = copies.stage == (DEPTH - 1) * STAGE_BYTES ? 0 : copies.stage + STAGE_BYTES;
            reader.load(now, shared + stage, 0);
            load(copies);
            multiply_fragments(next, sum);
            copies.finish();
            copies.stage = stage;
        }
        copy_async_wait<0>();
        __syncthreads();  // no copy is in flight: shared memory is free
    }

    template <class Load>
    __device__ static void multiply(char* shared, int tiles, Load load, Sums& sum) {
        multiply(shared, tiles, load, [] {}, sum);
    }
};

#endif
