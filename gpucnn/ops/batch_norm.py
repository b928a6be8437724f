"""Batch normalisation: each channel at mean 0 and variance 1 over the batch, then rescaled."""

from typing import Any

import numpy as np

from gpucnn import cuda
from gpucnn.autograd import Function
from gpucnn.device import Array, array_module, by_device
from gpucnn.errors import DtypeError, ShapeError
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
        y, mean, var, scale = _forward(x, gamma, beta, self.eps)
        count = x.size // x.shape[-1]
        for running, batch in zip(self.running, (mean, var * (count / (count - 1))), strict=True):
            running *= 1 - self.momentum
            running += self.momentum * batch
        self.saved = (x, gamma, mean, scale)
        return y

    def backward(self, dy: Array) -> tuple[Array, Array, Array]:
        assert self.saved is not None
        return _backward(dy, *self.saved)  # type: ignore[no-any-return]


class _Normalize(Function):
    """With given statistics: a scale and a shift for each channel."""

    name = "batch_norm"

    def __init__(self, mean: Array, var: Array, eps: float) -> None:
        self.mean, self.var, self.eps = mean, var, eps

    def forward(self, x: Array, gamma: Array, beta: Array) -> Array:
        xp = array_module(x)
        mean = self.mean.astype(x.dtype)
        scale = (1 / xp.sqrt(self.var + self.eps)).astype(x.dtype)
        self.saved = (x, gamma, mean, scale)
        return _scale_shift(x, scale * gamma, beta - mean * scale * gamma)

    def backward(self, dy: Array) -> tuple[Array | None, Array | None, Array | None]:
        assert self.saved is not None
        x, gamma, mean, scale = self.saved
        xp = array_module(dy)
        dx = dgamma = dbeta = None
        if self.needs[0]:
            dx = _scale_shift(dy, gamma * scale, xp.zeros_like(gamma))
        axes = tuple(range(dy.ndim - 1))
        if self.needs[1]:
            dgamma = (dy * ((x - mean) * scale)).sum(axis=axes)
        if self.needs[2]:
            dbeta = dy.sum(axis=axes)
        return dx, dgamma, dbeta


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


# --- CUDA ---

_BLOCK = 256
_SPLIT = 512  # rows that a split of a sum has at least


def _splits(rows: int) -> int:
    """Into how many parts the sums down the columns are split: from the shape alone."""
    return max(1, min(rows // _SPLIT, 128))


def _forward_cuda(
    x: Array, gamma: Array, beta: Array, eps: float
) -> tuple[Array, Array, Array, Array]:
    if x.dtype != np.float32:
        return _forward_array(x, gamma, beta, eps)
    xp, channels = array_module(x), x.shape[-1]
    rows = x.size // channels
    splits = _splits(rows)
    x = xp.ascontiguousarray(x)
    part = xp.empty((splits, 2, channels), np.float32)
    mean, var, scale = (xp.empty(channels, np.float32) for _ in range(3))
    y = xp.empty(x.shape, np.float32)
    cuda.launch(
        "batch_norm_moments",
        (-(-channels // 32), splits),
        _BLOCK,
        x,  # (rows, C)
        part,  # (splits, 2, C)
        rows,
        channels,
    )
    cuda.launch(
        "batch_norm_combine",
        -(-channels // _BLOCK),
        _BLOCK,
        part,  # (splits, 2, C)
        mean,  # (C,)
        var,  # (C,)
        scale,  # (C,)
        rows,
        channels,
        splits,
        eps,
    )
    cuda.launch(
        "batch_norm_apply",
        -(-x.size // _BLOCK),
        _BLOCK,
        x,  # (rows, C)
        mean,
        scale,
        gamma,  # (C,)
        beta,  # (C,)
        y,  # (rows, C)
        x.size,
        channels,
    )
    return y, mean, var, scale


def _backward_cuda(
    dy: Array, x: Array, gamma: Array, mean: Array, scale: Array
) -> tuple[Array, Array, Array]:
    if dy.dtype != np.float32:
        return _backward_array(dy, x, gamma, mean, scale)
    xp, channels = array_module(x), x.shape[-1]
    rows = x.size // channels
    splits = _splits(rows)
    dy, x = xp.ascontiguousarray(dy), xp.ascontiguousarray(x)
    part = xp.empty((splits, 2, channels), np.float32)
    sums = xp.empty((2, channels), np.float32)
    dx = xp.empty(x.shape, np.float32)
    cuda.launch(
        "batch_norm_products",
        (-(-channels // 32), splits),
        _BLOCK,
        dy,  # (rows, C)
        x,  # (rows, C)
        mean,  # (C,)
        scale,  # (C,)
        part,  # (splits, 2, C)
        rows,
        channels,
    )
    cuda.launch(
        "sum_splits",
        -(-sums.size // _BLOCK),
        _BLOCK,
        part,  # (splits, 2 C)
        sums,  # (2 C)
        sums.size,
        splits,
    )
    cuda.launch(
        "batch_norm_backward",
        -(-x.size // _BLOCK),
        _BLOCK,
        dy,  # (rows, C)
        x,  # (rows, C)
        mean,  # (C,)
        scale,  # (C,)
        gamma,  # (C,)
        sums,  # (2, C)
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
    cuda.launch(
        "scale_shift",
        -(-x.size // _BLOCK),
        _BLOCK,
        x,  # (rows, C)
        scale,  # (C,)
        shift,  # (C,)
        y,  # (rows, C)
        x.size,
        x.shape[-1],
    )
    return y


_forward: Any = by_device(cpu=_forward_array, cuda=_forward_cuda)
_backward: Any = by_device(cpu=_backward_array, cuda=_backward_cuda)
_scale_shift: Any = by_device(cpu=_scale_shift_array, cuda=_scale_shift_cuda)
