// Dropout: y = x * scale where a random number is at least `threshold`, else 0.
//
// The numbers are those that NumPy's Philox (4 x 64 bits, 10 rounds) would draw, 16 bits each, so
// that a seed gives the same mask on every device.  Philox is a function of a counter: number i is
// computed where it is needed, no state is kept, and backward draws the same mask again instead of
// reading one.  Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
//
//   thread   the 16 numbers of one counter value: 256 bits
//
//   x, y     any shape, `size` numbers in all; y is written (=).  Backward, x is dy and y is dx
//   c0 .. c3, key0, key1   where the generator stands: a counter of 256 bits, the lowest first
//   used     how many of that counter's four 64-bit numbers were drawn before: element 0 takes
//            the lowest 16 bits of the next one
//
// Blocks of 256 threads (fewer work) with at most 64 registers: 32 warps to a multiprocessor.
// The 20 products of 64 bits for 16 numbers cost less than the memory traffic.  AlexNet drops
// before its first two dense layers.

#include "common.cuh"

struct Philox {
    uint64 c[4];
};

// NumPy's numbers for this counter and key.
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

// A dropped number is 0 even if it was infinite.
__device__ inline float times(float value, float keep) { return keep > 0.0f ? value * keep : 0.0f; }

// counter + step, 256 bits.
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
    int64 first = block * 16 - used * 4;  // takes this counter's first 16 bits
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
