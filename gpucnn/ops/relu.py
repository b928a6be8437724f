"""Rectified linear units."""

from typing import Any

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


_relu: Any = by_device(cpu=_relu_array, cuda=_relu_array)
_relu_backward: Any = by_device(cpu=_relu_backward_array, cuda=_relu_backward_array)
_leaky: Any = by_device(cpu=_leaky_array, cuda=_leaky_array)
