// Convolution by its definition, with every loop visible: one thread computes one element.  Read
// this file first; the tiled kernels beside it compute the same and are tested against it.  They
// load each element once per tile, these once per use.
//
//   forward      thread -> y[n, i, j, oc]          loops over a window: KH x KW x C/groups inputs
//   grad_input   thread -> dx[n, h, w, c]          loops over the outputs that read this input
//
// conv2d_grad_weight_plain.cu continues with the gradient of the filters.
//
//   x, dx  (N, H, W, C) IMAGE         weight  (OC, KH, KW, C/groups) float
//   y, dy  (N, OH, OW, OC) ELEMENT    bias    (OC) float, or null
//   mask   (N, H, W, C) IMAGE, or null: dx = mask_scale * dx where mask is not 0, else 0
//
// IMAGE and ELEMENT are float, half or bfloat16.  Factors have the precision of ELEMENT: floats are
// rounded to it when they have been loaded.  Sums are float.
//
// All results are written (=).  Any geometry; 64-bit offsets.  Adjacent threads own adjacent
// channels, so a warp's accesses are coalesced.  Blocks of 256 threads (any smaller block works),
// at most 64 registers a thread: 32 warps per multiprocessor.
// AlexNet uses them only on request, or where a layer has too few channels or filters to fill a
// tile.

#include "common.cuh"
#include "ptx.cuh"

#ifndef IMAGE
#define IMAGE float
#endif
#ifndef ELEMENT
#define ELEMENT float
#endif

// x as a factor: of the precision of ELEMENT.
template <class E>
__device__ inline float factor(E x) {
    float value = to_float(x);
    return sizeof(E) > sizeof(ELEMENT) ? to_float(from_float<ELEMENT>(value)) : value;
}

extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void conv2d_forward_plain(
    const IMAGE* x, const float* weight, const float* bias, ELEMENT* y, Geometry g, int oc_count,
    int relu) {
    int64 index = global_thread();
    if (index >= (int64)g.n * g.oh * g.ow * oc_count) return;
    int oc = index % oc_count;
    int64 pixel = index / oc_count;
    int j = pixel % g.ow;
    int i = pixel / g.ow % g.oh;
    int64 n = pixel / g.ow / g.oh;

    int channels = g.c / g.groups;  // per filter
    int first = oc / (oc_count / g.groups) * channels;
    float sum = 0.0f;
    for (int r = 0; r < g.kh; ++r) {
        int row = i * g.stride_h - g.top + r * g.dilation_h;
        if (row < 0 || row >= g.h) continue;  // padding adds nothing
        for (int s = 0; s < g.kw; ++s) {
            int column = j * g.stride_w - g.left + s * g.dilation_w;
            if (column < 0 || column >= g.w) continue;
            const IMAGE* pixel_in = x + ((n * g.h + row) * g.w + column) * g.c + first;
            const float* tap = weight + (((int64)oc * g.kh + r) * g.kw + s) * channels;
            for (int c = 0; c < channels; ++c) sum += factor(pixel_in[c]) * factor(tap[c]);
        }
    }
    if (bias) sum += bias[oc];
    y[index] = from_float<ELEMENT>(relu && sum < 0.0f ? 0.0f : sum);  // NaN passes through
}

extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void conv2d_grad_input_plain(
    const ELEMENT* dy, const float* weight, const IMAGE* mask, IMAGE* dx, Geometry g, int oc_count,
    float mask_scale) {
    int64 index = global_thread();
    if (index >= (int64)g.n * g.h * g.w * g.c) return;
    int c = index % g.c;
    int64 pixel = index / g.c;
    int column = pixel % g.w;
    int row = pixel / g.w % g.h;
    int64 n = pixel / g.w / g.h;

    int channels = g.c / g.groups, filters = oc_count / g.groups;
    int first = c / channels * filters;  // the first filter that reads channel c
    float sum = 0.0f;
    for (int r = 0; r < g.kh; ++r) {
        // Tap r of output row i reads input row i * stride - top + r * dilation: solve for i.
        int up = row + g.top - r * g.dilation_h;
        if (up < 0 || up % g.stride_h != 0 || up / g.stride_h >= g.oh) continue;
        for (int s = 0; s < g.kw; ++s) {
            int across = column + g.left - s * g.dilation_w;
            if (across < 0 || across % g.stride_w != 0 || across / g.stride_w >= g.ow) continue;
            int64 output = (n * g.oh + up / g.stride_h) * g.ow + across / g.stride_w;
            const ELEMENT* pixel_out = dy + output * oc_count + first;
            for (int f = 0; f < filters; ++f) {
                int64 tap = ((int64)(first + f) * g.kh + r) * g.kw + s;
                sum += factor(pixel_out[f]) * factor(weight[tap * channels + c % channels]);
            }
        }
    }
    if (mask) sum = to_float(mask[index]) == 0.0f ? 0.0f : mask_scale * sum;
    dx[index] = from_float<IMAGE>(sum);
}
