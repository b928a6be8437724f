// The gradient of a convolution's filters and bias by its definition, with every loop visible: a
// thread computes one number.  Read conv2d_plain.cu first; conv2d_grad_weight.cu computes the same.
//
//   thread -> dweight[oc, r, s, c]    loops over all N x OH x OW outputs, as does
//   thread -> dbias[oc]               the threads after those of dweight; none if dbias is null
//
//   x        (N, H, W, C), IMAGE           dy     (N, OH, OW, OC), ELEMENT
//   dweight  (OC, KH, KW, C/groups)        dbias  (OC), or null; both written (=)
//
// IMAGE and ELEMENT: float, half or bfloat16.  Float images are rounded to ELEMENT.
// Any geometry; 64-bit offsets.  Blocks of 256 threads (any smaller block works), at most 64
// registers a thread: 32 warps per multiprocessor.
// AlexNet uses it only on request, or where a layer has too few filters to fill a tile.

#include "common.cuh"
#include "ptx.cuh"

#ifndef IMAGE
#define IMAGE float
#endif
#ifndef ELEMENT
#define ELEMENT float
#endif

// x as an operand: of the precision of ELEMENT.
__device__ inline float operand(IMAGE x) {
    float value = to_float(x);
    return sizeof(IMAGE) > sizeof(ELEMENT) ? to_float(from_float<ELEMENT>(value)) : value;
}

__device__ inline float sum_of_filter(const ELEMENT* dy, int64 pixels, int oc_count) {
    float sum = 0.0f;
    for (int64 first = 0; first < pixels; first += 256) {  // short sums lose less to rounding
        float some = 0.0f;
        for (int64 pixel = first; pixel < min(first + 256, pixels); ++pixel)
            some += to_float(dy[pixel * oc_count]);
        sum += some;
    }
    return sum;
}

extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void conv2d_grad_weight_plain(
    const IMAGE* x, const ELEMENT* dy, float* dweight, float* dbias, Geometry g, int oc_count) {
    int channels = g.c / g.groups;
    int64 index = global_thread(), size = (int64)oc_count * g.kh * g.kw * channels;
    if (index >= size) {
        int64 oc = index - size;
        if (dbias && oc < oc_count)
            dbias[oc] = sum_of_filter(dy + oc, (int64)g.n * g.oh * g.ow, oc_count);
        return;
    }
    int c = index % channels;
    int64 tap = index / channels;
    int s = tap % g.kw;
    int r = tap / g.kw % g.kh;
    int oc = tap / g.kw / g.kh;

    int channel = oc / (oc_count / g.groups) * channels + c;
    float sum = 0.0f;
    for (int64 n = 0; n < g.n; ++n) {
        float image = 0.0f;  // sum each image, then the images: short sums lose less to rounding
        for (int i = 0; i < g.oh; ++i) {
            int row = i * g.stride_h - g.top + r * g.dilation_h;
            if (row < 0 || row >= g.h) continue;
            for (int j = 0; j < g.ow; ++j) {
                int column = j * g.stride_w - g.left + s * g.dilation_w;
                if (column < 0 || column >= g.w) continue;
                image += to_float(dy[((n * g.oh + i) * g.ow + j) * oc_count + oc]) *
                         operand(x[((n * g.h + row) * g.w + column) * g.c + channel]);
            }
        }
        sum += image;
    }
    dweight[index] = sum;
}
