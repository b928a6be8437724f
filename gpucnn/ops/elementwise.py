"""Element by element: arithmetic with broadcasting, and smooth functions.

Operands are tensors, arrays or Python numbers.  Tensors of two dtypes are refused and never
promoted: a float64 that slips in would halve the speed of everything after it.
"""

import math
from typing import Any

import numpy as np

from gpucnn.autograd import Function, unbroadcast
from gpucnn.device import Array, array_module
from gpucnn.errors import ArgumentError, DtypeError, ShapeError
from gpucnn.ops._exact import narrowed, widened
from gpucnn.tensor import Tensor, tensor

Value = Tensor | int | float


def add(a: Any, b: Any) -> Tensor:
    """a + b, broadcast."""
    return _Add()(*_operands("add", a, b))


def subtract(a: Any, b: Any) -> Tensor:
    """a - b, broadcast."""
    return _Subtract()(*_operands("subtract", a, b))


def multiply(a: Any, b: Any) -> Tensor:
    """a * b, broadcast."""
    return _Multiply()(*_operands("multiply", a, b))


def divide(a: Any, b: Any) -> Tensor:
    """a / b, broadcast; floating-point only."""
    a, b = _operands("divide", a, b)
    for operand in (a, b):
        if isinstance(operand, Tensor):
            _require_float("divide", operand)
    return _Divide()(a, b)


def power(x: Any, exponent: int | float) -> Tensor:
    """x ** exponent, for a number as exponent.

    The gradient is dy * exponent * x ** (exponent - 1), and 0 everywhere for the exponent 0.  At
    x = 0 that is 1 for the exponent 1, 0 for larger ones and infinite for those below 1.  Negative
    x have no power that is not whole: NaN.  All as in PyTorch, on every device.
    """
    if not isinstance(exponent, int | float):
        raise ArgumentError(f"power: expected a number as exponent, got {type(exponent).__name__}")
    return _Power(exponent)(_float_tensor("power", x))


def negative(x: Any) -> Tensor:
    """-x."""
    return _Negative()(as_tensor(x))


def exp(x: Any) -> Tensor:
    """e to the power x."""
    return _Exp()(_float_tensor("exp", x))


def log(x: Any) -> Tensor:
    """The natural logarithm."""
    return _Log()(_float_tensor("log", x))


def sqrt(x: Any) -> Tensor:
    """The square root."""
    return _Sqrt()(_float_tensor("sqrt", x))


def sigmoid(x: Any) -> Tensor:
    """1 / (1 + e**-x), without overflow, and accurate wherever the result is not 0.

    The gradient, e**-x / (1 + e**-x)**2, is so too: it comes from x, as 1 - y has no digits left
    where y is nearly 1.
    """
    return _Sigmoid()(_float_tensor("sigmoid", x))


def tanh(x: Any) -> Tensor:
    """The hyperbolic tangent."""
    return _Tanh()(_float_tensor("tanh", x))


def gelu(x: Any) -> Tensor:
    """x times the normal distribution's share below x, in its tanh form (within 1e-3 of the exact).

    0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x**3))), and accurate for negative x too.
    Source: Hendrycks and Gimpel 2016, section 2.
    """
    return _Gelu()(_float_tensor("gelu", x))


def where(condition: Any, a: Any, b: Any) -> Tensor:
    """a where condition is true, b elsewhere; all three broadcast.  condition has no gradient."""
    if isinstance(condition, Tensor):
        condition = condition.data
    a, b = _operands("where", a, b)
    return _Where(condition)(a, b)


def as_tensor(x: Any) -> Tensor:
    """x if it is a Tensor, else a new one."""
    return x if isinstance(x, Tensor) else tensor(x)


def _operands(op: str, a: Any, b: Any) -> tuple[Value, Value]:
    """Tensors or Python numbers, one tensor at least: equal dtypes, shapes that broadcast."""
    a, b = (x.item() if isinstance(x, np.generic) else x for x in (a, b))
    a, b = (x if isinstance(x, int | float) else as_tensor(x) for x in (a, b))
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.dtype != b.dtype:
            raise DtypeError(
                f"{op}: one operand is {a.dtype}, the other {b.dtype}\n"
                f"  convert one: x.astype({str(a.dtype)!r})"
            )
        try:
            np.broadcast_shapes(a.shape, b.shape)
        except ValueError:
            raise ShapeError(f"{op}: shapes {a.shape} and {b.shape} do not broadcast") from None
    elif isinstance(a, Tensor) or isinstance(b, Tensor):
        known, number = (a, b) if isinstance(a, Tensor) else (b, a)
        assert isinstance(known, Tensor)
        if isinstance(number, float) and known.dtype.kind != "f":
            raise DtypeError(
                f"{op}: a float with a tensor of {known.dtype}\n  convert it: x.astype('float32')"
            )
    else:
        a = as_tensor(a)
    return a, b


def _float_tensor(op: str, x: Any) -> Tensor:
    checked = as_tensor(x)
    _require_float(op, checked)
    return checked


def _require_float(op: str, x: Tensor) -> None:
    if x.dtype.kind != "f":
        raise DtypeError(
            f"{op}: expected floating-point values, got {x.dtype}\n  convert: x.astype('float32')"
        )


def _shape(x: Any) -> tuple[int, ...]:
    return tuple(x.shape) if hasattr(x, "shape") else ()


class _Binary(Function):
    """Two operands; a subclass gives the two partial products, this sums out the broadcasting."""

    def partials(self, dy: Array) -> tuple[Array, Array]:
        raise NotImplementedError

    def backward(self, dy: Array) -> tuple[Array | None, Array | None]:
        da, db = self.partials(dy)
        return (
            unbroadcast(da, self.shapes[0]) if self.needs[0] else None,
            unbroadcast(db, self.shapes[1]) if self.needs[1] else None,
        )

    def remember(self, a: Any, b: Any, *saved: Any) -> None:
        self.shapes = (_shape(a), _shape(b))
        self.saved = saved


class _Add(_Binary):
    name = "add"

    def forward(self, a: Any, b: Any) -> Array:
        self.remember(a, b)
        return a + b

    def partials(self, dy: Array) -> tuple[Array, Array]:
        return dy, dy


class _Subtract(_Binary):
    name = "subtract"

    def forward(self, a: Any, b: Any) -> Array:
        self.remember(a, b)
        return a - b

    def partials(self, dy: Array) -> tuple[Array, Array]:
        return dy, -dy if self.needs[1] else dy


class _Multiply(_Binary):
    name = "multiply"

    def forward(self, a: Any, b: Any) -> Array:
        self.remember(a, b, a if self.needs[1] else None, b if self.needs[0] else None)
        return a * b

    def partials(self, dy: Array) -> tuple[Array, Array]:
        a, b = self.saved or ()
        return dy if b is None else dy * b, dy if a is None else dy * a


class _Divide(_Binary):
    name = "divide"

    def forward(self, a: Any, b: Any) -> Array:
        y = a / b
        self.remember(a, b, b, y)
        return y

    def partials(self, dy: Array) -> tuple[Array, Array]:
        b, y = self.saved or ()
        da = dy / b
        return da, -da * y if self.needs[1] else da


class _Where(_Binary):
    name = "where"

    def __init__(self, condition: Any) -> None:
        self.condition = condition

    def forward(self, a: Any, b: Any) -> Array:
        self.remember(a, b)
        xp = array_module(a if hasattr(a, "shape") else b)
        self.condition = xp.asarray(self.condition, dtype=bool)
        dtype = a.dtype if hasattr(a, "dtype") else b.dtype
        return xp.where(self.condition, xp.asarray(a, dtype=dtype), xp.asarray(b, dtype=dtype))

    def partials(self, dy: Array) -> tuple[Array, Array]:
        xp, zero = array_module(dy), dy.dtype.type(0)  # not a product: inf * 0 is NaN
        return xp.where(self.condition, dy, zero), xp.where(self.condition, zero, dy)


class _Negative(Function):
    name = "negative"

    def forward(self, x: Array) -> Array:
        return -x

    def backward(self, dy: Array) -> Array:
        return -dy


class _Power(Function):
    name = "power"

    def __init__(self, exponent: int | float) -> None:
        self.exponent = exponent

    def forward(self, x: Array) -> Array:
        self.saved = (x,)
        return _power(x, self.exponent)

    def backward(self, dy: Array) -> Array:
        (x,) = self.saved or ()
        if self.exponent == 0:
            return array_module(x).zeros_like(x)
        return dy * (self.exponent * _power(x, self.exponent - 1))


@np.errstate(divide="ignore", invalid="ignore")
def _power(x: Array, exponent: int | float) -> Array:
    """x ** exponent.  The square root itself where it is one: CuPy's power of -inf would be inf."""
    if exponent in (0.5, -0.5):
        root = array_module(x).sqrt(x)
        return root if exponent > 0 else 1 / root
    return x**exponent


class _FromResult(Function):
    """A function whose derivative is known from its result."""

    def derivative(self, y: Array) -> Array:
        raise NotImplementedError

    def keep(self, y: Array) -> Array:
        self.saved = (y,)
        return y

    def backward(self, dy: Array) -> Array:
        (y,) = self.saved or ()
        return dy * self.derivative(y)


class _Exp(_FromResult):
    name = "exp"

    def forward(self, x: Array) -> Array:
        return self.keep(array_module(x).exp(x))

    def derivative(self, y: Array) -> Array:
        return y


class _Sqrt(_FromResult):
    name = "sqrt"

    def forward(self, x: Array) -> Array:
        return self.keep(array_module(x).sqrt(x))

    def derivative(self, y: Array) -> Array:
        return 0.5 / y


class _Smooth(Function):
    """A function whose derivative is computed from its argument, both of them in float32 at least:
    float16 has neither the range nor the digits for what is in between."""

    def value(self, x: Array) -> Array:
        raise NotImplementedError

    def derivative(self, x: Array) -> Array:
        raise NotImplementedError

    def forward(self, x: Array) -> Array:
        self.saved = (x,)
        return narrowed(self.value(widened(x)), x.dtype)

    def backward(self, dy: Array) -> Array:
        (x,) = self.saved or ()
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
    """1 / (1 + e**-x), by e**-|x|, which never overflows and keeps the digits of a small result."""
    small = xp.exp(-abs(x))
    return _rise(xp, x, small) / (1 + small)


def _rise(xp: Any, x: Array, small: Array) -> Array:
    """e**x for negative x, where that is `small`, and 1 for the others; NaN for NaN."""
    return xp.maximum(small, x >= 0)  # xp.where would branch for every element


def _sigmoid_slope(xp: Any, x: Array) -> Array:
    """The derivative of _sigmoid: even, so that the smaller power serves both sides."""
    small = xp.exp(-abs(x))
    return small / ((1 + small) * (1 + small))


class _Log(Function):
    name = "log"

    def forward(self, x: Array) -> Array:
        self.saved = (x,)
        return array_module(x).log(x)

    def backward(self, dy: Array) -> Array:
        (x,) = self.saved or ()
        return dy / x


class _Gelu(_Smooth):
    """x * sigmoid(2 u) for u = scale * (x + cubic * x**3): 1 + tanh(u), as the definition has it,
    would cancel where x is negative."""

    name = "gelu"
    scale = math.sqrt(2 / math.pi)
    cubic = 0.044715
    limit = 25.0  # the sigmoid of -2 u is 0 there, in float64 too; further out x**3 may overflow

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
        steep = near * (2 * self.scale + 6 * self.scale * self.cubic * square)  # x times 2 du/dx
        return (_rise(xp, u, small) + steep * small / (1 + small)) / (1 + small)
