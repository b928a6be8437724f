// Local response normalisation (Krizhevsky et al. 2012, section 3.3), and its gradient.
//
//   total[c] = k + alpha * sum of x[j]^2 over the neighbours j of c
//   y[c]     = x[c] * total[c]^-beta
//
// The neighbours of c are the existing channels among c - before .. c + after.  c is itself a
// neighbour of c - after .. c + before, so its gradient is a sum over those:
//
//   inner[j] = dy[j] * x[j] * total[j]^-(beta + 1)
//   dx[c]    = dy[c] * total[c]^-beta - 2 * alpha * beta * x[c] * sum of inner[j]
//
//   block -> TILE adjacent numbers; it keeps x of these and of `halo` more on both sides
//
//            halo     TILE = 4 numbers a thread     halo
//      |------------|------------------------------|------------|    halo = before + after:
//                   a pixel's channels | the next one's ...          inner is computed there too
//
//   x, y, dy, dx   (pixels, channels) of type X, `size` numbers; written (=)
//
// Dynamic shared memory: TILE + 2 * halo floats for x, and as many for inner in the backward pass.
// Blocks of 256 threads, at most 64 registers a thread: 32 warps per multiprocessor.
// The AlexNet of 2012 normalises after its first two convolutions; the one for CIFAR-10 does not.

#ifndef X
#define X float  // or half, bfloat16
#endif

#include "vector.cuh"

constexpr int THREADS = 256, TILE = 4 * THREADS;

// The channel of number `i`, relative to the tile's first, which has channel `first`.
__device__ inline int channel_of(int i, int first, int halo, const Divisor& channels) {
    int below = remainder(halo, channels);  // i + halo is not negative
    return remainder(i + halo + first + (below ? channels.divisor - below : 0), channels);
}

// The channel of the block's first number: the product of two remainders fits 31 bits.
__device__ inline int first_channel(const Divisor& channels) {
    return remainder(remainder(blockIdx.x, channels) * remainder(TILE, channels), channels);
}

// Copies from[start - halo .. start + TILE + halo - 1] to shared memory, 0 beyond the array's ends.
__device__ inline void stage(const X* from, int64 size, int halo, float* to) {
    int64 start = (int64)blockIdx.x * TILE - halo;
    for (int i = threadIdx.x; i < TILE + 2 * halo; i += THREADS)
        to[i] = start + i >= 0 && start + i < size ? to_float(from[start + i]) : 0.0f;
}

// k + alpha * the sum of squares around values[0], which is channel c.  All threads take as many
// steps, so that a warp reads adjacent numbers.
__device__ inline float total_of(const float* values, int c, int channels, int before, int after,
                                 float alpha, float k) {
    float sum = 0.0f;
    for (int j = -before; j <= after; ++j) {
        float more = sum + values[j] * values[j];
        sum = c + j >= 0 && c + j < channels ? more : sum;
    }
    return k + alpha * sum;
}

extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void lrn_forward(
    const X* x, X* y, int64 size, int before, int after, float alpha, float beta, float k,
    Divisor channels) {
    extern __shared__ float staged[];
    int halo = before + after, first = first_channel(channels);
    stage(x, size, halo, staged);
    __syncthreads();
    for (int i = threadIdx.x; i < TILE; i += THREADS) {
        int64 at = (int64)blockIdx.x * TILE + i;
        if (at >= size) break;
        const float* mine = staged + halo + i;
        int c = channel_of(i, first, halo, channels);
        float total = total_of(mine, c, channels.divisor, before, after, alpha, k);
        y[at] = from_float<X>(*mine * powf(total, -beta));
    }
}

extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void lrn_backward(
    const X* dy, const X* x, X* dx, int64 size, int before, int after, float alpha, float beta,
    float k, Divisor channels) {
    extern __shared__ float staged[];
    int halo = before + after, first = first_channel(channels);
    float* inner = staged + TILE + 2 * halo;
    stage(x, size, halo, staged);
    stage(dy, size, halo, inner);
    __syncthreads();
    // inner[i] replaces dy[i], and the result is dy[i] * total^-beta.
    auto damp = [&](int i) {
        const float* mine = staged + halo + i;
        int c = channel_of(i, first, halo, channels);
        float total = total_of(mine, c, channels.divisor, before, after, alpha, k);
        float d = inner[halo + i], damping = powf(total, -beta);
        inner[halo + i] = d * *mine * damping / total;
        return d * damping;
    };
    float direct[TILE / THREADS];
#pragma unroll
    for (int part = 0; part < TILE / THREADS; ++part)
        direct[part] = damp(part * THREADS + threadIdx.x);
#pragma unroll 1
    for (int i = threadIdx.x; i < halo; i += THREADS)  // after + before: inner is needed there
        damp(i < after ? i - after : TILE + i - after);
    __syncthreads();
#pragma unroll
    for (int part = 0; part < TILE / THREADS; ++part) {
        int i = part * THREADS + threadIdx.x;
        int64 at = (int64)blockIdx.x * TILE + i;
        if (at >= size) break;
        int c = channel_of(i, first, halo, channels);
        float spread = 0.0f;
        for (int j = -after; j <= before; ++j) {
            float more = spread + inner[halo + i + j];
            spread = c + j >= 0 && c + j < channels.divisor ? more : spread;
        }
        dx[at] = from_float<X>(direct[part] - 2.0f * alpha * beta * staged[halo + i] * spread);
    }
}
