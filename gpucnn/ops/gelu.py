"""GELU: x times the normal distribution function, exactly or in its tanh form.

NumPy has no error function.  With a = |x| and u = a / (a + 3), the tail of the distribution is
e**(-a**2 / 2) times a smooth function of u, here a polynomial.  gelu(x) is max(x, 0) minus a times
the tail: nothing cancels.
"""

import functools
import math
from typing import Any

import numpy as np
from numpy.polynomial import chebyshev, polynomial

from gpucnn import cuda
from gpucnn.autograd import Function
from gpucnn.cpu import blocks, empty, flat, parallel, scratch
from gpucnn.device import Array, array_module, by_device
from gpucnn.errors import ArgumentError
from gpucnn.integers import ceil_div
from gpucnn.ops._exact import narrowed, widened
from gpucnn.ops._kernels import defines, lanes, takes
from gpucnn.ops.activation import _rise, _sigmoid, _Smooth
from gpucnn.ops.elementwise import float_tensor
from gpucnn.tensor import Tensor


def gelu(x: Any, approximate: str = "none") -> Tensor:
    """The Gaussian error linear unit, element by element; y has x's shape and dtype.

    "none"  y = x Phi(x), with Phi the normal distribution function.  The float32 error is at most
            5 + 2 x**2 ulp for negative x and 4 ulp elsewhere; that of the gradient is 3e-7 dy
    "tanh"  y = 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x**3))), within 1e-3 of the former

    Both are accurate for negative x too.  At -infinity y is 0, and the gradient is 0 or dy at the
    infinities; PyTorch's are NaN there.  Raises ArgumentError for another `approximate`, DtypeError
    unless x is floating-point.
    Source: Hendrycks and Gimpel 2016, section 2.
    """
    if approximate not in ("none", "tanh"):
        raise ArgumentError(f"gelu: approximate must be 'none' or 'tanh', got {approximate!r}")
    x = float_tensor("gelu", x)
    return _Gelu()(x) if approximate == "none" else _GeluTanh()(x)


class _Gelu(Function):
    name = "gelu"
    approximate = "none"

    def forward(self, x: Array) -> Array:
        y = _gelu(x)
        self.saved = (x, y)  # the layer after this one usually keeps y anyway
        return y

    def backward(self, dy: Array) -> Array:
        return _gelu_backward(dy, *self.saved)


class _GeluTanh(_Smooth):
    """x * sigmoid(2 u) with u = scale * (x + cubic * x**3).

    The definition's 1 + tanh(u) would cancel for negative x.
    """

    name = "gelu"
    approximate = "tanh"
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


# --- the tail: Phi(-a) = e**(-a**2 / 2) * ratio(a) ---

_SCALE = 3.0  # u = a / (a + _SCALE): as accurate as any near 0, with small coefficients
_LIMIT = 40.0  # e**(-a**2 / 2) is 0 from here on, in float64 too
_DENSITY = 1 / math.sqrt(2 * math.pi)  # of the normal distribution, at 0


def _ratio(a: float) -> float:
    """Phi(-a) * e**(a**2 / 2) for a >= 0, in float64."""
    if a < 5:
        return 0.5 * math.erfc(a / math.sqrt(2)) * math.exp(a * a / 2)
    fraction = 0.0
    for n in range(100, 0, -1):  # Laplace's continued fraction
        fraction = n / (a + fraction)
    return _DENSITY / (a + fraction)


@functools.cache
def _series(degree: int) -> Any:
    """Chebyshev coefficients of ratio(a) as a function of z = 2 u - 1, by interpolation."""
    n = degree + 1
    # cos(k pi / (2 n)) for ints k: exact arguments; chebinterpolate's errors grow with the square
    # of the degree
    k = np.outer(np.arange(n), 2 * np.arange(n) + 1) % (4 * n)
    waves = np.cos(k * (math.pi / (2 * n)))  # T_i at node j
    values = np.array([_ratio(_SCALE * (1 + z) / (1 - z)) for z in waves[1 % n]])
    series = waves @ values * (2 / n)
    series[0] /= 2
    return series


@functools.cache
def _polynomial() -> tuple[Any, Any]:
    """ratio(a) for float32: its constant, and (3, 4), row i times u**(4 i + 1 ... 4 i + 4).

    In exact arithmetic its error is at most 2e-8 of the ratio up to a = 14.
    """
    in_u = np.zeros(1)
    for coefficient in chebyshev.cheb2poly(_series(12))[::-1]:
        in_u = polynomial.polyadd(polynomial.polymul(in_u, [-1, 2]), [coefficient])
    in_u = in_u.astype(np.float32)
    return in_u[0], in_u[1:].reshape(3, 4)


# --- any array module: float64 ---


def _tail_array(x: Array) -> tuple[Array, Array, Array]:
    """|x|, at most _LIMIT; e**(-x**2 / 2); Phi(-|x|)."""
    xp = array_module(x)
    a = abs(xp.clip(x, -_LIMIT, _LIMIT))
    z = 2 * (a / (a + _SCALE)) - 1
    first, second = xp.zeros_like(a), xp.zeros_like(a)  # Clenshaw's recurrence
    *rest, constant = reversed([float(c) for c in _series(28)])
    for coefficient in rest:
        first, second = 2 * z * first - second + coefficient, first
    bell = xp.exp(-0.5 * (a * a))
    return a, bell, bell * (z * first - second + constant)


def _gelu_array(x: Array) -> Array:
    a, _, tail = _tail_array(x)
    return array_module(x).maximum(x, x.dtype.type(0)) - a * tail


def _gelu_backward_array(dy: Array, x: Array, y: Array) -> Array:
    a, bell, tail = _tail_array(x)
    below = tail - _DENSITY * a * bell  # the derivative at -|x|
    return dy * array_module(x).where(x > 0, 1 - below, below)


# --- NumPy, in blocks that stay in the cache ---


def gelu_block(x: Array, out: Array) -> None:
    """out = gelu(x), for float32 arrays of one contiguous shape that are in cache; out may be x."""
    a, bell = (scratch(f"gelu {name}", x.shape, x.dtype) for name in ("a", "bell"))
    np.clip(x, -_LIMIT, _LIMIT, out=a)
    np.multiply(a, a, out=bell)
    bell *= np.float32(-0.5)
    np.exp(bell, out=bell)
    np.abs(a, out=a)
    bell *= a
    bell *= _ratio_block(a).reshape(x.shape)
    np.clip(x, 0, np.inf, out=out)  # 3 times as fast as np.maximum(x, 0)
    out -= bell


def _ratio_block(a: Array) -> Array:
    """ratio(a) in scratch memory."""
    constant, coefficients = _polynomial()
    powers = scratch("gelu powers", (4, a.size), a.dtype)
    u, square, cube, fourth = powers
    a = a.reshape(-1)
    np.add(a, np.float32(_SCALE), out=u)
    np.divide(a, u, out=u)
    np.multiply(u, u, out=square)
    np.multiply(square, u, out=cube)
    np.multiply(square, square, out=fourth)
    # BLAS adds four terms in the time of two products, so only every fourth power is Horner's
    low, middle, high = np.matmul(coefficients, powers, out=scratch("gelu", (3, a.size), a.dtype))
    high *= fourth
    high += middle
    high *= fourth
    high += low
    high += constant
    return high


_NEAR_ZERO = 1e-30  # of x**2: y / x is not Phi(x) for subnormal y


def slope_block(x: Array, y: Array, out: Array) -> None:
    """out = d gelu(x) / dx for y = gelu(x), as for gelu_block; out is neither x nor y.

    Phi(x) is y / x.  Blocks with zeros, infinities or NaN take a longer way.
    """
    square = scratch("gelu a", x.shape, x.dtype)
    with np.errstate(over="ignore"):
        np.multiply(x, x, out=square)
    if square.size and square.min() > _NEAR_ZERO and square.max() < np.inf:
        np.divide(y, x, out=out)
    else:
        x = np.clip(x, -_LIMIT, _LIMIT)
        gelu_block(x, out)
        np.multiply(x, x, out=square)
        with np.errstate(invalid="ignore"):
            out /= x
        out[square <= _NEAR_ZERO] = 0.5
    square *= np.float32(-0.5)
    np.exp(square, out=square)
    square *= x
    square *= np.float32(_DENSITY)
    out += square


def _gelu_numpy(x: Array) -> Array:
    if x.dtype == np.float64:
        return _gelu_array(x)
    source, y = flat(widened(x)), empty(x.shape, np.float32)
    out = y.reshape(-1)
    parallel(lambda block: gelu_block(source[block], out[block]), blocks(x.size))
    return narrowed(y, x.dtype)


def _gelu_backward_numpy(dy: Array, x: Array, y: Array) -> Array:
    if x.dtype == np.float64:
        return _gelu_backward_array(dy, x, y)
    dx = empty(x.shape, np.float32)
    if x.dtype != np.float32:
        y = _gelu_numpy(widened(x))  # not rounded to half precision
    gradient, source, value = flat(widened(dy)), flat(widened(x)), flat(y)
    out = dx.reshape(-1)

    def multiply(block: slice) -> None:
        slope_block(source[block], value[block], out[block])
        out[block] *= gradient[block]

    parallel(multiply, blocks(x.size))
    return narrowed(dx, dy.dtype)


# --- CUDA ---


def _gelu_cuda(x: Array) -> Array:
    if not takes(x):
        return _gelu_array(x)
    xp = array_module(x)
    x, y = xp.ascontiguousarray(x), xp.empty(x.shape, x.dtype)
    cuda.launch_elementwise(
        "gelu_forward",
        ceil_div(x.size, lanes(x.dtype)),
        x,  # any shape
        y,
        x.size,
        defines=defines(x.dtype),
    )
    return y


def _gelu_backward_cuda(dy: Array, x: Array, y: Array) -> Array:
    if not takes(x):
        return _gelu_backward_array(dy, x, y)
    xp = array_module(x)
    dy, x, dx = xp.ascontiguousarray(dy), xp.ascontiguousarray(x), xp.empty(x.shape, x.dtype)
    cuda.launch_elementwise(
        "gelu_backward",
        ceil_div(x.size, lanes(x.dtype)),
        dy,  # any shape
        x,
        dx,
        x.size,
        defines=defines(x.dtype),
    )
    return dx


_gelu: Any = by_device(cpu=_gelu_numpy, cuda=_gelu_cuda)
_gelu_backward: Any = by_device(cpu=_gelu_backward_numpy, cuda=_gelu_backward_cuda)
