// Assemble a training batch from a uint8 data set on the device: gather, crop, flip and normalise
// in one launch.
//
//   thread -> LANES adjacent numbers (16 bytes) of y[n], for the images n of its grid row; it reads
//             one byte for each
//
//   images   (data set, H, W, C) uint8
//   draws    (N, 4) int64: image index, top and left of the crop in the padded image, flip (0 or 1)
//   scale, shift   (C): y = byte * scale + shift, rounded after each step to match the CPU's bits
//   y        (N, size, size, C) of type X, written (=)
//   count    N, the images of the batch
//   mode     padding: 0 zeros, 1 edge pixel repeated, 2 reflected without repeating the edge
//
// Grid: x covers the elements of one output image, y the images (with a stride loop, as a grid has
// at most 65535 rows).  Blocks of 256 threads, at most 64 registers a thread: 32 warps per
// multiprocessor.  Zero padding inserts zero bytes, which are normalised like any other.

#ifndef X
#define X float  // or half, bfloat16
#endif

#include "vector.cuh"

// The source index of padded position `at` along one axis; -1 for zero padding.
__device__ inline int source(int at, int size, int mode) {
    if (at >= 0 && at < size) return at;
    if (mode == 0) return -1;
    if (mode == 1) return at < 0 ? 0 : size - 1;
    return at < 0 ? -at : 2 * (size - 1) - at;
}

extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void crop_flip_normalize(
    const uint8* images, const int64* draws, const float* scale, const float* shift, X* y,
    int count, int h, int w, int padding, int mode, Divisor channels, Divisor columns) {
    int size = columns.divisor, c = channels.divisor, image = size * size * c;
    int first = (blockIdx.x * blockDim.x + threadIdx.x) * LANES;
    if (first >= image) return;
    int pixel = divide(first, channels), first_row = divide(pixel, columns);
    for (int64 n = blockIdx.y; n < count; n += gridDim.y) {
        const int64* draw = draws + 4 * n;
        const uint8* bytes = images + draw[0] * h * w * c;
        int top = (int)draw[1] - padding, left = (int)draw[2] - padding;
        bool flip = draw[3];
        int channel = first - pixel * c, row = first_row, column = pixel - first_row * size;
        float v[LANES];
#pragma unroll
        for (int i = 0; i < LANES; ++i) {
            v[i] = 0.0f;
            int from_row = source(row + top, h, mode);
            int from_column = source((flip ? size - 1 - column : column) + left, w, mode);
            if (from_row >= 0 && from_column >= 0 && first + i < image)
                v[i] = bytes[(from_row * w + from_column) * c + channel];
            v[i] = __fadd_rn(__fmul_rn(v[i], scale[channel]), shift[channel]);
            if (++channel == c) {
                channel = 0;
                if (++column == size) {
                    column = 0;
                    ++row;
                }
            }
        }
        store_up_to(y + n * image + first, image - first, v);
    }
}
