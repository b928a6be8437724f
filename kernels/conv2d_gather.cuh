// How the tiled convolutions find their numbers without arithmetic in the loop.
//
// A row of the product's left matrix is one pixel.  What it needs for a tap lies at a fixed
// distance from where it begins to read, the same distance for all pixels: a thread keeps one
// pointer per row, and a table in shared memory holds the distance of each tap.  Which taps
// fall off the image is worked out once: a bit per window row and a bit per window column; a
// tap is on the image if both its bits are set.

#ifndef GPUCNN_CONV2D_GATHER_CUH
#define GPUCNN_CONV2D_GATHER_CUH

#include "common.cuh"

struct alignas(16) Tap {  // 16 bytes: one load
    int pixel;            // floats from Pixel::start to this tap's first channel
    int weight;           // floats from a filter's start to this tap
    uint32 bits;          // which two bits of Pixel::on_image it needs
    int channels;         // how many it has; 0 ends the table
};

struct Pixel {
    const float* start;  // where tap 0 reads; before the image's first float, if padding is there
    uint32 on_image;     // bit a: row a of the taps is on the image; bit kh + b: column b is
};

// kh + kw <= 31, so that the bits fit: 15 x 16 taps at most, and the end of the table.
constexpr int MAX_TAPS = 241;

__device__ inline uint32 tap_bits(int row, int column, int kh) {
    return 1u << row | 1u << (kh + column);
}

__device__ inline bool sees(const Pixel& p, const Tap& tap) {
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
