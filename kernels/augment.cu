// A batch for training, out of a data set of bytes that lives on the device: pick, crop, flip,
// normalise, in one launch.
//
//   thread -> y[n, row, column, c]; it finds the one byte of the data set that belongs there
//
//   images   (count, H, W, C) uint8
//   draws    (N, 4) int64: which image, top and left of the crop in the padded image, and whether
//            to flip it
//   scale, shift   (C): y = byte * scale + shift, rounded twice, so that the CPU's bits come out
//   y        (N, size, size, C), written (=)
//   mode     the padding: 0 zeros, 1 the edge's pixel again, 2 reflected at the edge
//
// Grid: x covers the numbers of one image, y the images (and goes round if there are more than a
// grid has rows).  Blocks of 256 threads with at most 64 registers: 32 warps to a
// multiprocessor.  Zeros are zeros of the bytes: they are normalised as the image is.

#include "common.cuh"

// Where padded position `at` comes from along one axis; -1 where it is a zero.
__device__ inline int source(int at, int size, int mode) {
    if (at >= 0 && at < size) return at;
    if (mode == 0) return -1;
    if (mode == 1) return at < 0 ? 0 : size - 1;
    return at < 0 ? -at : 2 * (size - 1) - at;  // the edge itself is not repeated
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
