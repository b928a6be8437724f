"""Pooling on a GPU: the launches of kernels/pool2d.cu."""

from typing import Any

import numpy as np

from gpucnn import cuda
from gpucnn.device import Array, array_module
from gpucnn.integers import ceil_div
from gpucnn.ops._kernels import takes
from gpucnn.ops.geometry import Geometry
from gpucnn.ops.pool2d import portable as _pool2d_array

_THREADS = 256
_ROWS = 65535  # of a grid: the kernels go round if there are more images


def _takes(x: Array, v: Geometry) -> bool:
    """Whether the kernels take this: float32, and offsets inside an image have 31 bits."""
    return takes("pool2d", x) and max(v.h * v.w, v.oh * v.ow) * v.c < 2**31


def _launch(kernel: str, numbers: int, given: Array, v: Geometry, *rest: Any) -> None:
    """One thread for each of the `numbers` that an image of the result has."""
    grid = ceil_div(numbers, _THREADS), min(v.n, _ROWS)
    cuda.launch(kernel, grid, _THREADS, array_module(given).ascontiguousarray(given), *rest)


def max_forward(x: Array, v: Geometry, keep: bool) -> tuple[Array, tuple[Array, ...]]:
    if not _takes(x, v):
        return _pool2d_array.max_forward(x, v, keep)
    xp = array_module(x)
    y = xp.empty((v.n, v.oh, v.ow, v.c), np.float32)
    argmax = xp.empty(y.shape, np.int32) if keep else None  # places inside the windows
    _launch("max_pool2d_forward", v.oh * v.ow * v.c, x, v, y, argmax, v)
    return y, () if argmax is None else (argmax,)


def max_backward(dy: Array, kept: tuple[Array, ...], v: Geometry) -> Array:
    if not _takes(dy, v):
        return _pool2d_array.max_backward(dy, kept, v)
    dx = array_module(dy).empty((v.n, v.h, v.w, v.c), np.float32)
    _launch("max_pool2d_backward", v.h * v.w * v.c, dy, v, *kept, dx, v)
    return dx


def avg_forward(x: Array, v: Geometry, area: tuple[bool, int, int]) -> Array:
    if not _takes(x, v):
        return _pool2d_array.avg_forward(x, v, area)
    y = array_module(x).empty((v.n, v.oh, v.ow, v.c), np.float32)
    _launch("avg_pool2d_forward", v.oh * v.ow * v.c, x, v, y, v, *area)
    return y


def avg_backward(dy: Array, v: Geometry, area: tuple[bool, int, int]) -> Array:
    if not _takes(dy, v):
        return _pool2d_array.avg_backward(dy, v, area)
    dx = array_module(dy).empty((v.n, v.h, v.w, v.c), np.float32)
    _launch("avg_pool2d_backward", v.h * v.w * v.c, dy, v, dx, v, *area)
    return dx


def global_forward(x: Array) -> Array:
    """One window as large as the image."""
    v = Geometry.of("global_avg_pool2d", x.shape, (x.shape[1], x.shape[2]), 1, 0)
    return avg_forward(x, v, (False, 0, 0)).reshape(v.n, v.c)


def global_backward(dy: Array, shape: tuple[int, ...]) -> Array:
    v = Geometry.of("global_avg_pool2d", shape, (shape[1], shape[2]), 1, 0)
    return avg_backward(dy.reshape(v.n, 1, 1, v.c), v, (False, 0, 0))
