"""Batch normalisation on NumPy, in blocks of rows that stay in the cache."""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

from gpucnn.cpu import empty, parallel, scratch, spans
from gpucnn.device import Array
from gpucnn.ops.batch_norm.portable import move, unbiased
from gpucnn.ops.gelu import gelu_block, slope_block
from gpucnn.ops.relu import _relu

_Step: TypeAlias = Callable[[Array, Array], None]  # of a block into another, or into itself

_BLOCK = 1 << 16  # elements


class _Blocks:
    """x (..., C) as rows of several pixels each, because ufuncs are slow on rows of only C."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        channels = max(shape[-1], 1)
        count = math.prod(shape[:-1])
        self.repeat = math.gcd(count, 1 << (max(4096 // channels, 1).bit_length() - 1)) or 1
        self.shape = (count // self.repeat, self.repeat * shape[-1])
        self.slices = list(spans(self.shape[0], max(1, _BLOCK // (self.repeat * channels))))

    def rows(self, x: Array) -> Array:
        return np.ascontiguousarray(x).reshape(self.shape)

    def tile(self, channel: Array) -> Array:
        """One value per channel (C,), repeated for each pixel of a row: (repeat * C,)."""
        return np.repeat(channel[None], self.repeat, axis=0).reshape(-1)  # np.tile is slower

    def centre(self, rows: Array, mean: Array, block: slice) -> Array:
        """rows[block] - mean in this thread's scratch memory; mean is tiled."""
        centred = scratch("norm centred", (block.stop - block.start, self.shape[1]), rows.dtype)
        return np.subtract(rows[block], mean, out=centred)

    def sums(self, dtype: Any) -> Array:
        """Zeros (blocks, repeat * C): a row of sums for each block."""
        return np.zeros((len(self.slices), self.shape[1]), dtype)

    def total(self, sums: Array) -> Array:
        """The sums of all blocks, added up for each channel: (C,)."""
        return sums.sum(axis=0).reshape(self.repeat, -1).sum(axis=0)


_blocks = lru_cache(64)(_Blocks)  # a training step needs each twice in either direction


def _sum_rows(rows: Array, out: Array) -> None:
    np.matmul(np.ones(len(rows), rows.dtype), rows, out=out)  # 5 times as fast as sum(axis=0)


def statistics(x: Array, eps: float) -> tuple[Array, Array, Array]:
    blocks = _blocks(x.shape)
    rows, count = blocks.rows(x), x.dtype.type(x.size // x.shape[-1])
    sums, squares = blocks.sums(x.dtype), blocks.sums(x.dtype)

    def add(i: int) -> None:
        _sum_rows(rows[blocks.slices[i]], sums[i])

    parallel(add, range(len(blocks.slices)))
    mean = blocks.total(sums) / count
    tiled_mean = blocks.tile(mean)

    def add_squares(i: int) -> None:
        centred = blocks.centre(rows, tiled_mean, blocks.slices[i])
        np.multiply(centred, centred, out=centred)
        _sum_rows(centred, squares[i])

    parallel(add_squares, range(len(blocks.slices)))
    var = blocks.total(squares) / count
    return mean, var, 1 / np.sqrt(var + x.dtype.type(eps))


def moving_statistics(
    x: Array, eps: float, running: tuple[Array, Array], momentum: float
) -> tuple[Array, Array]:
    mean, var, scale = statistics(x, eps)
    move(running, (mean, unbiased(var, x)), momentum)
    return mean, scale


def inferred(
    x: Array,
    weight: Array,
    bias: Array,
    mean: Array,
    var: Array,
    eps: float,
    relu: bool = False,
) -> Array:
    scale = (1 / np.sqrt(var + eps)).astype(x.dtype)
    y = scale_shift(x, scale * weight, bias - mean.astype(x.dtype) * scale * weight)
    return _relu(y) if relu else y


def normalized(
    x: Array, weight: Array, bias: Array, mean: Array, scale: Array, relu: bool = False
) -> Array:
    return _normalized(x, weight, bias, mean, scale, _clip if relu else None)


def normalized_gelu(x: Array, weight: Array, bias: Array, mean: Array, scale: Array) -> Array:
    """gelu(normalized(...)) of float32."""
    return _normalized(x, weight, bias, mean, scale, gelu_block)


def _clip(x: Array, out: Array) -> None:
    np.clip(x, 0, np.inf, out=out)


def _normalized(
    x: Array, weight: Array, bias: Array, mean: Array, scale: Array, then: _Step | None
) -> Array:
    """normalized(...), followed by `then` while a block is in cache."""
    blocks = _blocks(x.shape)
    rows, y = blocks.rows(x), empty(blocks.shape, x.dtype)
    tiled_mean, tiled_bias = blocks.tile(mean), blocks.tile(bias)
    tiled_scale = blocks.tile(scale * weight)

    def normalize(block: slice) -> None:
        np.subtract(rows[block], tiled_mean, out=y[block])
        y[block] *= tiled_scale
        y[block] += tiled_bias
        if then is not None:
            then(y[block], y[block])

    parallel(normalize, blocks.slices)
    return y.reshape(x.shape)


def gradient_sums(dy: Array, x: Array, mean: Array, scale: Array) -> Array:
    blocks = _blocks(x.shape)
    rows, dy_rows = blocks.rows(x), blocks.rows(dy)
    sums, products = blocks.sums(dy.dtype), blocks.sums(dy.dtype)
    tiled_mean = blocks.tile(mean)

    def add(i: int) -> None:
        block = blocks.slices[i]
        centred = blocks.centre(rows, tiled_mean, block)
        centred *= dy_rows[block]
        _sum_rows(dy_rows[block], sums[i])
        _sum_rows(centred, products[i])

    parallel(add, range(len(blocks.slices)))
    return np.array((blocks.total(sums), blocks.total(products) * scale))


def before_gelu(
    dy: Array, x: Array, y: Array, weight: Array, bias: Array, mean: Array, scale: Array
) -> tuple[Array, Array]:
    """The gradient of the normalised x, for y = normalized_gelu(x, ...); its gradient_sums.

    The normalised values are computed again, which costs less than to keep them.
    """
    blocks = _blocks(x.shape)
    rows, dy_rows, y_rows = blocks.rows(x), blocks.rows(dy), blocks.rows(y)
    sums, products = blocks.sums(dy.dtype), blocks.sums(dy.dtype)
    d = empty(blocks.shape, dy.dtype)
    tiled_mean, tiled_bias = blocks.tile(mean), blocks.tile(bias)
    tiled_scale = blocks.tile(scale * weight)

    def add(i: int) -> None:
        block = blocks.slices[i]
        centred = blocks.centre(rows, tiled_mean, block)
        normal = scratch("norm normal", centred.shape, dy.dtype)
        np.multiply(centred, tiled_scale, out=normal)
        normal += tiled_bias
        slope_block(normal, y_rows[block], d[block])
        d[block] *= dy_rows[block]
        centred *= d[block]
        _sum_rows(d[block], sums[i])
        _sum_rows(centred, products[i])

    parallel(add, range(len(blocks.slices)))
    return d.reshape(x.shape), np.array((blocks.total(sums), blocks.total(products) * scale))


def input_gradient(
    dy: Array, x: Array, weight: Array, mean: Array, scale: Array, sums: Array, count: int
) -> Array:
    dx = empty(x.shape, dy.dtype)
    set_input_gradient(dx, dy, x, weight, mean, scale, sums, count)
    return dx


def set_input_gradient(
    into: Array,
    dy: Array,
    x: Array,
    weight: Array,
    mean: Array,
    scale: Array,
    sums: Array,
    count: int,
) -> None:
    """Set into, which may be dy, to input_gradient(dy, ...); it is contiguous."""
    blocks = _blocks(x.shape)
    rows, dy_rows, dx = blocks.rows(x), blocks.rows(dy), into.reshape(blocks.shape)
    tiled_mean = blocks.tile(mean)
    dbias, dweight = sums
    # dx = a * (dy - (x - mean) * b - c)
    a = blocks.tile(weight * scale)
    b = blocks.tile(scale * dweight / x.dtype.type(count))
    c = blocks.tile(dbias / x.dtype.type(count))

    def combine(block: slice) -> None:
        centred = blocks.centre(rows, tiled_mean, block)
        centred *= b
        np.subtract(dy_rows[block], centred, out=dx[block])
        dx[block] -= c
        dx[block] *= a

    parallel(combine, blocks.slices)


def scale_shift(x: Array, scale: Array, shift: Array) -> Array:
    blocks = _blocks(x.shape)
    rows, y = blocks.rows(x), empty(blocks.shape, x.dtype)
    tiled_scale, tiled_shift = blocks.tile(scale), blocks.tile(shift)

    def apply(block: slice) -> None:
        np.multiply(rows[block], tiled_scale, out=y[block])
        y[block] += tiled_shift

    parallel(apply, blocks.slices)
    return y.reshape(x.shape)
