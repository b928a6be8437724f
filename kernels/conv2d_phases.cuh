// The phases of a convolution's input gradient: conv2d_grad_input.cu explains them.

#ifndef GPUCNN_CONV2D_PHASES_CUH
#define GPUCNN_CONV2D_PHASES_CUH

#include "common.cuh"
#include "conv2d_gather.cuh"

// One axis of a phase: its live taps first, first + step, ... and the outputs they read.
struct Axis {
    int phase, pixels;       // pixel i of the phase is pixel phase + i * stride of the image
    int first, step, count;  // live taps
    int output, distance;    // the output that tap `first` of pixel 0 reads; the distance from
                             // there to the output of the next live tap
};

__device__ inline Axis live_taps(int phase, int size, int stride, int before, int dilation,
                                 int taps) {
    Axis axis = {phase, phase < size ? ceil_div(size - phase, stride) : 0, 0, 1, 0, 0, 0};
    for (int tap = 0; tap < taps; ++tap) {
        if ((phase + before - tap * dilation) % stride != 0) continue;
        if (axis.count == 0) axis.first = tap;
        if (axis.count == 1) axis.step = tap - axis.first;
        ++axis.count;
    }
    axis.output = (phase + before - axis.first * dilation) / stride;
    axis.distance = -axis.step * dilation / stride;
    return axis;
}

// The work of a block.  Kept in shared memory and reread where needed: registers are scarce in the
// main loop.
struct Phase {
    Axis rows, columns;
    int group, pixels;
};

__device__ inline Phase phase_of(int block, const Geometry& g) {
    int phases = g.stride_h * g.stride_w, phase = block % phases;
    Axis rows = live_taps(phase / g.stride_w, g.h, g.stride_h, g.top, g.dilation_h, g.kh);
    Axis columns = live_taps(phase % g.stride_w, g.w, g.stride_w, g.left, g.dilation_w, g.kw);
    return Phase{rows, columns, block / phases, g.n * rows.pixels * columns.pixels};
}

// Where pixel m of the phase starts to read dy, and which of its live taps have an output.
// first: the unit of the first filter that the thread reads; oc_count: units per pixel of dy.
template <bool VECTOR>
__device__ inline Pixel<VECTOR> output_pixel(int first, int m, const Phase& phase,
                                             const Geometry& g, int oc_count) {
    const Axis &rows = phase.rows, &columns = phase.columns;
    int j = m % columns.pixels, i = m / columns.pixels % rows.pixels;
    int n = m / columns.pixels / rows.pixels;
    int row = i + rows.output, column = j + columns.output;
    uint32 on_image = bits_inside(row, rows.distance, rows.count, g.oh, 0) |
                      bits_inside(column, columns.distance, columns.count, g.ow, g.kh);
    int64 start = (((int64)n * g.oh + row) * g.ow + column) * oc_count + first;
    bool exists = n < g.n;  // past the end: an offset that cannot overflow
    return {(typename Pixel<VECTOR>::Offset)(exists ? start : 0), exists ? on_image : 0};
}

#endif
