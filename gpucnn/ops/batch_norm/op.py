"""Batch normalisation: each channel gets mean 0 and variance 1 over the batch, then is rescaled."""

from typing import Any

import numpy as np

from gpucnn.autograd import Function
from gpucnn.device import Array, array_module, by_device
from gpucnn.errors import ArgumentError, DtypeError, ShapeError
from gpucnn.ops._exact import narrowed, wide, widened
from gpucnn.ops._kernels import takes
from gpucnn.ops.batch_norm import cpu, cuda
from gpucnn.ops.elementwise import float_tensor
from gpucnn.ops.gelu import gelu as ops_gelu
from gpucnn.ops.relu import _relu_backward
from gpucnn.precision import is_half
from gpucnn.tensor import Tensor

# portable.py says what each takes and returns.  A GPU also takes x and dy in half precision, and
# then returns y and dx so.
statistics: Any = by_device(cpu.statistics, cuda.statistics)
_moving_statistics: Any = by_device(cpu.moving_statistics, cuda.moving_statistics)
normalized: Any = by_device(cpu.normalized, cuda.normalized)
gradient_sums: Any = by_device(cpu.gradient_sums, cuda.gradient_sums)
input_gradient: Any = by_device(cpu.input_gradient, cuda.input_gradient)
_inferred: Any = by_device(cpu.inferred, cuda.inferred)
_scale_shift: Any = by_device(cpu.scale_shift, cuda.scale_shift)


def batch_norm(
    x: Any,
    weight: Tensor,
    bias: Tensor,
    running_mean: Array,
    running_var: Array,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    relu: bool = False,
    gelu: bool = False,
) -> Tensor:
    """Normalise each channel: y = (x - mean) / sqrt(var + eps) * weight + bias.

    x is (..., C), usually (N, C) or (N, H, W, C); weight, bias and the running arrays are (C,),
    and y has x's shape.  In training, mean and var are those of the batch over all axes but the
    last (var divides by the M values of a channel), and the running arrays are updated in place:
    running = (1 - momentum) * running + momentum * batch, with a batch variance that divides by
    M - 1.  Otherwise mean and var are the running arrays.  Half precision is computed in float32,
    with float32 statistics; only y and the gradients are rounded.  The variance on a GPU is
    as accurate as a float32 sum, however large the mean.  relu or gelu fuses the ReLU or the exact
    GELU that often follows; GELU runs by itself on a GPU and in evaluation.

    Raises ArgumentError for relu and gelu together; ShapeError if shapes do not fit or, in
    training, if a channel has fewer than two values; DtypeError unless x, weight and bias are
    floating-point, of one dtype or with x in half precision and weight and bias float32.
    Source: Ioffe and Szegedy 2015, algorithms 1 and 2.
    """
    if relu and gelu:
        raise ArgumentError("batch_norm: relu and gelu are both set; expected at most one")
    x = checked(x, weight, bias, running_mean, running_var)
    if gelu and not (training and isinstance(x.data, np.ndarray) and x.dtype == np.float32):
        settings = training, momentum, eps
        return ops_gelu(batch_norm(x, weight, bias, running_mean, running_var, *settings))
    if not training:
        return _Normalize(running_mean, running_var, eps, relu)(x, weight, bias)
    check_count(x.size // max(x.shape[-1], 1), x.shape)
    rule = _BatchNormGelu if gelu else _BatchNorm
    return rule(running_mean, running_var, momentum, eps, relu)(x, weight, bias)


def checked(
    x: Any, weight: Tensor, bias: Tensor, running_mean: Array, running_var: Array
) -> Tensor:
    """x as a Tensor; raises ShapeError or DtypeError as `batch_norm` does."""
    t = float_tensor("batch_norm", x)
    channels = t.shape[-1:]
    if not channels:
        raise ShapeError("batch_norm: expected channels (..., C), got a scalar")
    names = ("weight", "bias", "running_mean", "running_var")
    for name, value in zip(names, (weight, bias, running_mean, running_var), strict=True):
        if tuple(value.shape) != channels:
            raise ShapeError(
                f"batch_norm: x {t.shape} has {channels} channels, {name} has shape {value.shape}"
            )
    if weight.dtype != bias.dtype or (
        t.dtype != weight.dtype and not (is_half(t.dtype) and weight.dtype == np.float32)
    ):
        raise DtypeError(
            f"batch_norm: x is {t.dtype}, weight is {weight.dtype}, bias is {bias.dtype}\n"
            "  expected one dtype for all; convert with .astype"
        )
    return t


def check_count(count: int, shape: tuple[int, ...]) -> None:
    """Raise ShapeError unless a channel's variance can be estimated from `count` values."""
    if count < 2:
        raise ShapeError(
            f"batch_norm: in training each channel needs at least two values, x {shape} has "
            f"{count}\n  use a larger batch, or evaluate with training=False"
        )


class _ThenReLU(Function):
    """A normalisation with the ReLU fused into it; `saved` ends with y if there is one."""

    name = "batch_norm"

    def __init__(self, relu: bool) -> None:
        self.relu = relu

    def finished(self, y: Array, dtype: Any) -> Array:
        """y in `dtype`, the result."""
        self.positive = self.relu and not isinstance(y, np.ndarray)
        return narrowed(y, dtype)

    def before_relu(self, dy: Array, y: Array | None) -> Array:
        """The gradient of the normalisation's own result."""
        return dy if y is None or self.masked else _relu_backward(dy, y)


class _BatchNorm(_ThenReLU):
    """Normalise by the batch's own statistics, which depend on x too."""

    def __init__(
        self, running_mean: Array, running_var: Array, momentum: float, eps: float, relu: bool
    ) -> None:
        super().__init__(relu)
        self.running = (running_mean, running_var)
        self.momentum = momentum
        self.eps = eps

    def forward(self, x: Array, weight: Array, bias: Array) -> Array:
        values = contiguous(x)
        mean, scale = _moving_statistics(values, self.eps, self.running, self.momentum)
        y = normalized(values, parameter(weight), parameter(bias), mean, scale, self.relu)
        y = self.finished(y, x.dtype)
        self.saved = (x, weight, mean, scale, y if self.relu else None)
        return y

    def backward(self, dy: Array) -> tuple[Array, ...]:
        x, weight, mean, scale, y = self.saved
        dy = self.before_relu(dy, y)
        values, wide_dy = contiguous(x), contiguous(dy)
        sums = gradient_sums(wide_dy, values, mean, scale)
        count = x.size // x.shape[-1]
        dx = input_gradient(wide_dy, values, parameter(weight), mean, scale, sums, count)
        dbias, dweight = (narrowed(d, weight.dtype) for d in sums)
        return narrowed(dx, dy.dtype), dweight, dbias


class _BatchNormGelu(_BatchNorm):
    """_BatchNorm with the GELU fused into it: float32 on NumPy."""

    def forward(self, x: Array, weight: Array, bias: Array) -> Array:
        values, weight, bias = contiguous(x), parameter(weight), parameter(bias)
        mean, scale = cpu.moving_statistics(values, self.eps, self.running, self.momentum)
        y = cpu.normalized_gelu(values, weight, bias, mean, scale)
        self.saved = (values, weight, bias, mean, scale, y)
        return y

    def backward(self, dy: Array) -> tuple[Array, ...]:
        x, weight, bias, mean, scale, y = self.saved
        d, sums = cpu.before_gelu(dy, x, y, weight, bias, mean, scale)
        count = x.size // x.shape[-1]
        dbias, dweight = sums
        cpu.set_input_gradient(d, d, x, weight, mean, scale, sums, count)
        return d, dweight, dbias


def contiguous(x: Array) -> Array:
    """x or dy in the dtype and the memory order that the functions above take."""
    half = not isinstance(x, np.ndarray) and takes(x)
    return array_module(x).ascontiguousarray(x if half else widened(x))


def parameter(x: Array) -> Array:
    """A parameter or running array in the dtype and the memory order that those functions take."""
    return array_module(x).ascontiguousarray(widened(x))


class _Normalize(_ThenReLU):
    """Normalise by given statistics: a scale and a shift for each channel."""

    def __init__(self, mean: Array, var: Array, eps: float, relu: bool) -> None:
        super().__init__(relu)
        self.mean, self.var, self.eps = mean, var, eps

    def forward(self, x: Array, weight: Array, bias: Array) -> Array:
        mean, var = parameter(self.mean), parameter(self.var)
        settings = self.eps, self.relu
        y = _inferred(contiguous(x), parameter(weight), parameter(bias), mean, var, *settings)
        y = self.finished(y, x.dtype)
        if any(self.needs):  # training may change the running arrays before backward reads them
            given = mean.astype(wide(x.dtype)), var.copy()
            self.saved = (x, weight, *given, y if self.relu else None)
        return y

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        x, weight, mean, var, y = self.saved
        dy = self.before_relu(dy, y)
        xp, values, wide_dy = array_module(dy), contiguous(x), contiguous(dy)
        scale = (1 / xp.sqrt(var + self.eps)).astype(mean.dtype)
        dx = dweight = dbias = None
        if self.needs[0]:
            factor = parameter(weight) * scale
            dx = narrowed(_scale_shift(wide_dy, factor, xp.zeros_like(factor)), dy.dtype)
        if not isinstance(dy, np.ndarray) and takes(dy):
            if self.needs[1] or self.needs[2]:
                dbias, dweight = gradient_sums(wide_dy, values, mean, scale)
        else:
            axes = tuple(range(dy.ndim - 1))
            if self.needs[1]:
                dweight = (wide_dy * ((values - mean) * scale)).sum(axis=axes)
            if self.needs[2]:
                dbias = wide_dy.sum(axis=axes)
        return dx, *(None if d is None else narrowed(d, weight.dtype) for d in (dweight, dbias))
