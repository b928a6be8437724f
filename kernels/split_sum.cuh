// The sum of a tile's splits, in the launch that computes them: each block stores its part in a
// workspace, and the last one to arrive adds the parts in order.
//
// One block that adds many parts is slow: alone it reads no more than 64 bytes a clock.  So four
// splits form a family.  The last of its blocks adds them and goes on in their place; four families
// form a family of the next level:
//
//     splits   0 1 2 3    4 5 6 7    8 9
//                 +          +        +         by the last block of each family
//                            +                  by the last of these blocks
//
// Which block arrives last does not change the order: the result has the same bits every time.

#ifndef GPUCNN_SPLIT_SUM_CUH
#define GPUCNN_SPLIT_SUM_CUH

#include "common.cuh"
#include "splits.cuh"

constexpr int FAMILY = 4;  // a power of 2, for shifts; gpucnn/ops/conv2d/grad_weight.py

// The counters that a tile needs: one for each family of each level.
__device__ inline int families(int splits) {
    int count = 0;
    for (; splits > 1; count += splits) splits = ((splits - 1) >> 2) + 1;
    return count;
}

// Adds up `sum` of a tile's splits.  True in one block, which then has the total.  All THREADS of a
// block call it; only the first HOLDERS have sums.
//
//   workspace  (splits, COUNT, HOLDERS) floats of this tile
//   arrived    (families) of this tile: 0 before and after
template <int THREADS, int HOLDERS = THREADS, int COUNT>
__device__ inline bool sum_splits(float (&sum)[COUNT], int split, int splits, float* workspace,
                                  unsigned* arrived) {
    static_assert(COUNT % 4 == 0, "16-byte loads and stores");
    // A thread reads what the same thread of the other blocks wrote.
    float4* mine = reinterpret_cast<float4*>(workspace) + threadIdx.x;
    constexpr int QUADS = COUNT / 4, PASSES = (QUADS + 15) / 16;
    constexpr int PASS = QUADS / PASSES;  // loads in flight, at most 16: each takes 4 registers
    static_assert(PASS * PASSES == QUADS, "whole passes");
    constexpr int64 SIZE = HOLDERS * QUADS;
    bool holds = HOLDERS == THREADS || threadIdx.x < HOLDERS;
    for (int level = 0; 1 << level < splits; level += 2) {  // this block stands for 2^level splits
        float4* to = mine + split * SIZE;
#pragma unroll
        for (int i = 0; i < QUADS; ++i)
            if (holds)
                to[i * HOLDERS] =
                    make_float4(sum[4 * i], sum[4 * i + 1], sum[4 * i + 2], sum[4 * i + 3]);
        int family = split >> (level + 2);
        split = family << (level + 2);  // the first of the family
        int members = min(FAMILY, ((splits - split - 1) >> level) + 1);
        if (!last_to_arrive(arrived + family, members)) return false;
        arrived += ((splits - 1) >> (level + 2)) + 1;
        if (!holds) continue;
#pragma unroll
        for (int pass = 0; pass < QUADS; pass += PASS) {
            const float4* from = mine + split * SIZE + pass * HOLDERS;
#pragma unroll
            for (int i = 4 * pass; i < 4 * (pass + PASS); ++i) sum[i] = 0.0f;
#pragma unroll 1
            for (int member = 0; member < members; ++member, from += SIZE << level) {
#pragma unroll
                for (int i = 0; i < PASS; ++i) {
                    float4 part = from[i * HOLDERS];
                    sum[4 * (pass + i)] += part.x;
                    sum[4 * (pass + i) + 1] += part.y;
                    sum[4 * (pass + i) + 2] += part.z;
                    sum[4 * (pass + i) + 3] += part.w;
                }
            }
        }
    }
    return true;
}

#endif
