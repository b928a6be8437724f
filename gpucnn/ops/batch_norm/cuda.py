"""Batch normalisation on a GPU: the launches of kernels/batch_norm.cu.

x and dy are float32 or half precision; parameters, statistics and sums are float32.
"""

from typing import Any

import numpy as np

from gpucnn import cuda
from gpucnn.device import Array, array_module, device_of
from gpucnn.integers import ceil_div
from gpucnn.ops._kernels import Divisor, defines, takes, vector_width
from gpucnn.ops.batch_norm import portable

_THREADS = 256
_TILE = 32  # groups of channels, at most, that a block sums
_SPLIT = 16  # the fewest rows of a thread in a sum over part of the rows
_BLOCKS = 512  # at most, of all tiles
_ROWS = 4  # that a thread of the elementwise kernels computes
_MOST_THREADS = 2**30


def _rows(x: Array) -> int:
    return int(x.size // max(x.shape[-1], 1))


class Tiles:
    """How blocks share a sum over rows: a grid of tiles of channels x splits of the rows.

    It depends only on the shape and the dtype, so a result has the same bits on every GPU.
    `run` adjacent channels share their statistics: by default all.
    """

    def __init__(self, *inputs: Array, run: int = 0) -> None:
        x = inputs[0]
        channels, rows = x.shape[-1], _rows(x)
        width = vector_width(run or channels, *inputs)
        groups = max(channels // width, 1)
        tiles = ceil_div(groups, _TILE)
        self.width = ceil_div(groups, tiles)
        tiles = ceil_div(groups, self.width)
        lines = _THREADS // self.width
        self.splits = max(1, min(rows // (lines * _SPLIT), _BLOCKS // tiles))
        self.grid = tiles, self.splits
        self.vector = width > 1
        self.part = array_module(x).empty((self.splits, 2, channels), np.float32)
        self.counters = cuda.counters(device_of(x), tiles)


def statistics(x: Array, eps: float) -> tuple[Array, Array, Array]:
    return _statistics(x, eps, None, 0.0)


def moving_statistics(
    x: Array, eps: float, running: tuple[Array, Array], momentum: float
) -> tuple[Array, Array]:
    if not takes(x) or any(a.dtype != np.float32 or not a.flags.c_contiguous for a in running):
        mean, var, scale = statistics(x, eps)
        portable.move(running, (mean, portable.unbiased(var, x)), momentum)
        return mean, scale
    mean, _, scale = _statistics(x, eps, running, momentum)
    return mean, scale


def _statistics(
    x: Array, eps: float, running: tuple[Array, Array] | None, momentum: float
) -> tuple[Array, Array, Array]:
    if not takes(x):
        return portable.statistics(x, eps)
    xp, channels, rows = array_module(x), x.shape[-1], _rows(x)
    mean, var, scale = (xp.empty(channels, np.float32) for _ in range(3))
    tiles = Tiles(x)
    cuda.launch(
        "batch_norm_moments",
        tiles.grid,
        _THREADS,
        x,  # (rows, C)
        tiles.part,  # (splits, 2, C)
        tiles.counters,  # (tiles,)
        mean,  # (C,)
        var,  # (C,)
        scale,  # (C,)
        *(running or (None, None)),  # (C,) each
        rows,
        channels,
        eps,
        1 - momentum,
        momentum,
        rows / max(rows - 1, 1),
        tiles.vector,
        Divisor.of(tiles.width),
        defines=defines(x.dtype),
    )
    return mean, var, scale


def gradient_sums(dy: Array, x: Array, mean: Array, scale: Array) -> Array:
    if not takes(dy):
        return portable.gradient_sums(dy, x, mean, scale)
    channels = x.shape[-1]
    sums = array_module(x).empty((2, channels), np.float32)
    tiles = Tiles(dy, x)
    cuda.launch(
        "batch_norm_products",
        tiles.grid,
        _THREADS,
        dy,  # (rows, C)
        x,  # (rows, C)
        mean,  # (C,)
        scale,  # (C,)
        tiles.part,  # (splits, 2, C)
        tiles.counters,  # (tiles,)
        sums,  # (2, C)
        _rows(x),
        channels,
        tiles.vector,
        Divisor.of(tiles.width),
        defines=defines(dy.dtype),
    )
    return sums


def _launch_by_rows(name: str, arrays: tuple[Array, ...], *rest: Any, given: Array) -> None:
    """Launch a kernel whose threads own groups of channels of every step-th row of `given`.

    rest are arguments between `step` and the divisor.
    """
    channels, rows = given.shape[-1], _rows(given)
    groups = channels // vector_width(channels, given, *arrays)
    step = min(ceil_div(rows, _ROWS), max(_MOST_THREADS // max(groups, 1), 1))
    cuda.launch_elementwise(
        name,
        step * groups,
        *arrays,
        rows,
        channels,
        step,
        *rest,
        Divisor.of(groups),
        defines=defines(given.dtype),
    )


def normalized(
    x: Array, weight: Array, bias: Array, mean: Array, scale: Array, relu: bool = False
) -> Array:
    if not takes(x):
        return portable.normalized(x, weight, bias, mean, scale, relu)
    y = array_module(x).empty(x.shape, x.dtype)
    _launch_by_rows("batch_norm_apply", (x, mean, scale, weight, bias, y), relu, given=x)
    return y


def inferred(
    x: Array,
    weight: Array,
    bias: Array,
    mean: Array,
    var: Array,
    eps: float,
    relu: bool = False,
) -> Array:
    if not takes(x):
        return portable.inferred(x, weight, bias, mean, var, eps, relu)
    y = array_module(x).empty(x.shape, x.dtype)
    mean, var = (a.astype(np.float32, copy=False) for a in (mean, var))
    _launch_by_rows("batch_norm_infer", (x, mean, var, weight, bias, y), eps, relu, given=x)
    return y


def input_gradient(
    dy: Array, x: Array, weight: Array, mean: Array, scale: Array, sums: Array, count: int
) -> Array:
    if not takes(dy):
        return portable.input_gradient(dy, x, weight, mean, scale, sums, count)
    dx = array_module(dy).empty(x.shape, dy.dtype)
    arrays = (dy, x, mean, scale, weight, sums, dx)
    _launch_by_rows("batch_norm_backward", arrays, float(count), given=dy)
    return dx


def scale_shift(x: Array, scale: Array, shift: Array) -> Array:
    if not takes(x):
        return portable.scale_shift(x, scale, shift)
    xp = array_module(x)
    x, y = xp.ascontiguousarray(x), xp.empty(x.shape, x.dtype)
    _launch_by_rows("scale_shift", (x, scale, shift, y), given=x)
    return y
