"""Smooth activations: sigmoid, tanh and GELU, element by element.

float16 is computed in float32 and rounded once: it has neither the range nor the precision for
the intermediate values.
"""

import math
from typing import Any

from gpucnn.autograd import Function
from gpucnn.device import Array, array_module
from gpucnn.ops._exact import narrowed, widened
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


def gelu(x: Any) -> Tensor:
    """The Gaussian error linear unit in its tanh form, element by element.

    y = 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x**3))), within 1e-3 of x times the normal
    distribution function, and accurate for negative x too.  y has x's shape and dtype.
    Raises DtypeError unless x is floating-point.
    Source: Hendrycks and Gimpel 2016, section 2.
    """
    return _Gelu()(float_tensor("gelu", x))


class _Smooth(Function):
    """A function whose derivative is computed from its argument."""

    def value(self, x: Array) -> Array:
        raise NotImplementedError

    def derivative(self, x: Array) -> Array:
        raise NotImplementedError

    def forward(self, x: Array) -> Array:
        self.saved = (x,)
        return narrowed(self.value(widened(x)), x.dtype)

    def backward(self, dy: Array) -> Array:
        (x,) = self.saved
        return narrowed(widened(dy) * self.derivative(widened(x)), dy.dtype)


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


class _Gelu(_Smooth):
    """x * sigmoid(2 u) with u = scale * (x + cubic * x**3).

    The definition's 1 + tanh(u) would cancel for negative x.
    """

    name = "gelu"
    scale = math.sqrt(2 / math.pi)
    cubic = 0.044715
    limit = 25.0  # sigmoid(-2 u) is 0 from here on, in float64 too; x**3 may overflow further out

    def value(self, x: Array) -> Array:
        xp = array_module(x)
        near = xp.clip(x, -self.limit, self.limit)
        u = near * (self.scale + self.scale * self.cubic * (near * near))
        return xp.maximum(x, x.dtype.type(-self.limit)) * _sigmoid(xp, 2 * u)

    def derivative(self, x: Array) -> Array:
        xp = array_module(x)
        near = xp.clip(x, -self.limit, self.limit)
        square = near * near
        u = near * (self.scale + self.scale * self.cubic * square)
        small = xp.exp(-2 * abs(u))
        steep = near * (2 * self.scale + 6 * self.scale * self.cubic * square)  # x * 2 du/dx
        return (_rise(xp, u, small) + steep * small / (1 + small)) / (1 + small)
