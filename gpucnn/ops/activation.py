"""Smooth activations: sigmoid, tanh, SiLU and softplus, element by element.

float16 and bfloat16 are computed in float32 and rounded once: they have neither the range nor the
precision for the intermediate values.
"""

from typing import Any

import numpy as np

from gpucnn import cuda
from gpucnn.autograd import Function
from gpucnn.device import Array, array_module
from gpucnn.errors import ArgumentError
from gpucnn.integers import ceil_div
from gpucnn.ops._exact import narrowed, widened
from gpucnn.ops._kernels import defines, lanes, takes
from gpucnn.ops.elementwise import float_tensor
from gpucnn.tensor import Tensor


def sigmoid(x: Any) -> Tensor:
    """1 / (1 + e**-x), element by element; y has x's shape and dtype.

    Never overflows, and is accurate wherever the result is not 0.  The gradient is as accurate:
    dy * e**-x / (1 + e**-x)**2, computed from x because 1 - y cancels where y is close to 1.
    Raises DtypeError unless x is floating-point.
    """
    return _Sigmoid()(float_tensor("sigmoid", x))


def tanh(x: Any) -> Tensor:
    """The hyperbolic tangent, element by element; y has x's shape and dtype.

    The gradient is dy / cosh(x)**2, accurate for large |x| too.
    Raises DtypeError unless x is floating-point.
    """
    return _Tanh()(float_tensor("tanh", x))


def silu(x: Any) -> Tensor:
    """x / (1 + e**-x), element by element: also called swish.  y has x's shape and dtype.

    Accurate wherever the result is not 0.  At -infinity y is 0, and the gradient is 0 or dy at the
    infinities; PyTorch's are NaN there.  Raises DtypeError unless x is floating-point.
    Source: Elfwing et al. 2018, section 2.2.
    """
    return _SiLU()(float_tensor("silu", x))


def softplus(x: Any, beta: float = 1.0) -> Tensor:
    """log(1 + e**(beta x)) / beta, element by element: a smooth ReLU.  y has x's shape and dtype.

    Computed as max(x, 0) + log1p(e**-|beta x|) / beta, which never overflows and is accurate
    wherever the result is not 0, so there is no threshold beyond which it becomes linear.
    Raises ArgumentError unless beta > 0, DtypeError unless x is floating-point.
    Source: Dugas et al. 2001, section 3.
    """
    if not beta > 0:
        raise ArgumentError(f"softplus: beta must be positive, got {beta}")
    return _Softplus(beta)(float_tensor("softplus", x))


class _Smooth(Function):
    """A function whose derivative is computed from its argument."""

    has_kernels = False

    def value(self, x: Array) -> Array:
        raise NotImplementedError

    def derivative(self, x: Array) -> Array:
        raise NotImplementedError

    def launch_forward(self, x: Array) -> Array:
        raise NotImplementedError

    def launch_backward(self, dy: Array, x: Array) -> Array:
        raise NotImplementedError

    def forward(self, x: Array) -> Array:
        self.saved = (x,)
        if self.launches(x):
            return self.launch_forward(x)
        return narrowed(self.value(widened(x)), x.dtype)

    def backward(self, dy: Array) -> Array:
        (x,) = self.saved
        if self.launches(dy):
            return self.launch_backward(dy, x)
        return narrowed(widened(dy) * self.derivative(widened(x)), dy.dtype)

    def launches(self, x: Array) -> bool:
        return self.has_kernels and not isinstance(x, np.ndarray) and takes(x)


class _Sigmoid(_Smooth):
    name = "sigmoid"

    def value(self, x: Array) -> Array:
        return _sigmoid(array_module(x), x)

    def derivative(self, x: Array) -> Array:
        return _sigmoid_slope(array_module(x), x)


class _Tanh(_Smooth):
    name = "tanh"

    def value(self, x: Array) -> Array:
        return array_module(x).tanh(x)

    def derivative(self, x: Array) -> Array:
        return 4 * _sigmoid_slope(array_module(x), 2 * x)  # tanh(x) is 2 * sigmoid(2 * x) - 1


def _sigmoid(xp: Any, x: Array) -> Array:
    """1 / (1 + e**-x), from e**-|x|, which never overflows and keeps small results accurate."""
    small = xp.exp(-abs(x))
    return _rise(xp, x, small) / (1 + small)


def _rise(xp: Any, x: Array, small: Array) -> Array:
    """e**x, which is `small`, for negative x and 1 elsewhere; NaN for NaN."""
    return xp.maximum(small, x >= 0)  # xp.where would branch on each element


def _sigmoid_slope(xp: Any, x: Array) -> Array:
    """The derivative of _sigmoid.  It is even, so e**-|x| serves both signs."""
    small = xp.exp(-abs(x))
    return small / ((1 + small) * (1 + small))


class _SiLU(_Smooth):
    name = "silu"
    has_kernels = True
    limit = 1000.0  # sigmoid(-x) is 0 from here on, in float64 too

    def value(self, x: Array) -> Array:
        xp = array_module(x)
        return xp.maximum(x, x.dtype.type(-self.limit)) * _sigmoid(xp, x)

    def derivative(self, x: Array) -> Array:
        xp = array_module(x)
        near = xp.clip(x, -self.limit, self.limit)
        return _sigmoid(xp, x) + near * _sigmoid_slope(xp, x)

    def launch_forward(self, x: Array) -> Array:
        return _launch("silu_forward", x)

    def launch_backward(self, dy: Array, x: Array) -> Array:
        return _launch("silu_backward", dy, x)


class _Softplus(_Smooth):
    name = "softplus"
    has_kernels = True

    def __init__(self, beta: float) -> None:
        self.beta = beta

    def value(self, x: Array) -> Array:
        xp, beta = array_module(x), x.dtype.type(self.beta)
        return xp.maximum(x, x.dtype.type(0)) + xp.log1p(xp.exp(-abs(beta * x))) / beta

    def derivative(self, x: Array) -> Array:
        return _sigmoid(array_module(x), x.dtype.type(self.beta) * x)

    def launch_forward(self, x: Array) -> Array:
        return _launch("softplus_forward", x, settings=(self.beta,))

    def launch_backward(self, dy: Array, x: Array) -> Array:
        return _launch("softplus_backward", dy, x, settings=(self.beta,))


# --- CUDA ---


def _launch(name: str, *inputs: Array, settings: tuple[float, ...] = ()) -> Array:
    """The result of an elementwise kernel, in the shape and dtype of the first input."""
    xp = array_module(inputs[0])
    inputs = tuple(xp.ascontiguousarray(x) for x in inputs)
    result = xp.empty(inputs[0].shape, inputs[0].dtype)
    cuda.launch_elementwise(
        name,
        ceil_div(result.size, lanes(result.dtype)),
        *inputs,  # x, or dy and x: any shape
        result,
        *settings,
        result.size,
        defines=defines(result.dtype),
    )
    return result
