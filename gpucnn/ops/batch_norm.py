"""Batch normalisation: each channel gets mean 0 and variance 1 over the batch, then is rescaled."""

import math
from typing import Any

import numpy as np

from gpucnn import cuda
from gpucnn.autograd import Function
from gpucnn.cpu import empty, parallel, scratch, spans
from gpucnn.device import Array, array_module, by_device
from gpucnn.errors import DtypeError, ShapeError
from gpucnn.integers import ceil_div
from gpucnn.ops._exact import narrowed, wide, widened
from gpucnn.tensor import Tensor


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Array,
    running_var: Array,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise each channel: y = (x - mean) / sqrt(var + eps) * weight + bias.

    x is (..., C), usually (N, C) or (N, H, W, C); weight, bias and the running arrays are (C,),
    and y has x's shape.  In training, mean and var are those of the batch over all axes but the
    last (var divides by the M values of a channel), and the running arrays are updated in place:
    running = (1 - momentum) * running + momentum * batch, with a batch variance that divides by
    M - 1.  Otherwise mean and var are the running arrays.  float16 is computed in float32; only
    y and the gradients are rounded.

    Raises ShapeError if shapes do not fit or, in training, if a channel has fewer than two values;
    DtypeError if x, weight and bias differ in dtype.
    Source: Ioffe and Szegedy 2015, algorithms 1 and 2.
    """
    channels = x.shape[-1:]
    names = ("weight", "bias", "running_mean", "running_var")
    for name, value in zip(names, (weight, bias, running_mean, running_var), strict=True):
        if tuple(value.shape) != channels:
            raise ShapeError(
                f"batch_norm: x {x.shape} has {channels} channels, {name} has shape {value.shape}"
            )
    if not (x.dtype == weight.dtype == bias.dtype):
        raise DtypeError(
            f"batch_norm: x is {x.dtype}, weight is {weight.dtype}, bias is {bias.dtype}\n"
            "  expected one dtype for all; convert with .astype"
        )
    if not training:
        return _Normalize(running_mean, running_var, eps)(x, weight, bias)
    count = x.size // max(channels[0], 1)
    if count < 2:
        raise ShapeError(
            f"batch_norm: in training each channel needs at least two values, x {x.shape} has "
            f"{count}\n  use a larger batch, or evaluate with training=False"
        )
    return _BatchNorm(running_mean, running_var, momentum, eps)(x, weight, bias)


class _BatchNorm(Function):
    """Normalise by the batch's own statistics, which depend on x too."""

    name = "batch_norm"

    def __init__(
        self, running_mean: Array, running_var: Array, momentum: float, eps: float
    ) -> None:
        self.running = (running_mean, running_var)
        self.momentum = momentum
        self.eps = eps

    def forward(self, x: Array, weight: Array, bias: Array) -> Array:
        y, mean, var, scale = _forward(*map(widened, (x, weight, bias)), self.eps)
        count = x.size // x.shape[-1]
        for running, batch in zip(self.running, (mean, var * (count / (count - 1))), strict=True):
            running *= 1 - self.momentum
            running += self.momentum * batch
        self.saved = (x, weight, mean, scale)
        return narrowed(y, x.dtype)

    def backward(self, dy: Array) -> tuple[Array, ...]:
        gradients = _backward(*map(widened, (dy, *self.saved)))
        return tuple(narrowed(gradient, dy.dtype) for gradient in gradients)


class _Normalize(Function):
    """Normalise by given statistics: a scale and a shift for each channel."""

    name = "batch_norm"

    def __init__(self, mean: Array, var: Array, eps: float) -> None:
        self.mean, self.var, self.eps = mean, var, eps

    def forward(self, x: Array, weight: Array, bias: Array) -> Array:
        xp, dtype = array_module(x), wide(x.dtype)
        x = xp.ascontiguousarray(x)
        mean = self.mean.astype(dtype)
        scale = (1 / xp.sqrt(widened(self.var) + self.eps)).astype(dtype)
        self.saved = (x, weight, mean, scale)
        wide_weight, wide_bias = widened(weight), widened(bias)
        y = _scale_shift(widened(x), scale * wide_weight, wide_bias - mean * scale * wide_weight)
        return narrowed(y, x.dtype)

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        x, weight, mean, scale = map(widened, self.saved)
        xp, dtype, dy = array_module(dy), dy.dtype, widened(dy)
        dx = dweight = dbias = None
        if self.needs[0]:
            dx = _scale_shift(dy, weight * scale, xp.zeros_like(weight))
        axes = tuple(range(dy.ndim - 1))
        if self.needs[1]:
            dweight = (dy * ((x - mean) * scale)).sum(axis=axes)
        if self.needs[2]:
            dbias = dy.sum(axis=axes)
        return tuple(None if d is None else narrowed(d, dtype) for d in (dx, dweight, dbias))


# --- any array module ---


def _forward_array(
    x: Array, weight: Array, bias: Array, eps: float
) -> tuple[Array, Array, Array, Array]:
    """y (..., C), and for each channel (C,) the mean, the variance and 1 / sqrt(var + eps)."""
    xp, axes = array_module(x), tuple(range(x.ndim - 1))
    mean = x.mean(axis=axes, dtype=x.dtype)
    centred = x - mean
    var = (centred * centred).mean(axis=axes, dtype=x.dtype)
    scale = 1 / xp.sqrt(var + x.dtype.type(eps))
    centred *= scale * weight
    centred += bias
    return centred, mean, var, scale


def _backward_array(
    dy: Array, x: Array, weight: Array, mean: Array, scale: Array
) -> tuple[Array, Array, Array]:
    """dx (..., C), dweight (C,) and dbias (C,); mean and scale as `_forward` returned them."""
    axes = tuple(range(x.ndim - 1))
    count = x.dtype.type(x.size // x.shape[-1])
    normal = (x - mean) * scale
    dbias = dy.sum(axis=axes)
    dweight = (dy * normal).sum(axis=axes)
    dx = dy - dbias / count
    normal *= dweight / count
    dx -= normal
    dx *= weight * scale
    return dx, dweight, dbias


def _scale_shift_array(x: Array, scale: Array, shift: Array) -> Array:
    """x (..., C) * scale (C,) + shift (C,)."""
    y = x * scale
    y += shift
    return y


# --- NumPy, in blocks of rows that stay in the cache ---

_BLOCK = 1 << 16  # elements


class _Blocks:
    """x (..., C) as rows of several pixels each, because ufuncs are slow on rows of only C."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        channels = max(shape[-1], 1)
        count = math.prod(shape[:-1])
        self.repeat = math.gcd(count, 1 << (max(4096 // channels, 1).bit_length() - 1)) or 1
        self.shape = (count // self.repeat, self.repeat * channels)
        self.slices = list(spans(self.shape[0], max(1, _BLOCK // self.shape[1])))

    def rows(self, x: Array) -> Array:
        return np.ascontiguousarray(x).reshape(self.shape)

    def tile(self, channel: Array) -> Array:
        """One value per channel (C,), repeated for each pixel of a row: (repeat * C,)."""
        return np.tile(channel, self.repeat)

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


def _sum_rows(rows: Array, out: Array) -> None:
    np.matmul(np.ones(len(rows), rows.dtype), rows, out=out)  # 5 times as fast as sum(axis=0)


def _forward_numpy(
    x: Array, weight: Array, bias: Array, eps: float
) -> tuple[Array, Array, Array, Array]:
    blocks = _Blocks(x.shape)
    rows, count = blocks.rows(x), x.dtype.type(x.size // x.shape[-1])
    sums, squares = blocks.sums(x.dtype), blocks.sums(x.dtype)
    y = empty(blocks.shape, x.dtype)

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
    scale = 1 / np.sqrt(var + x.dtype.type(eps))
    tiled_scale, tiled_bias = blocks.tile(scale * weight), blocks.tile(bias)

    def normalize(block: slice) -> None:
        np.subtract(rows[block], tiled_mean, out=y[block])
        y[block] *= tiled_scale
        y[block] += tiled_bias

    parallel(normalize, blocks.slices)
    return y.reshape(x.shape), mean, var, scale


def _backward_numpy(
    dy: Array, x: Array, weight: Array, mean: Array, scale: Array
) -> tuple[Array, Array, Array]:
    blocks = _Blocks(x.shape)
    rows, dy_rows = blocks.rows(x), blocks.rows(dy)
    count = x.dtype.type(x.size // x.shape[-1])
    sums, products = blocks.sums(dy.dtype), blocks.sums(dy.dtype)
    dx, tiled_mean = empty(blocks.shape, dy.dtype), blocks.tile(mean)

    def add(i: int) -> None:
        block = blocks.slices[i]
        centred = blocks.centre(rows, tiled_mean, block)
        centred *= dy_rows[block]
        _sum_rows(dy_rows[block], sums[i])
        _sum_rows(centred, products[i])

    parallel(add, range(len(blocks.slices)))
    dbias, dweight = blocks.total(sums), blocks.total(products) * scale
    # dx = a * (dy - (x - mean) * b - c)
    a = blocks.tile(weight * scale)
    b = blocks.tile(scale * dweight / count)
    c = blocks.tile(dbias / count)

    def combine(block: slice) -> None:
        centred = blocks.centre(rows, tiled_mean, block)
        centred *= b
        np.subtract(dy_rows[block], centred, out=dx[block])
        dx[block] -= c
        dx[block] *= a

    parallel(combine, blocks.slices)
    return dx.reshape(x.shape), dweight, dbias


def _scale_shift_numpy(x: Array, scale: Array, shift: Array) -> Array:
    blocks = _Blocks(x.shape)
    rows, y = blocks.rows(x), empty(blocks.shape, x.dtype)
    tiled_scale, tiled_shift = blocks.tile(scale), blocks.tile(shift)

    def apply(block: slice) -> None:
        np.multiply(rows[block], tiled_scale, out=y[block])
        y[block] += tiled_shift

    parallel(apply, blocks.slices)
    return y.reshape(x.shape)


# --- CUDA: kernels/batch_norm.cu for float32, the functions for any array module for float64 ---

_SPLIT = 512  # the fewest rows in a partial sum


def _partial_sums(what: str, rows: int, channels: int, *inputs: Array) -> Array:
    """Launch kernel batch_norm_`what`, which reduces the rows of its inputs to (splits, 2, C).

    The number of splits depends only on the shape, so a result has the same bits on every GPU.
    """
    splits = max(1, min(rows // _SPLIT, 128))
    part = array_module(inputs[0]).empty((splits, 2, channels), np.float32)
    grid = ceil_div(channels, 32), splits  # a block: 32 channels, 8 rows at a time
    cuda.launch(f"batch_norm_{what}", grid, 32 * 8, *inputs, part, rows, channels)
    return part


def _forward_cuda(
    x: Array, weight: Array, bias: Array, eps: float
) -> tuple[Array, Array, Array, Array]:
    if x.dtype != np.float32:
        return _forward_array(x, weight, bias, eps)
    xp, channels = array_module(x), x.shape[-1]
    rows = x.size // channels
    x = xp.ascontiguousarray(x)
    mean, var, scale = (xp.empty(channels, np.float32) for _ in range(3))
    y = xp.empty(x.shape, np.float32)
    part = _partial_sums("moments", rows, channels, x)
    cuda.launch_elementwise(
        "batch_norm_combine",
        channels,
        part,  # (splits, 2, C)
        mean,  # (C,)
        var,  # (C,)
        scale,  # (C,)
        rows,
        channels,
        len(part),
        eps,
    )
    cuda.launch_elementwise(
        "batch_norm_apply",
        x.size,
        x,  # (rows, C)
        mean,
        scale,
        weight,  # (C,)
        bias,  # (C,)
        y,  # (rows, C)
        x.size,
        channels,
    )
    return y, mean, var, scale


def _backward_cuda(
    dy: Array, x: Array, weight: Array, mean: Array, scale: Array
) -> tuple[Array, Array, Array]:
    if dy.dtype != np.float32:
        return _backward_array(dy, x, weight, mean, scale)
    xp, channels = array_module(x), x.shape[-1]
    rows = x.size // channels
    dy, x = xp.ascontiguousarray(dy), xp.ascontiguousarray(x)
    sums = xp.empty((2, channels), np.float32)
    dx = xp.empty(x.shape, np.float32)
    part = _partial_sums("products", rows, channels, dy, x, mean, scale)
    cuda.launch_elementwise(
        "sum_splits",
        sums.size,
        part,  # (splits, 2 C)
        sums,  # (2 C)
        sums.size,
        len(part),
    )
    cuda.launch_elementwise(
        "batch_norm_backward",
        x.size,
        dy,  # (rows, C)
        x,  # (rows, C)
        mean,  # (C,)
        scale,  # (C,)
        weight,  # (C,)
        sums,  # (2, C): dbias, dweight
        dx,  # (rows, C)
        x.size,
        channels,
        rows,
    )
    return dx, sums[1], sums[0]


def _scale_shift_cuda(x: Array, scale: Array, shift: Array) -> Array:
    if x.dtype != np.float32:
        return _scale_shift_array(x, scale, shift)
    xp = array_module(x)
    x, y = xp.ascontiguousarray(x), xp.empty(x.shape, np.float32)
    cuda.launch_elementwise(
        "scale_shift",
        x.size,
        x,  # (rows, C)
        scale,  # (C,)
        shift,  # (C,)
        y,  # (rows, C)
        x.size,
        x.shape[-1],
    )
    return y


_forward: Any = by_device(cpu=_forward_numpy, cuda=_forward_cuda)
_backward: Any = by_device(cpu=_backward_numpy, cuda=_backward_cuda)
_scale_shift: Any = by_device(cpu=_scale_shift_numpy, cuda=_scale_shift_cuda)
