"""A folder of small kernels in place of kernels/, for tests of declarations and launches."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpucnn import cuda
from gpucnn.cuda import compiler, declarations, launcher
from gpucnn.device import Device
from gpucnn.errors import DeviceError

SOURCE = """
#include "inner.cuh"
extern "C" __global__ void scale(const float* __restrict__ x, float* y, float factor, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i] * factor;
}
/* extern "C" __global__ void commented_out(int* x) { } */
extern "C" __global__ __launch_bounds__(THREADS, 2) void
bounded(unsigned char* bytes, const long long* offsets,
        unsigned long long seed) {
    bytes[threadIdx.x] = (unsigned char)(seed >> 32);
}
extern "C" __global__ void geometry(int* out, const Geometry window, bool flag) {
    out[0] = window.n; out[1] = window.groups; out[2] = flag; out[3] = VALUE;
}
extern "C" __global__ void optional(const float* maybe, int* out) { out[0] = maybe ? 1 : 0; }
extern "C" __global__ wide_offsets void wide(unsigned char* x) { x[0] = 1; }
extern "C" __global__ void narrow(unsigned char* x) { x[0] = 1; }
extern "C" __global__ void dynamic(int* out, int n) {
    extern __shared__ int numbers[];
    numbers[threadIdx.x] = threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = numbers[n - 1 - threadIdx.x];
}
"""
INNER = """
struct Geometry {
    int n, h, w, c;  // as in Python
    int kh, kw, oh, ow, stride_h, stride_w, top, bottom, left, right;
    int dilation_h, dilation_w, groups;
};
#ifndef VALUE
#define VALUE 7
#endif
#define THREADS 64
"""
FILES = {"outer.cu": SOURCE.lstrip(), "inner.cuh": INNER.lstrip(), "ptx.cuh": "\n"}

CACHES = (
    declarations._read,
    cuda.kernels,
    launcher.checked_kernel,
    compiler.load_module,
    launcher._check_struct,
)


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The folder of outer.cu and its headers."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(declarations, "KERNELS", tmp_path)
    for cache in CACHES:
        cache.cache_clear()
    yield tmp_path
    for cache in CACHES:
        cache.cache_clear()


@pytest.fixture
def xp(files: Path) -> Any:
    """The array module of cudasim, which launches the kernels of `files`."""
    try:
        return Device.parse("cudasim").xp
    except DeviceError as error:
        pytest.skip(f"no C++ compiler: {error}")
