// What the convolutions on tensor cores share: their tile and the table of taps.  The kernel's file
// defines ELEMENT and RESULT.

#ifndef GPUCNN_CONV2D_TENSOR_CUH
#define GPUCNN_CONV2D_TENSOR_CUH

#include "chunks.cuh"
#include "common.cuh"
#include "conv2d_gather.cuh"
#include "tensor_tile.cuh"

#ifndef TILE_M
#define TILE_M 128
#endif
#ifndef TILE_N
#define TILE_N 64
#endif
#ifndef WARP_M
#define WARP_M 64
#endif
#ifndef WARP_N
#define WARP_N 32
#endif
#ifndef BLOCKS
#define BLOCKS 3  // on a multiprocessor
#endif
#ifndef STAGES
#define STAGES 4
#endif

// A thread's pointers step from k-tile to k-tile, all of an operand by the same number of bytes:
// inside a tap by a constant, from one tap to the next by what the table in shared memory says.  It
// has an entry for each tap, and STAGES + 1 more, because STAGES k-tiles past the last are loaded.
struct alignas(16) Step {  // 16 bytes: one load
    uint32 bits;           // of the tap's row and of its column
    int image, weight;     // bytes from the tap's last k-tile to the next tap's first
    int unused;
};

constexpr uint32 NO_TAP = ~0u;  // bits that are off every image: past the last tap

template <class E>
__device__ inline const char* bytes(const E* p) {
    return reinterpret_cast<const char*>(p);
}

__device__ inline const ELEMENT* elements(const char* p) {
    return reinterpret_cast<const ELEMENT*>(p);
}

constexpr int SIZE = sizeof(ELEMENT), LINE = 64;  // bytes of a number, and of a line of a k-tile
constexpr int CHUNK = CHUNK_OF<RESULT>;           // results in 16 bytes

#endif
