// How the tiled convolutions find their numbers without arithmetic in the loop.
//
// A row of the product's left matrix is one pixel.  What it needs for a tap lies at a fixed
// distance from where it begins to read, the same distance for all pixels: a thread keeps one
// offset per row, and a table in shared memory holds the distance of each tap.  Which taps
// fall off the image is worked out once: a bit per window row and a bit per window column; a
// tap is on the image if both its bits are set.
//
// Offsets count units of UNIT floats.  Where 16 bytes are read at a time all of them are multiples
// of 4 floats, and an int that counts quads reaches 2^33 floats: half the registers of a pointer.

#ifndef GPUCNN_CONV2D_GATHER_CUH
#define GPUCNN_CONV2D_GATHER_CUH

#include "common.cuh"

template <bool VECTOR>
constexpr int UNIT = VECTOR ? 4 : 1;

struct alignas(16) Tap {  // 16 bytes: one load
    int pixel;            // units from Pixel::start to this tap's first channel
    int weight;           // units from a filter's start to this tap
    uint32 bits;          // which two bits of Pixel::on_image it needs
    int channels;         // how many units it has; 0 ends the table
};

template <bool VECTOR>
struct Pixel {
    using Offset = int64;
    Offset start;     // where tap 0 reads; before the image's first unit, if padding is there
    uint32 on_image;  // bit a: row a of the taps is on the image; bit kh + b: column b is
};

template <>
struct Pixel<true> {
    using Offset = int;
    Offset start;
    uint32 on_image;
};

// kh + kw <= 31, so that the bits fit: 15 x 16 taps at most, and the end of the table.
constexpr int MAX_TAPS = 241;

__device__ inline uint32 tap_bits(int row, int column, int kh) {
    return 1u << row | 1u << (kh + column);
}

template <bool VECTOR>
__device__ inline bool sees(const Pixel<VECTOR>& p, const Tap& tap) {
    return (p.on_image & tap.bits) == tap.bits;
}

// Bits first, first + 1, ... for those of `count` taps at start, start + step, ... that lie in
// 0 .. size - 1.
__device__ inline uint32 bits_inside(int start, int step, int count, int size, int first) {
    uint32 bits = 0;
    for (int tap = 0; tap < count; ++tap) {
        int at = start + tap * step;
        if (at >= 0 && at < size) bits |= 1u << (first + tap);
    }
    return bits;
}

#endif
