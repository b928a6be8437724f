// Steps through output pixels, and keeps the pixel of x that one tap of each reads.

#ifndef GPUCNN_PIXEL_WALK_CUH
#define GPUCNN_PIXEL_WALK_CUH

#include "common.cuh"

struct Walk {
    int image, row, column;
    int row_end, column_end;  // the first row and column past this tap's: carry there
};

// Some output pixels as images, rows and columns of x: a step adds these and carries.
struct alignas(16) Stride {
    int images, rows, columns;
    int image_size;  // in numbers
};

__device__ inline Stride stride_of(int pixels, const Geometry& g) {
    int image = g.oh * g.ow;
    return Stride{pixels / image, pixels % image / g.ow * g.stride_h, pixels % g.ow * g.stride_w,
                  g.h * g.w * g.c};
}

__device__ inline Walk start_walk(int p, int tap, const Geometry& g) {
    int row0 = tap / g.kw * g.dilation_h - g.top, column0 = tap % g.kw * g.dilation_w - g.left;
    return Walk{p / g.ow / g.oh, p / g.ow % g.oh * g.stride_h + row0,
                p % g.ow * g.stride_w + column0, g.oh * g.stride_h + row0,
                g.ow * g.stride_w + column0};
}

__device__ inline void step(Walk& walk, const Stride& by, const Geometry& g) {
    walk.image += by.images;
    walk.row += by.rows;
    walk.column += by.columns;
    if (walk.column >= walk.column_end) {
        walk.column -= g.ow * g.stride_w;
        walk.row += g.stride_h;
    }
    if (walk.row >= walk.row_end) {
        walk.row -= g.oh * g.stride_h;
        ++walk.image;
    }
}

__device__ inline bool on_image(int row, int column, const Geometry& g) {
    return (uint32)row < (uint32)g.h && (uint32)column < (uint32)g.w;
}

#endif
