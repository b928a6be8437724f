"""Pooling on a GPU: the launches of kernels/pool2d.cu."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn import cuda
from gpucnn.device import Array, array_module
from gpucnn.integers import ceil_div
from gpucnn.ops._kernels import takes
from gpucnn.ops.geometry import Geometry
from gpucnn.ops.pool2d import portable

_THREADS = 256
_GRID_ROWS = 65535  # CUDA's limit; the kernels loop over further images


def _takes(x: Array, g: Geometry) -> bool:
    """Whether the kernels support x: float32, and offsets inside an image fit 31 bits."""
    return takes("pool2d", x) and max(g.h * g.w, g.oh * g.ow) * g.c < 2**31


def _launch(kernel: str, g: Geometry, size: int, *args: Any) -> None:
    """Launch one thread for each of the `size` elements of one image of the result."""
    cuda.launch(kernel, (ceil_div(size, _THREADS), min(g.n, _GRID_ROWS)), _THREADS, *args)


def max_forward(x: Array, g: Geometry, keep: bool) -> tuple[Array, portable.SavedMax | None]:
    """y (N, OH, OW, C) and, with `keep`, the state for backward."""
    if not _takes(x, g):
        return portable.max_forward(x, g, keep)
    xp = array_module(x)
    y = xp.empty((g.n, g.oh, g.ow, g.c), np.float32)
    argmax = xp.empty(y.shape, np.int32) if keep else None
    _launch(
        "max_pool2d_forward",
        g,
        g.oh * g.ow * g.c,
        xp.ascontiguousarray(x),  # (N, H, W, C)
        y,  # (N, OH, OW, C)
        argmax,  # (N, OH, OW, C) or None
        g,
    )
    return y, None if argmax is None else _SavedArgmax(argmax, g)


@dataclass
class _SavedArgmax:
    argmax: Array  # (N, OH, OW, C) int32: offset of the largest value inside its window
    g: Geometry

    def backward(self, dy: Array) -> Array:
        g, xp = self.g, array_module(dy)
        dx = xp.empty((g.n, g.h, g.w, g.c), np.float32)
        _launch(
            "max_pool2d_backward",
            g,
            g.h * g.w * g.c,
            xp.ascontiguousarray(dy),  # (N, OH, OW, C)
            self.argmax,  # (N, OH, OW, C)
            dx,  # (N, H, W, C)
            g,
        )
        return dx


def avg_forward(x: Array, g: Geometry, area: tuple[bool, int, int]) -> Array:
    """y (N, OH, OW, C) for x (N, H, W, C); area as in portable.pixels."""
    if not _takes(x, g):
        return portable.avg_forward(x, g, area)
    xp = array_module(x)
    y = xp.empty((g.n, g.oh, g.ow, g.c), np.float32)
    _launch(
        "avg_pool2d_forward",
        g,
        g.oh * g.ow * g.c,
        xp.ascontiguousarray(x),  # (N, H, W, C)
        y,  # (N, OH, OW, C)
        g,
        *area,
    )
    return y


def avg_backward(dy: Array, g: Geometry, area: tuple[bool, int, int]) -> Array:
    """dx (N, H, W, C) for dy (N, OH, OW, C); area as in portable.pixels."""
    if not _takes(dy, g):
        return portable.avg_backward(dy, g, area)
    xp = array_module(dy)
    dx = xp.empty((g.n, g.h, g.w, g.c), np.float32)
    _launch(
        "avg_pool2d_backward",
        g,
        g.h * g.w * g.c,
        xp.ascontiguousarray(dy),  # (N, OH, OW, C)
        dx,  # (N, H, W, C)
        g,
        *area,
    )
    return dx


def global_forward(x: Array) -> Array:
    """The mean (N, C) of x (N, H, W, C): one window as large as the image."""
    g = Geometry.of("global_avg_pool2d", x.shape, (x.shape[1], x.shape[2]))
    return avg_forward(x, g, (False, 0, 0)).reshape(g.n, g.c)


def global_backward(dy: Array, shape: tuple[int, ...]) -> Array:
    """dx of `shape` (N, H, W, C) for dy (N, C)."""
    g = Geometry.of("global_avg_pool2d", shape, (shape[1], shape[2]))
    return avg_backward(dy.reshape(g.n, 1, 1, g.c), g, (False, 0, 0))
