// Dropout: y = x * scale where a random number is at least `threshold`, else 0.
//
// The numbers are those of NumPy's Philox (4 x 64 bits, 10 rounds), 16 bits each, so that a seed
// gives the same mask on every device.  Philox is a function of a counter: each thread computes its
// own numbers, no state is stored, and the backward pass recomputes the mask instead of reading it.
// Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
//
//   thread -> 16 elements: the 256 bits of one counter value
//
//   x, y     any shape, `size` elements of type X; y is written (=).  Backward: x is dy, y is dx
//   c0 .. c3, key0, key1   the generator's state: a 256-bit counter, lowest word first, and its key
//   at       null, or (7) what replaces c0 .. key1 and used: a captured step reads them from device
//            memory, because they change from step to step
//   used     how many of the counter's sixteen 16-bit numbers, lowest first, come before that of
//            element 0: a multiple of 4, except for a part of a batch
//
// Blocks of 256 threads (any smaller block works), at most 64 registers a thread: 32 warps per
// multiprocessor.  The 20 64-bit products per 16 numbers cost less than the memory traffic.
// AlexNet launches it before its first two dense layers.

#ifndef X
#define X float  // or half, bfloat16
#endif

#include "vector.cuh"

struct Philox {
    uint64 c[4];
};

// The four numbers that NumPy draws for this counter and key.
__device__ inline Philox philox(Philox v, uint64 key0, uint64 key1) {
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        uint64 high0 = __umul64hi(0xD2E7470EE14C6C93ull, v.c[0]);
        uint64 low0 = 0xD2E7470EE14C6C93ull * v.c[0];
        uint64 high1 = __umul64hi(0xCA5A826395121157ull, v.c[2]);
        uint64 low1 = 0xCA5A826395121157ull * v.c[2];
        v = Philox{{high1 ^ v.c[1] ^ key0, low1, high0 ^ v.c[3] ^ key1, low0}};
        key0 += 0x9E3779B97F4A7C15ull;  // Weyl sequence: the golden ratio, and sqrt(3) - 1
        key1 += 0xBB67AE8584CAA73Bull;
    }
    return v;
}

// A dropped element is 0 even if it was infinite.
__device__ inline float times(float value, float keep) { return keep > 0.0f ? value * keep : 0.0f; }

// counter + step, in 256 bits.
__device__ inline Philox advanced(Philox counter, uint64 step) {
    uint64 carry = step;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        counter.c[i] += carry;
        carry = counter.c[i] < carry;
    }
    return counter;
}

// Elements first .. first + 15, N at a time; random has 16 bits for each.  With N = 1 some of them
// may not exist.
template <int N>
__device__ inline void drop(const X* x, X* y, const Philox& random, int64 first, int threshold,
                            float scale, int64 size) {
#pragma unroll
    for (int part = 0; part < 16; part += N) {
        int64 element = first + part;
        if (N == 1 && (element < 0 || element >= size)) continue;
        float v[N];
        load(x + element, v);
#pragma unroll
        for (int i = 0; i < N; ++i) {
            uint64 word = random.c[(part + i) / 4];
            bool kept = (int)(word >> (part + i) % 4 * 16 & 0xffff) >= threshold;
            v[i] = times(v[i], kept ? scale : 0.0f);
        }
        store(y + element, v);
    }
}

extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void dropout(
    const X* x, X* y, const uint64* at, uint64 c0, uint64 c1, uint64 c2, uint64 c3, uint64 key0,
    uint64 key1, int used, int threshold, float scale, int64 size) {
    if (at) {
        c0 = at[0], c1 = at[1], c2 = at[2], c3 = at[3];
        key0 = at[4], key1 = at[5], used = (int)at[6];
    }
    int64 block = global_thread();
    int64 first = block * 16 - used;  // the element of this counter's lowest 16 bits
    if (first >= size) return;
    Philox random = philox(advanced(Philox{{c0, c1, c2, c3}}, block), key0, key1);
    uint64 addresses = first < 0 || first + 16 > size ? 1 : (uint64)x | (uint64)y;
    if (addresses % 16 == 0 && used % LANES == 0)
        drop<LANES>(x, y, random, first, threshold, scale, size);
    else if (addresses % 8 == 0 && used % 4 == 0 && LANES > 4)
        drop<4>(x, y, random, first, threshold, scale, size);
    else
        drop<1>(x, y, random, first, threshold, scale, size);
}
