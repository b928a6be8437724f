// Assemble a training batch from a uint8 data set on the device: gather, crop, flip and normalise
// in one launch.
//
//   thread -> y[n, row, column, c] for the images n of its grid row; it reads one byte for each
//
//   images   (data set, H, W, C) uint8
//   draws    (N, 4) int64: image index, top and left of the crop in the padded image, flip (0 or 1)
//   scale, shift   (C): y = byte * scale + shift, rounded after each step to match the CPU's bits
//   y        (N, size, size, C), written (=)
//   count    N, the images of the batch
//   mode     padding: 0 zeros, 1 edge pixel repeated, 2 reflected without repeating the edge
//
// Grid: x covers the elements of one output image, y the images (with a stride loop, as a grid has
// at most 65535 rows).  Blocks of 256 threads, at most 64 registers a thread: 32 warps per
// multiprocessor.  Zero padding inserts zero bytes, which are normalised like any other.

#include "common.cuh"

// The source index of padded position `at` along one axis; -1 for zero padding.
__device__ inline int source(int at, int size, int mode) {
    if (at >= 0 && at < size) return at;
    if (mode == 0) return -1;
    if (mode == 1) return at < 0 ? 0 : size - 1;
    return at < 0 ? -at : 2 * (size - 1) - at;
}

extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void crop_flip_normalize(
    const unsigned char* images, const int64* draws, const float* scale, const float* shift,
    float* y, int count, int h, int w, int c, int size, int padding, int mode) {
    int index = blockIdx.x * blockDim.x + threadIdx.x;
    int image = size * size * c;
    if (index >= image) return;
    int channel = index % c, column = index / c % size, row = index / c / size;
    for (int64 n = blockIdx.y; n < count; n += gridDim.y) {
        const int64* draw = draws + 4 * n;
        int mirrored = draw[3] ? size - 1 - column : column;
        int from_row = source(row + (int)draw[1] - padding, h, mode);
        int from_column = source(mirrored + (int)draw[2] - padding, w, mode);
        float byte = 0.0f;
        if (from_row >= 0 && from_column >= 0)
            byte = images[((draw[0] * h + from_row) * w + from_column) * c + channel];
        y[n * image + index] = __fadd_rn(__fmul_rn(byte, scale[channel]), shift[channel]);
    }
}
