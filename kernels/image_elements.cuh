// Which element of an image a thread of a memory-bound kernel owns.

#ifndef GPUCNN_IMAGE_ELEMENTS_CUH
#define GPUCNN_IMAGE_ELEMENTS_CUH

#include "vector.cuh"

struct Element {
    int row, column, channel;
};

// Element `index` of an image with this many columns, and groups of N channels in a pixel.
template <int N>
__device__ inline Element element_at(int index, const Divisor& groups, const Divisor& columns) {
    int pixel = divide(index, groups), row = divide(pixel, columns);
    return Element{row, pixel - row * columns.divisor, (index - pixel * groups.divisor) * N};
}

#endif
