// Convolution by its definition, with every loop visible: one thread computes one element.  Read
// this file first; the tiled kernels beside it compute the same and are tested against it.  They
// load each element once per tile, these once per use.
//
//   forward      thread -> y[n, i, j, oc]          loops over a window: KH x KW x C/groups inputs
//   grad_input   thread -> dx[n, h, w, c]          loops over the outputs that read this input
//   grad_weight  thread -> dweight[oc, r, s, c]    loops over all N x OH x OW outputs
//
//   x, dx  (N, H, W, C)          weight, dweight  (OC, KH, KW, C/groups)
//   y, dy  (N, OH, OW, OC)       bias             (OC), or null
//
// All results are written (=).  Any geometry; 64-bit offsets.  Adjacent threads own adjacent
// channels, so a warp's accesses are coalesced.  Blocks of 256 threads (any smaller block works),
// at most 64 registers a thread: 32 warps per multiprocessor.
// AlexNet uses them only on request, or where a layer has too few channels or filters to fill a
// tile.

#include "common.cuh"

extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void conv2d_forward_plain(
    const float* x, const float* weight, const float* bias, float* y, Geometry g, int oc_count,
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
            const float* pixel_in = x + ((n * g.h + row) * g.w + column) * g.c + first;
            const float* tap = weight + (((int64)oc * g.kh + r) * g.kw + s) * channels;
            for (int c = 0; c < channels; ++c) sum += pixel_in[c] * tap[c];
        }
    }
    if (bias) sum += bias[oc];
    y[index] = relu && sum < 0.0f ? 0.0f : sum;  // NaN passes through
}

extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void conv2d_grad_input_plain(
    const float* dy, const float* weight, float* dx, Geometry g, int oc_count) {
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
            const float* pixel_out = dy + output * oc_count + first;
            for (int f = 0; f < filters; ++f) {
                int64 tap = ((int64)(first + f) * g.kh + r) * g.kw + s;
                sum += pixel_out[f] * weight[tap * channels + c % channels];
            }
        }
    }
    dx[index] = sum;
}

extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void conv2d_grad_weight_plain(
    const float* x, const float* dy, float* dweight, Geometry g, int oc_count) {
    int channels = g.c / g.groups;
    int64 index = global_thread();
    if (index >= (int64)oc_count * g.kh * g.kw * channels) return;
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
                image += dy[((n * g.oh + i) * g.ow + j) * oc_count + oc] *
                         x[((n * g.h + row) * g.w + column) * g.c + channel];
            }
        }
        sum += image;
    }
    dweight[index] = sum;
}
