// Two sums a channel over the rows of a matrix, or mean and squared deviations, in one launch: the
// blocks of a tile of channels share its rows, and the last one to finish merges what they found.
// The order is fixed, so the result does not depend on which block that is.

#ifndef GPUCNN_BATCH_NORM_SUMS_CUH
#define GPUCNN_BATCH_NORM_SUMS_CUH

#include "splits.cuh"
#include "vector.cuh"

constexpr int THREADS = 256;

// Where a thread is in the tile; `exists` is false beyond the channels or the lines.
struct Place {
    int line, lines, channel;
    int64 begin, end;  // this block's rows
    bool exists;
};

template <int N>
__device__ inline Place place(int64 rows, int channels, const Divisor& width) {
    Place at;
    at.line = divide(threadIdx.x, width);
    at.lines = THREADS / width.divisor;
    at.channel = (blockIdx.x * width.divisor + threadIdx.x - at.line * width.divisor) * N;
    int64 share = (rows + gridDim.y - 1) / gridDim.y;
    at.begin = min(blockIdx.y * share, rows);
    at.end = min(at.begin + share, rows);
    at.exists = at.line < at.lines && at.channel < channels;
    return at;
}

// Two numbers a channel, and how many values they stand for.  Products need no count.
template <int N>
struct Sums {
    float count, a[N], b[N];
};

// Means a and sums of squared deviations b of two samples.  Source: Chan, Golub and LeVeque 1979.
struct Moments {
    template <int N>
    static __device__ inline void merge(Sums<N>& into, const Sums<N>& more) {
        if (more.count == 0.0f) return;
        float count = into.count + more.count, share = more.count / count;
#pragma unroll
        for (int i = 0; i < N; ++i) {
            float apart = more.a[i] - into.a[i];
            into.a[i] += apart * share;
            into.b[i] += more.b[i] + apart * apart * (into.count * share);
        }
        into.count = count;
    }
};

struct Totals {
    template <int N>
    static __device__ inline void merge(Sums<N>& into, const Sums<N>& more) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            into.a[i] += more.a[i];
            into.b[i] += more.b[i];
        }
    }
};

// Memory for merge_lines: half of the threads pass their numbers to the other half.
constexpr int SLOTS = THREADS / 2;
struct Exchange {
    float count[SLOTS], a[LANES][SLOTS], b[LANES][SLOTS];
};

// Merges the lines of the block in a fixed order: line 0 gets the result.
template <class Kind, int N>
__device__ inline void merge_lines(Sums<N>& mine, const Place& at, int width, Exchange& exchange) {
    for (int lines = at.lines, half; lines > 1; lines = half) {
        half = (lines + 1) / 2;
        int slot = threadIdx.x - (at.line < half ? 0 : half * width);
        __syncthreads();  // the numbers of the last step may still be read
        if (at.line >= half && at.line < lines) {
            exchange.count[slot] = mine.count;
#pragma unroll
            for (int i = 0; i < N; ++i) {
                exchange.a[i][slot] = mine.a[i];
                exchange.b[i][slot] = mine.b[i];
            }
        }
        __syncthreads();
        if (at.line + half >= lines) continue;
        Sums<N> more;
        more.count = exchange.count[slot];
#pragma unroll
        for (int i = 0; i < N; ++i) {
            more.a[i] = exchange.a[i][slot];
            more.b[i] = exchange.b[i][slot];
        }
        Kind::merge(mine, more);
    }
}

// Merges the block's lines, then, in the last block of the tile, the splits; true for the threads
// that then hold the result of all rows.
template <class Kind, int N>
__device__ inline bool merge_all(Sums<N>& mine, const Place& at, float* part, unsigned* counters,
                                 int64 rows, int channels, int width, Exchange& exchange) {
    merge_lines<Kind>(mine, at, width, exchange);
    if (gridDim.y > 1) {
        if (at.line == 0 && at.exists) {
            float* to = part + (int64)blockIdx.y * 2 * channels + at.channel;
            store(to, mine.a);
            store(to + channels, mine.b);
        }
        if (!last_to_arrive(counters + blockIdx.x, gridDim.y)) return false;
        mine = Sums<N>{};
        int64 share = (rows + gridDim.y - 1) / gridDim.y;
        if (at.exists)
#pragma unroll 1
            for (int split = at.line; split < gridDim.y; split += at.lines) {
                const float* from = part + (int64)split * 2 * channels + at.channel;
                Sums<N> more;
                int64 begin = min(split * share, rows);
                more.count = (float)(min(begin + share, rows) - begin);
                load(from, more.a);
                load(from + channels, more.b);
                Kind::merge(mine, more);
            }
        merge_lines<Kind>(mine, at, width, exchange);
    }
    return at.line == 0 && at.exists;
}

#endif
