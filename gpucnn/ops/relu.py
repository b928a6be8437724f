"""Rectified linear units."""

from typing import Any

import numpy as np

from gpucnn import cuda
from gpucnn.autograd import Function
from gpucnn.device import Array, array_module, by_device
from gpucnn.tensor import Tensor


def relu(x: Tensor) -> Tensor:
    """max(x, 0), element by element.  The gradient at 0 is 0."""
    return _ReLU()(x)


def leaky_relu(x: Tensor, slope: float = 0.01) -> Tensor:
    """x where x > 0, else slope * x.  The gradient at 0 is slope."""
    return _LeakyReLU(slope)(x)


class _ReLU(Function):
    name = "relu"

    def forward(self, x: Array) -> Array:
        y = _relu(x)
        self.saved = (y,)
        return y

    def backward(self, dy: Array) -> Array:
        assert self.saved is not None
        return _relu_backward(dy, *self.saved)


class _LeakyReLU(Function):
    name = "leaky_relu"

    def __init__(self, slope: float) -> None:
        self.slope = slope

    def forward(self, x: Array) -> Array:
        self.saved = (x,)
        return _leaky(x, x, self.slope)

    def backward(self, dy: Array) -> Array:
        assert self.saved is not None
        return _leaky(dy, *self.saved, self.slope)


# --- any array module ---


def _relu_array(x: Array) -> Array:
    return array_module(x).maximum(x, x.dtype.type(0))


def _relu_backward_array(dy: Array, y: Array) -> Array:
    return dy * (y > 0)


def _leaky_array(v: Array, x: Array, slope: float) -> Array:
    """v where x > 0, else slope * v."""
    return array_module(v).where(x > 0, v, v * v.dtype.type(slope))


# --- CUDA ---

_BLOCK = 256


def _relu_cuda(x: Array) -> Array:
    if x.dtype != np.float32:
        return _relu_array(x)
    xp = array_module(x)
    x, y = xp.ascontiguousarray(x), xp.empty(x.shape, np.float32)
    cuda.launch(
        "relu_forward",
        -(-x.size // _BLOCK),
        _BLOCK,
        x,
        y,
        x.size,
    )
    return y


def _relu_backward_cuda(dy: Array, y: Array) -> Array:
    if dy.dtype != np.float32:
        return _relu_backward_array(dy, y)
    xp = array_module(dy)
    dy, dx = xp.ascontiguousarray(dy), xp.empty(dy.shape, np.float32)
    cuda.launch(
        "relu_backward",
        -(-dy.size // _BLOCK),
        _BLOCK,
        dy,
        y,
        dx,
        dy.size,
    )
    return dx


def _leaky_cuda(v: Array, x: Array, slope: float) -> Array:
    if v.dtype != np.float32:
        return _leaky_array(v, x, slope)
    xp = array_module(v)
    v, x, result = xp.ascontiguousarray(v), xp.ascontiguousarray(x), xp.empty(v.shape, np.float32)
    cuda.launch(
        "leaky_relu",
        -(-v.size // _BLOCK),
        _BLOCK,
        v,
        x,
        result,
        slope,
        v.size,
    )
    return result


_relu: Any = by_device(cpu=_relu_array, cuda=_relu_cuda)
_relu_backward: Any = by_device(cpu=_relu_backward_array, cuda=_relu_backward_cuda)
_leaky: Any = by_device(cpu=_leaky_array, cuda=_leaky_cuda)
