"""Pooling on a GPU: the launches of kernels/pool2d.cu."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn import cuda
from gpucnn.device import Array, array_module
from gpucnn.integers import ceil_div
from gpucnn.ops._exact import narrowed, widened
from gpucnn.ops._kernels import Divisor, defines, takes, vector_width
from gpucnn.ops.geometry import Geometry
from gpucnn.ops.pool2d import portable
from gpucnn.ops.relu import masked

_THREADS = 256
_GRID_ROWS = 65535  # CUDA's limit; the kernels loop over further images
_LARGEST_BYTE = 255  # pixels of a window whose winner is one byte


def _takes(x: Array, g: Geometry) -> bool:
    """Whether the kernels support x: its dtype, and offsets inside an image that fit 31 bits."""
    return takes(x) and max(g.h * g.w, g.oh * g.ow) * g.c < 2**31


def _launch(kernel: str, g: Geometry, threads: int, *args: Any, defines: Mapping[str, str]) -> None:
    """Launch `threads` threads for each image."""
    grid = ceil_div(threads, _THREADS), min(g.n, _GRID_ROWS)
    cuda.launch(kernel, grid, _THREADS, *args, defines=defines)


def max_forward(x: Array, g: Geometry, keep: bool) -> tuple[Array, portable.SavedMax | None]:
    """y (N, OH, OW, C) and, with `keep`, the state for backward."""
    if not _takes(x, g):
        return portable.max_forward(x, g, keep)
    xp = array_module(x)
    x, y = xp.ascontiguousarray(x), xp.empty((g.n, g.oh, g.ow, g.c), x.dtype)
    small = g.kh * g.kw <= _LARGEST_BYTE
    winners = xp.empty(y.shape, np.uint8 if small else np.int32) if keep else None
    groups = g.c // vector_width(g.c, x)
    _launch(
        "max_pool2d_forward",
        g,
        g.oh * g.ow * groups,
        x,  # (N, H, W, C)
        y,  # (N, OH, OW, C)
        winners,  # (N, OH, OW, C) or None
        g,
        Divisor.of(groups),
        Divisor.of(g.ow),
        defines=_defines(x, small),
    )
    return y, None if winners is None else _SavedWinners(winners, g)


def _defines(x: Array, small: bool) -> dict[str, str]:
    """small: winners are bytes; also for average pooling, which shares a module with them."""
    return {**defines(x.dtype), "WINNER": "uint8" if small else "int"}


@dataclass
class _SavedWinners:
    winners: Array  # (N, OH, OW, C): offset of the largest value inside its window
    g: Geometry

    def backward(self, dy: Array, y: Array | None = None, scale: float = 1.0) -> Array:
        """dx for dy; with y, the pooled result, dy counts times `scale`, and as 0 where y is 0."""
        g, xp = self.g, array_module(dy)
        dy, dx = xp.ascontiguousarray(dy), xp.empty((g.n, g.h, g.w, g.c), dy.dtype)
        groups = g.c // vector_width(g.c, dy)
        arrays = (
            dy,  # (N, OH, OW, C)
            y,  # (N, OH, OW, C) or None
            self.winners,  # (N, OH, OW, C)
            dx,  # (N, H, W, C)
        )
        chosen = _defines(dy, self.winners.dtype == np.uint8)
        if g.stride_h >= g.kh and g.stride_w >= g.kw:
            rows, columns = ceil_div(g.h + g.top, g.stride_h), ceil_div(g.w + g.left, g.stride_w)
            cells = rows * columns * groups
            _launch(
                "max_pool2d_backward_cells",
                g,
                cells,
                *arrays,
                scale,
                g,
                cells,
                Divisor.of(groups),
                Divisor.of(columns),
                defines=chosen,
            )
            return dx
        _launch(
            "max_pool2d_backward",
            g,
            g.h * g.w * groups,
            *arrays,
            scale,
            g,
            Divisor.of(groups),
            Divisor.of(g.w),
            Divisor.of(g.stride_h),
            Divisor.of(g.stride_w),
            defines=chosen,
        )
        return dx


def max_backward(dy: Array, saved: portable.SavedMax, y: Array | None, scale: float) -> Array:
    """dx for dy; with y, the pooled result, dy counts times `scale`, and as 0 where y is 0."""
    if isinstance(saved, _SavedWinners):
        return saved.backward(dy, y, scale)
    return narrowed(saved.backward(widened(dy if y is None else masked(dy, y, scale))), dy.dtype)


def avg_forward(x: Array, g: Geometry, area: tuple[bool, int, int]) -> Array:
    """y (N, OH, OW, C) for x (N, H, W, C); area as in portable.pixels."""
    if not _takes(x, g):
        return narrowed(portable.avg_forward(widened(x), g, area), x.dtype)
    xp = array_module(x)
    x, y = xp.ascontiguousarray(x), xp.empty((g.n, g.oh, g.ow, g.c), x.dtype)
    groups = g.c // vector_width(g.c, x)
    _launch(
        "avg_pool2d_forward",
        g,
        g.oh * g.ow * groups,
        x,  # (N, H, W, C)
        y,  # (N, OH, OW, C)
        g,
        *area,
        Divisor.of(groups),
        Divisor.of(g.ow),
        defines=_defines(x, True),
    )
    return y


def avg_backward(dy: Array, g: Geometry, area: tuple[bool, int, int]) -> Array:
    """dx (N, H, W, C) for dy (N, OH, OW, C); area as in portable.pixels."""
    if not _takes(dy, g):
        return narrowed(portable.avg_backward(widened(dy), g, area), dy.dtype)
    xp = array_module(dy)
    dy, dx = xp.ascontiguousarray(dy), xp.empty((g.n, g.h, g.w, g.c), dy.dtype)
    groups = g.c // vector_width(g.c, dy)
    _launch(
        "avg_pool2d_backward",
        g,
        g.h * g.w * groups,
        dy,  # (N, OH, OW, C)
        dx,  # (N, H, W, C)
        g,
        *area,
        Divisor.of(groups),
        Divisor.of(g.w),
        Divisor.of(g.stride_h),
        Divisor.of(g.stride_w),
        defines=_defines(dy, True),
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
