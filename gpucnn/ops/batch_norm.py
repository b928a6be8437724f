"""Batch normalisation: each channel at mean 0 and variance 1 over the batch, then rescaled."""

import math
from typing import Any

import numpy as np

from gpucnn.autograd import Function
from gpucnn.cpu import empty, parallel, scratch, spans
from gpucnn.device import Array, array_module, by_device
from gpucnn.errors import DtypeError, ShapeError
from gpucnn.ops import _batch_norm_cuda
from gpucnn.ops._exact import narrowed, wide, widened
from gpucnn.tensor import Tensor


def batch_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    running_mean: Array,
    running_var: Array,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """y = (x - mean) / sqrt(var + eps) * gamma + beta, channel by channel.

    x is (..., C), (N, C) or (N, H, W, C) most often; the others are (C,).  In training mean and
    var are those of the batch, over all axes but the last (var divides by the count M), and the
    running arrays are updated in place: running = (1 - momentum) * running + momentum * batch,
    where the batch's variance divides by M - 1.  Otherwise mean and var are the running arrays.
    float16 is computed in float32, and only y and the gradients are rounded.

    Raises ShapeError if shapes do not fit, or in training for fewer than two values a channel.
    Source: Ioffe and Szegedy 2015, algorithms 1 and 2.
    """
    channels = x.shape[-1:]
    given = {"gamma": gamma, "beta": beta, "running_mean": running_mean, "running_var": running_var}
    for what, value in given.items():
        if tuple(value.shape) != channels:
            raise ShapeError(
                f"batch_norm: x {x.shape} has {channels} channels, {what} has shape {value.shape}"
            )
    if not (x.dtype == gamma.dtype == beta.dtype):
        raise DtypeError(
            f"batch_norm: x is {x.dtype}, gamma is {gamma.dtype}, beta is {beta.dtype}\n"
            "  expected one dtype for all; convert with .astype"
        )
    if not training:
        return _Normalize(running_mean, running_var, eps)(x, gamma, beta)
    count = x.size // max(channels[0], 1)
    if count < 2:
        raise ShapeError(
            f"batch_norm: in training each channel needs two values or more, "
            f"x {x.shape} has {count}\n  use a larger batch, or evaluate with training=False"
        )
    return _BatchNorm(running_mean, running_var, momentum, eps)(x, gamma, beta)


class _BatchNorm(Function):
    """With the batch's own statistics, which depend on x too."""

    name = "batch_norm"

    def __init__(
        self, running_mean: Array, running_var: Array, momentum: float, eps: float
    ) -> None:
        self.running = (running_mean, running_var)
        self.momentum = momentum
        self.eps = eps

    def forward(self, x: Array, gamma: Array, beta: Array) -> Array:
        y, mean, var, scale = _forward(*map(widened, (x, gamma, beta)), self.eps)
        count = x.size // x.shape[-1]
        for running, batch in zip(self.running, (mean, var * (count / (count - 1))), strict=True):
            running *= 1 - self.momentum
            running += self.momentum * batch
        self.saved = (x, gamma, mean, scale)
        return narrowed(y, x.dtype)

    def backward(self, dy: Array) -> tuple[Array, ...]:
        assert self.saved is not None
        gradients = _backward(*map(widened, (dy, *self.saved)))
        return tuple(narrowed(gradient, dy.dtype) for gradient in gradients)


class _Normalize(Function):
    """With given statistics: a scale and a shift for each channel."""

    name = "batch_norm"

    def __init__(self, mean: Array, var: Array, eps: float) -> None:
        self.mean, self.var, self.eps = mean, var, eps

    def forward(self, x: Array, gamma: Array, beta: Array) -> Array:
        xp, dtype = array_module(x), wide(x.dtype)
        x = xp.ascontiguousarray(x)
        mean = self.mean.astype(dtype)
        scale = (1 / xp.sqrt(widened(self.var) + self.eps)).astype(dtype)
        self.saved = (x, gamma, mean, scale)
        wide_gamma, wide_beta = widened(gamma), widened(beta)
        y = _scale_shift(widened(x), scale * wide_gamma, wide_beta - mean * scale * wide_gamma)
        return narrowed(y, x.dtype)

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        assert self.saved is not None
        x, gamma, mean, scale = map(widened, self.saved)
        xp, given, dy = array_module(dy), dy.dtype, widened(dy)
        dx = dgamma = dbeta = None
        if self.needs[0]:
            dx = _scale_shift(dy, gamma * scale, xp.zeros_like(gamma))
        axes = tuple(range(dy.ndim - 1))
        if self.needs[1]:
            dgamma = (dy * ((x - mean) * scale)).sum(axis=axes)
        if self.needs[2]:
            dbeta = dy.sum(axis=axes)
        return tuple(None if d is None else narrowed(d, given) for d in (dx, dgamma, dbeta))


# --- any array module ---


def _forward_array(
    x: Array, gamma: Array, beta: Array, eps: float
) -> tuple[Array, Array, Array, Array]:
    """y, and by channel the mean, the variance and 1 / sqrt(variance + eps)."""
    xp, axes = array_module(x), tuple(range(x.ndim - 1))
    mean = x.mean(axis=axes, dtype=x.dtype)
    centred = x - mean
    var = (centred * centred).mean(axis=axes, dtype=x.dtype)
    scale = 1 / xp.sqrt(var + x.dtype.type(eps))
    centred *= scale * gamma
    centred += beta
    return centred, mean, var, scale


def _backward_array(
    dy: Array, x: Array, gamma: Array, mean: Array, scale: Array
) -> tuple[Array, Array, Array]:
    axes = tuple(range(x.ndim - 1))
    count = x.dtype.type(x.size // x.shape[-1])
    normal = (x - mean) * scale
    dbeta = dy.sum(axis=axes)
    dgamma = (dy * normal).sum(axis=axes)
    dx = dy - dbeta / count
    normal *= dgamma / count
    dx -= normal
    dx *= gamma * scale
    return dx, dgamma, dbeta


def _scale_shift_array(x: Array, scale: Array, shift: Array) -> Array:
    y = x * scale
    y += shift
    return y


# --- NumPy, in blocks of rows that stay in the cache ---

_BLOCK = 1 << 16  # elements


class _Blocks:
    """x (..., C) as long rows, some channels-lists in each: ufuncs are slow on rows of C alone."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        channels = max(shape[-1], 1)
        count = math.prod(shape[:-1])
        self.repeat = math.gcd(count, 1 << (max(4096 // channels, 1).bit_length() - 1)) or 1
        self.shape = (count // self.repeat, self.repeat * channels)
        self.slices = list(spans(self.shape[0], max(1, _BLOCK // self.shape[1])))

    def rows(self, x: Array) -> Array:
        return np.ascontiguousarray(x).reshape(self.shape)

    def wide(self, channel: Array) -> Array:
        """A value for each channel, repeated as the channels are in a row."""
        return np.tile(channel, self.repeat)

    def scratch(self, name: str, block: slice, dtype: Any) -> Array:
        return scratch(name, (block.stop - block.start, self.shape[1]), dtype)

    def sums(self, dtype: Any) -> Array:
        return np.zeros((len(self.slices), self.shape[1]), dtype)

    def total(self, sums: Array) -> Array:
        """Sums of blocks (blocks, repeat * C), added up: (C,)."""
        return sums.sum(axis=0).reshape(self.repeat, -1).sum(axis=0)


def _add_up(rows: Array, into: Array) -> None:
    np.matmul(np.ones(len(rows), rows.dtype), rows, out=into)  # 5 times as fast as sum(axis=0)


def _forward_numpy(
    x: Array, gamma: Array, beta: Array, eps: float
) -> tuple[Array, Array, Array, Array]:
    blocks = _Blocks(x.shape)
    rows, count = blocks.rows(x), x.dtype.type(x.size // x.shape[-1])
    sums, squares = blocks.sums(x.dtype), blocks.sums(x.dtype)
    y = empty(blocks.shape, x.dtype)

    def add(i: int) -> None:
        _add_up(rows[blocks.slices[i]], sums[i])

    parallel(add, range(len(blocks.slices)))
    mean = blocks.total(sums) / count
    wide_mean = blocks.wide(mean)

    def add_squares(i: int) -> None:
        block = blocks.slices[i]
        centred = blocks.scratch("norm centred", block, x.dtype)
        np.subtract(rows[block], wide_mean, out=centred)
        np.multiply(centred, centred, out=centred)
        _add_up(centred, squares[i])

    parallel(add_squares, range(len(blocks.slices)))
    var = blocks.total(squares) / count
    scale = 1 / np.sqrt(var + x.dtype.type(eps))
    wide_scale, wide_beta = blocks.wide(scale * gamma), blocks.wide(beta)

    def normalize(block: slice) -> None:
        np.subtract(rows[block], wide_mean, out=y[block])
        y[block] *= wide_scale
        y[block] += wide_beta

    parallel(normalize, blocks.slices)
    return y.reshape(x.shape), mean, var, scale


def _backward_numpy(
    dy: Array, x: Array, gamma: Array, mean: Array, scale: Array
) -> tuple[Array, Array, Array]:
    blocks = _Blocks(x.shape)
    rows, given = blocks.rows(x), blocks.rows(dy)
    count = x.dtype.type(x.size // x.shape[-1])
    sums, products = blocks.sums(dy.dtype), blocks.sums(dy.dtype)
    dx, wide_mean = empty(blocks.shape, dy.dtype), blocks.wide(mean)

    def add(i: int) -> None:
        block = blocks.slices[i]
        centred = blocks.scratch("norm centred", block, x.dtype)
        np.subtract(rows[block], wide_mean, out=centred)
        centred *= given[block]
        _add_up(given[block], sums[i])
        _add_up(centred, products[i])

    parallel(add, range(len(blocks.slices)))
    dbeta, dgamma = blocks.total(sums), blocks.total(products) * scale
    # dx = a * (dy - dbeta / count - (x - mean) * scale * dgamma / count)
    a = blocks.wide(gamma * scale)
    b = blocks.wide(scale * dgamma / count)
    c = blocks.wide(dbeta / count)

    def give(block: slice) -> None:
        centred = blocks.scratch("norm centred", block, x.dtype)
        np.subtract(rows[block], wide_mean, out=centred)
        centred *= b
        np.subtract(given[block], centred, out=dx[block])
        dx[block] -= c
        dx[block] *= a

    parallel(give, blocks.slices)
    return dx.reshape(x.shape), dgamma, dbeta


def _scale_shift_numpy(x: Array, scale: Array, shift: Array) -> Array:
    blocks = _Blocks(x.shape)
    rows, y = blocks.rows(x), empty(blocks.shape, x.dtype)
    wide_scale, wide_shift = blocks.wide(scale), blocks.wide(shift)

    def apply(block: slice) -> None:
        np.multiply(rows[block], wide_scale, out=y[block])
        y[block] += wide_shift

    parallel(apply, blocks.slices)
    return y.reshape(x.shape)


# --- CUDA: the kernels are float32 ---


def _forward_cuda(
    x: Array, gamma: Array, beta: Array, eps: float
) -> tuple[Array, Array, Array, Array]:
    single = x.dtype == np.float32
    return (_batch_norm_cuda.forward if single else _forward_array)(x, gamma, beta, eps)


def _backward_cuda(
    dy: Array, x: Array, gamma: Array, mean: Array, scale: Array
) -> tuple[Array, Array, Array]:
    single = dy.dtype == np.float32
    return (_batch_norm_cuda.backward if single else _backward_array)(dy, x, gamma, mean, scale)


def _scale_shift_cuda(x: Array, scale: Array, shift: Array) -> Array:
    single = x.dtype == np.float32
    return (_batch_norm_cuda.scale_shift if single else _scale_shift_array)(x, scale, shift)


_forward: Any = by_device(cpu=_forward_numpy, cuda=_forward_cuda)
_backward: Any = by_device(cpu=_backward_numpy, cuda=_backward_cuda)
_scale_shift: Any = by_device(cpu=_scale_shift_numpy, cuda=_scale_shift_cuda)
