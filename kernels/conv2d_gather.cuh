// Address tables of the tiled convolutions, which keep address arithmetic out of the main loop.
//
//   row of the left matrix   one pixel: a thread keeps one offset and one bit mask for it
//   shared table             one entry per tap: its distance from a pixel's offset, the same for
//                            all pixels
//
// Which taps fall off the image is computed once per pixel: one bit per window row and one per
// window column.  A tap is on the image if both its bits are set.
//
// Offsets count units of UNIT floats.  For 16-byte loads all offsets are multiples of 4 floats, and
// an int that counts quads reaches 2^33 floats with half the registers of a pointer.

#ifndef GPUCNN_CONV2D_GATHER_CUH
#define GPUCNN_CONV2D_GATHER_CUH

#include "common.cuh"

template <bool VECTOR>
constexpr int UNIT = VECTOR ? 4 : 1;

struct alignas(16) Tap {  // 16 bytes: one load
    int pixel;            // units from Pixel::start to this tap's first channel
    int weight;           // units from the start of a filter to this tap
    uint32 bits;          // the two bits of Pixel::on_image that it needs
    int channels;         // its length in units; 0 ends the table
};

template <bool VECTOR>
struct Pixel {
    using Offset = int64;
    Offset start;     // the unit of tap 0; before the image where tap 0 is padding
    uint32 on_image;  // bit a: row a of the taps is on the image; bit kh + b: column b
};

template <>
struct Pixel<true> {
    using Offset = int;
    Offset start;
    uint32 on_image;
};

// kh + kw <= 31, so that the bits fit in 32: at most 15 x 16 taps, plus the table's end.
constexpr int MAX_TAPS = 241;

__device__ inline uint32 tap_bits(int row, int column, int kh) {
    return 1u << row | 1u << (kh + column);
}

template <bool VECTOR>
__device__ inline bool sees(const Pixel<VECTOR>& p, const Tap& tap) {
    return (p.on_image & tap.bits) == tap.bits;
}

// Bit first + i is set if position start + i * step, for i in 0..count-1, lies in 0..size-1.
__device__ inline uint32 bits_inside(int start, int step, int count, int size, int first) {
    uint32 bits = 0;
    for (int tap = 0; tap < count; ++tap) {
        int at = start + tap * step;
        if (at >= 0 && at < size) bits |= 1u << (first + tap);
    }
    return bits;
}

// Where output pixel m starts to read, and which taps of its window are on the image.
// first: the unit of the first channel that the thread reads.
template <bool VECTOR>
__device__ inline Pixel<VECTOR> input_pixel(int first, int m, int count, const Geometry& g) {
    int j = m % g.ow, i = m / g.ow % g.oh, n = m / g.ow / g.oh;
    int row = i * g.stride_h - g.top, column = j * g.stride_w - g.left;
    uint32 on_image = bits_inside(row, g.dilation_h, g.kh, g.h, 0) |
                      bits_inside(column, g.dilation_w, g.kw, g.w, g.kh);
    int64 start = (((int64)n * g.h + row) * g.w + column) * (g.c / UNIT<VECTOR>) + first;
    bool exists = m < count;  // past the end: an offset that cannot overflow
    return {(typename Pixel<VECTOR>::Offset)(exists ? start : 0), exists ? on_image : 0};
}

// c: units per pixel of x; channels: units per tap.
__device__ inline Tap input_tap(int tap, const Geometry& g, int c, int channels) {
    int r = tap / g.kw, s = tap % g.kw;
    return Tap{(r * g.dilation_h * g.w + s * g.dilation_w) * c, tap * channels,
               tap_bits(r, s, g.kh), channels};
}

#endif
