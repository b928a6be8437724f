"""Bank mode compared with conflicts computed by hand, and on a seeded fault."""

import re

import numpy as np
import pytest
from victims import CODE, HEADER, VICTIMS

from gpucnn import cudasim
from gpucnn.errors import KernelError

STRIDES = """#include "ptx.h"
extern "C" __global__ void strided(float* y, int stride) {
    __shared__ __align__(16) float x[32 * 33];
    for (int i = threadIdx.x; i < 32 * 33; i += 32) x[i] = i;
    __syncthreads();
    y[threadIdx.x] = x[threadIdx.x * stride];
}
extern "C" __global__ void pairs(float2* y, int stride) {
    __shared__ float2 x[32 * 17];
    for (int i = threadIdx.x; i < 32 * 17; i += 32) x[i] = make_float2(i, i);
    __syncthreads();
    y[threadIdx.x] = x[threadIdx.x * stride];
}
extern "C" __global__ void quads(float4* y, int stride) {
    __shared__ float4 x[32 * 9];
    for (int i = threadIdx.x; i < 32 * 9; i += 32) x[i] = make_float4(i, i, i, i);
    __syncthreads();
    y[threadIdx.x] = x[threadIdx.x * stride];
}
extern "C" __global__ void looped(float* y, int stride) {
    __shared__ float x[32 * 33];
    for (int i = threadIdx.x; i < 32 * 33; i += 32) x[i] = i;
    __syncthreads();
    float sum = 0.0f;  // lanes leave the loop one after another; the others stay together
    for (int i = 0; i <= (int)threadIdx.x; ++i) sum += x[(threadIdx.x + i * 32) * stride % 1056];
    y[threadIdx.x] = sum;
}
extern "C" __global__ void matrices(unsigned* y, int stride) {  // ldmatrix: 8 rows of 16 bytes
    __shared__ __align__(16) unsigned x[8 * 40];
    for (int i = threadIdx.x; i < 8 * 40; i += 32) x[i] = i;
    __syncwarp();
    unsigned r[1];
    load_matrices(r, x + threadIdx.x % 8 * stride);
    y[threadIdx.x] = r[0];
}
extern "C" __global__ void copies(float4* y, int stride) {  // cp.async: 16 bytes a lane
    __shared__ float4 x[32 * 9];
    copy_async<16>(x + threadIdx.x * stride, y + threadIdx.x);
    copy_async_commit();
    copy_async_wait<0>();
}
extern "C" __global__ void counts(float4* y, int stride) {
    __shared__ int x[32 * 33];
    for (int i = threadIdx.x; i < 32 * 33; i += 32) x[i] = 0;
    __syncthreads();
    atomicAdd(&x[threadIdx.x * stride], 1);
}
"""


def ways(kernel: str, stride: int, allowed: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The ways of the bank conflict that ended the kernel, or 0."""
    monkeypatch.setenv("GPUCNN_CUDASIM", allowed)
    y = cudasim.zeros((32, 4), np.float32)
    function = cudasim.RawModule(code=STRIDES).get_function(kernel)
    try:
        function((1,), (32,), (y, np.int32(stride)))
    except KernelError as error:
        return int(re.search(r"(\d+)-way", str(error))[1])
    return 0


@pytest.mark.parametrize(
    ("kernel", "stride", "expected"),
    [
        ("strided", 0, 1),  # one word for all
        *[("strided", stride, np.gcd(stride, 32)) for stride in (1, 2, 3, 4, 8, 12, 32, 33)],
        ("pairs", 1, 1),  # half a warp reads 128 bytes
        *[("pairs", stride, np.gcd(2 * stride, 32) / 2) for stride in (2, 3, 4, 16, 17)],
        ("quads", 1, 1),  # a quarter of a warp reads 128 bytes
        *[("quads", stride, np.gcd(4 * stride, 32) / 4) for stride in (2, 3, 8, 9)],
        ("looped", 1, 1),
        ("looped", 2, 2),
        *[("matrices", stride, np.gcd(stride, 32) / 4) for stride in (4, 8, 16, 20, 32, 36)],
        *[("copies", stride, np.gcd(4 * stride, 32) / 4) for stride in (1, 2, 8, 9)],
        ("counts", 1, 1),
        ("counts", 8, 8),
    ],
)
def test_an_access_takes_as_many_passes_as_the_rule_gives(kernel, stride, expected, monkeypatch):
    assert ways(kernel, stride, "banks", monkeypatch) == (expected if expected > 1 else 0)
    if expected > 1:
        assert ways(kernel, stride, f"banks={int(expected)}", monkeypatch) == 0
        if expected > 2:
            assert ways(kernel, stride, f"banks={int(expected) - 1}", monkeypatch) == expected


def test_a_conflict_names_kernel_thread_array_and_line(monkeypatch):
    monkeypatch.setenv("GPUCNN_CUDASIM", "banks")
    function = cudasim.RawModule(code='#line 1 "here.cu"\n' + STRIDES).get_function("strided")
    with pytest.raises(KernelError) as caught:
        function((1,), (32,), (cudasim.zeros(32, np.float32), np.int32(32)))
    assert str(caught.value) == (
        "strided: block (0, 0, 0), thread (31, 0, 0) takes part in a 32-way bank conflict "
        "over byte 3968 of shared x at here.cu:6"
    )


@pytest.mark.parametrize(("columns", "caught"), [(33, False), (32, True)])
def test_missing_padding_is_detected(columns, caught, monkeypatch):
    monkeypatch.setenv("GPUCNN_CUDASIM", "banks")
    transpose = next(victim for victim in VICTIMS if victim.name == "transpose")
    code = CODE["transpose"].replace("tile[32][33]", f"tile[32][{columns}]")
    given = [cudasim.asarray(a) if isinstance(a, np.ndarray) else a for a in transpose.arguments()]
    function = cudasim.RawModule(code=HEADER + code).get_function("transpose")
    if not caught:
        function(transpose.grid, transpose.block, tuple(given))
        return
    with pytest.raises(KernelError, match=r"32-way bank conflict over .* of shared tile"):
        function(transpose.grid, transpose.block, tuple(given))
