// Dropout: y = x * scale where a random number is at least `threshold`, else 0.
//
// The numbers are those of NumPy's Philox (4 x 64 bits, 10 rounds), 16 bits each, so that a seed
// gives the same mask on every device.  Philox is a function of a counter: each thread computes its
// own numbers, no state is stored, and the backward pass recomputes the mask instead of reading it.
// Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
//
//   thread -> 16 elements: the 256 bits of one counter value
//
//   x, y     any shape, `size` elements; y is written (=).  Backward: x is dy, y is dx
//   c0 .. c3, key0, key1   the generator's state: a 256-bit counter, lowest word first, and its key
//   used     how many of the counter's four 64-bit numbers have been drawn already: element 0 takes
//            the lowest 16 bits of the next one
//
// Blocks of 256 threads (any smaller block works), at most 64 registers a thread: 32 warps per
// multiprocessor.  The 20 64-bit products per 16 numbers cost less than the memory traffic.
// AlexNet launches it before its first two dense layers.

#include "common.cuh"

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

extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void dropout(
    const float* x, float* y, uint64 c0, uint64 c1, uint64 c2, uint64 c3, uint64 key0, uint64 key1,
    int used, int threshold, float scale, int64 size) {
    int64 block = global_thread();
    int64 first = block * 16 - used * 4;  // the element of this counter's lowest 16 bits
    if (first >= size) return;
    Philox random = philox(advanced(Philox{{c0, c1, c2, c3}}, block), key0, key1);
    bool aligned = ((uint64)x | (uint64)y) % 16 == 0;
#pragma unroll
    for (int quad = 0; quad < 4; ++quad) {
        int64 element = first + quad * 4;
        float keep[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
            keep[i] = (int)(random.c[quad] >> (i * 16) & 0xffff) >= threshold ? scale : 0.0f;
        if (aligned && element >= 0 && element + 3 < size) {
            float4 v = load4(x + element);
            store4(y + element, make_float4(times(v.x, keep[0]), times(v.y, keep[1]),
                                            times(v.z, keep[2]), times(v.w, keep[3])));
            continue;
        }
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (element + i >= 0 && element + i < size)
                y[element + i] = times(x[element + i], keep[i]);
    }
}
