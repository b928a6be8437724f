"""Rectified linear units: relu and leaky_relu."""

from typing import Any

import numpy as np

from gpucnn import cuda
from gpucnn.autograd import Function
from gpucnn.cpu import blocks, empty, flat, parallel, scratch
from gpucnn.device import Array, array_module, by_device
from gpucnn.integers import ceil_div
from gpucnn.ops._exact import narrowed, select, widened
from gpucnn.ops._kernels import defines, lanes, takes
from gpucnn.ops._promotion import float_operand
from gpucnn.ops.elementwise import float_tensor
from gpucnn.tensor import Tensor


def relu(x: Any) -> Tensor:
    """max(x, 0), element by element; y has x's shape and dtype.

    The gradient is dy where x > 0 and 0 where x <= 0, even where dy is infinite.  NaN stays NaN and
    passes dy on, as in PyTorch.  Raises DtypeError unless x is floating-point.
    """
    return _ReLU()(float_tensor("relu", x))


def leaky_relu(x: Any, negative_slope: float = 0.01) -> Tensor:
    """x where x > 0, else negative_slope * x; y has x's shape and dtype.

    The gradient is dy where x > 0, else negative_slope * dy, at 0 and for NaN too.
    Raises DtypeError unless x is floating-point.
    Source: Maas et al. 2013, section 2.
    """
    return _LeakyReLU(negative_slope)(float_tensor("leaky_relu", x))


class _ReLU(Function):
    name = "relu"

    def forward(self, x: Array) -> Array:
        y = _relu(x)
        self.saved = (y,)
        self.positive = not isinstance(y, np.ndarray)
        return y

    def backward(self, dy: Array) -> Array:
        return dy if self.masked else _relu_backward(dy, *self.saved)


class _LeakyReLU(Function):
    name = "leaky_relu"

    def __init__(self, negative_slope: float) -> None:
        self.negative_slope = negative_slope

    def forward(self, x: Array) -> Array:
        self.saved = (x,)
        return _leaky(x, x, self.negative_slope)

    def backward(self, dy: Array) -> Array:
        return _leaky(dy, *self.saved, self.negative_slope)


# --- any array module ---


def _relu_array(x: Array) -> Array:
    return array_module(x).maximum(x, x.dtype.type(0))


def _leaky_array(v: Array, x: Array, slope: float) -> Array:
    """v where x > 0, else slope * v."""
    return array_module(v).where(x > 0, v, v * v.dtype.type(slope))


# --- NumPy, in blocks that stay in the cache ---


def _relu_numpy(x: Array) -> Array:
    dtype, x = x.dtype, float_operand(x)
    y = empty(x.shape, x.dtype)
    source, out = flat(x), y.reshape(-1)

    def clip(block: slice) -> None:
        np.clip(source[block], 0, np.inf, out=out[block])  # 3 times as fast as np.maximum(x, 0)

    parallel(clip, blocks(x.size))
    return narrowed(y, dtype)


def _relu_backward_numpy(dy: Array, y: Array) -> Array:
    dx = empty(y.shape, dy.dtype)
    source, result, out = flat(dy), flat(y), dx.reshape(-1)

    def mask(block: slice) -> None:
        alive = scratch("relu alive", (block.stop - block.start,), bool)
        np.not_equal(result[block], 0, out=alive)
        select(source[block], alive, out[block])

    parallel(mask, blocks(y.size))
    return dx


def _leaky_numpy(v: Array, x: Array, slope: float) -> Array:
    dtype, v, x = v.dtype, widened(v), widened(x)
    result = empty(v.shape, v.dtype)
    values, source, out = flat(v), flat(x), result.reshape(-1)
    factors = np.array([slope, 1], v.dtype)

    def scale(block: slice) -> None:
        length = (block.stop - block.start,)
        alive = scratch("relu alive", length, bool)
        factor = scratch("leaky factor", length, v.dtype)
        np.greater(source[block], 0, out=alive)
        np.take(factors, alive.view(np.uint8), out=factor, mode="clip")
        np.multiply(values[block], factor, out=out[block])

    parallel(scale, blocks(v.size))
    return narrowed(result, dtype)


# --- CUDA ---


def _relu_cuda(x: Array) -> Array:
    if not takes(x):
        return _relu_array(x)
    xp = array_module(x)
    x, y = xp.ascontiguousarray(x), xp.empty(x.shape, x.dtype)
    cuda.launch_elementwise(
        "relu_forward",
        ceil_div(x.size, lanes(x.dtype)),
        x,  # any shape
        y,
        x.size,
        defines=defines(x.dtype),
    )
    return y


def _relu_backward_cuda(dy: Array, y: Array) -> Array:
    return masked(dy, y, 1.0)


def masked(dy: Array, y: Array, scale: float) -> Array:
    """scale * dy where y, on a GPU, is not 0; else 0."""
    xp = array_module(dy)
    if not takes(dy):
        return xp.where(y == 0, dy.dtype.type(0), dy * dy.dtype.type(scale))
    dy, y, dx = xp.ascontiguousarray(dy), xp.ascontiguousarray(y), xp.empty(dy.shape, dy.dtype)
    cuda.launch_elementwise(
        "relu_backward",
        ceil_div(dy.size, lanes(dy.dtype)),
        dy,  # any shape
        y,
        dx,
        scale,
        dy.size,
        defines=defines(dy.dtype),
    )
    return dx


def _leaky_cuda(v: Array, x: Array, slope: float) -> Array:
    if not takes(v):
        return _leaky_array(v, x, slope)
    xp = array_module(v)
    v, x, result = xp.ascontiguousarray(v), xp.ascontiguousarray(x), xp.empty(v.shape, v.dtype)
    cuda.launch_elementwise(
        "leaky_relu",
        ceil_div(v.size, lanes(v.dtype)),
        v,  # any shape
        x,
        result,
        slope,
        v.size,
        defines=defines(v.dtype),
    )
    return result


_relu: Any = by_device(cpu=_relu_numpy, cuda=_relu_cuda)
_relu_backward: Any = by_device(cpu=_relu_backward_numpy, cuda=_relu_backward_cuda)
_leaky: Any = by_device(cpu=_leaky_numpy, cuda=_leaky_cuda)
