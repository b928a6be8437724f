"""Arithmetic, powers, exp, log, sqrt and where, element by element, with broadcasting.

Operands are tensors, arrays or Python numbers; shapes broadcast as in NumPy, and the gradient of
a broadcast operand is summed back to its shape.  Both operands must have the same dtype.
Nothing is promoted: a stray float64 would halve the speed of every op after it.  Only autocast
makes tensors of several dtypes, so under it half precision next to float32 becomes float32.
"""

from operator import add as add_
from operator import mul, sub, truediv
from typing import Any

import numpy as np

from gpucnn.autograd import Function
from gpucnn.creation import tensor
from gpucnn.device import Array, array_module
from gpucnn.errors import ArgumentError, DtypeError, ShapeError
from gpucnn.ops._broadcast import unbroadcast
from gpucnn.ops._exact import forward_strides, narrowed
from gpucnn.ops._promotion import apply, float_operand, promoted
from gpucnn.precision import is_floating
from gpucnn.tensor import Tensor

Value = Tensor | int | float


def add(a: Any, b: Any) -> Tensor:
    """a + b, broadcast.

    Raises DtypeError for bools or if the dtypes differ, ShapeError if the shapes do not broadcast.
    """
    return _Add()(*_numbers("add", a, b))


def subtract(a: Any, b: Any) -> Tensor:
    """a - b, broadcast.

    Raises DtypeError for bools or if the dtypes differ, ShapeError if the shapes do not broadcast.
    """
    return _Subtract()(*_numbers("subtract", a, b))


def multiply(a: Any, b: Any) -> Tensor:
    """a * b, broadcast.

    Raises DtypeError for bools or if the dtypes differ, ShapeError if the shapes do not broadcast.
    """
    return _Multiply()(*_numbers("multiply", a, b))


def divide(a: Any, b: Any) -> Tensor:
    """a / b, broadcast; division by 0 gives infinity or NaN, as in NumPy.

    Raises DtypeError unless both are floating-point, of one dtype; ShapeError if the shapes do not
    broadcast.
    """
    a, b = operands("divide", a, b)
    for operand in (a, b):
        if isinstance(operand, Tensor):
            require_float("divide", operand)
    return _Divide()(a, b)


def power(x: Any, exponent: int | float) -> Tensor:
    """x ** exponent, element by element; exponent is a Python number.

    The gradient is dy * exponent * x ** (exponent - 1), and 0 everywhere for exponent 0.  At x = 0
    the factor is 1 for exponent 1, 0 for larger exponents and infinite for smaller ones.  A
    negative x to a fractional exponent is NaN.  Every device agrees with PyTorch.

    Raises ArgumentError unless exponent is a number, DtypeError unless x is floating-point.
    """
    if not isinstance(exponent, int | float):
        raise ArgumentError(f"power: expected a number as exponent, got {type(exponent).__name__}")
    return _Power(exponent)(float_tensor("power", x))


def negative(x: Any) -> Tensor:
    """-x, element by element.  Raises DtypeError for bools."""
    return _Negative()(number_tensor("negative", x))


def exp(x: Any) -> Tensor:
    """e**x, element by element.  Raises DtypeError unless x is floating-point."""
    return _Exp()(float_tensor("exp", x))


def log(x: Any) -> Tensor:
    """The natural logarithm: -infinity at 0, NaN below.

    Raises DtypeError unless x is floating-point.
    """
    return _Log()(float_tensor("log", x))


def sqrt(x: Any) -> Tensor:
    """The square root: NaN below 0, with an infinite gradient at 0.

    Raises DtypeError unless x is floating-point.
    """
    return _Sqrt()(float_tensor("sqrt", x))


def where(condition: Any, a: Any, b: Any) -> Tensor:
    """a where condition is true, b elsewhere; all three broadcast.

    condition is a bool tensor, array or list and has no gradient.  The operand that is not picked
    gets gradient 0, even where dy is infinite.
    Raises DtypeError if the dtypes of a and b differ, ShapeError if the three shapes do not
    broadcast.
    """
    if isinstance(condition, Tensor):
        condition = condition.data
    elif not hasattr(condition, "shape"):
        condition = np.asarray(condition, dtype=bool)
    a, b = operands("where", a, b)
    _broadcast("where", condition.shape, _shape(a), _shape(b))
    return _Where(condition)(a, b)


def as_tensor(x: Any) -> Tensor:
    """x itself if it is a Tensor, else gpucnn.tensor(x)."""
    return x if isinstance(x, Tensor) else tensor(x)


def operands(op: str, a: Any, b: Any) -> tuple[Value, Value]:
    """a and b, checked, as tensors or Python numbers; at least one is a tensor."""
    a, b = (x.item() if isinstance(x, np.generic) else x for x in (a, b))
    a, b = (x if isinstance(x, int | float) else as_tensor(x) for x in (a, b))
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        a, b = promoted(a, b)
        if a.dtype != b.dtype:
            raise DtypeError(
                f"{op}: one operand is {a.dtype}, the other {b.dtype}\n"
                f"  convert one: x.astype({str(a.dtype)!r})"
            )
        _broadcast(op, a.shape, b.shape)
    elif isinstance(a, Tensor) or isinstance(b, Tensor):
        known, number = (a, b) if isinstance(a, Tensor) else (b, a)
        assert isinstance(known, Tensor)
        if isinstance(number, float) and not is_floating(known.dtype):
            raise DtypeError(
                f"{op}: a float with a tensor of {known.dtype}\n  convert it: x.astype('float32')"
            )
        require_range(op, known, number)
    else:
        a = as_tensor(a)
    return a, b


def _numbers(op: str, a: Any, b: Any) -> tuple[Value, Value]:
    """operands that are not bools."""
    a, b = operands(op, a, b)
    for x in (a, b):
        if isinstance(x, Tensor):
            _require_numbers(op, x)
    return a, b


def require_range(op: str, x: Tensor, number: int | float) -> None:
    """Raise DtypeError, naming `op`, if x is of integers too small for the number."""
    if x.dtype.kind in "iu" and not np.iinfo(x.dtype).min <= number <= np.iinfo(x.dtype).max:
        raise DtypeError(
            f"{op}: {number} is out of range for a tensor of {x.dtype}\n"
            "  convert the tensor: x.astype('int64')"
        )


def _broadcast(op: str, *shapes: tuple[int, ...]) -> None:
    """Raise ShapeError, naming `op`, unless the shapes broadcast."""
    try:
        np.broadcast_shapes(*shapes)
    except ValueError:
        listed = " and ".join(map(str, shapes))
        raise ShapeError(f"{op}: shapes {listed} do not broadcast") from None


def number_tensor(op: str, x: Any) -> Tensor:
    """x as a Tensor; DtypeError, naming `op`, if it is of bools."""
    checked = as_tensor(x)
    _require_numbers(op, checked)
    return checked


def _require_numbers(op: str, x: Tensor) -> None:
    if x.dtype.kind == "b":
        raise DtypeError(
            f"{op}: expected numbers, got bool\n  convert: x.astype('int64') or 'float32'"
        )


def float_tensor(op: str, x: Any) -> Tensor:
    """x as a Tensor; DtypeError, naming `op`, unless it is floating-point."""
    checked = as_tensor(x)
    require_float(op, checked)
    return checked


def require_float(op: str, x: Tensor) -> None:
    """Raise DtypeError, naming `op`, unless x is floating-point."""
    if not is_floating(x.dtype):
        raise DtypeError(
            f"{op}: expected floating-point values, got {x.dtype}\n  convert: x.astype('float32')"
        )


def _shape(x: Any) -> tuple[int, ...]:
    return tuple(x.shape) if hasattr(x, "shape") else ()


class _Binary(Function):
    """Two operands.  A subclass computes both partials; this class undoes the broadcasting."""

    def partials(self, dy: Array) -> tuple[Array, Array]:
        """The gradients of a and b in the shape of the result."""
        raise NotImplementedError

    def backward(self, dy: Array) -> tuple[Array | None, Array | None]:
        da, db = self.partials(dy)
        return (
            unbroadcast(da, self.shapes[0]) if self.needs[0] else None,
            unbroadcast(db, self.shapes[1]) if self.needs[1] else None,
        )

    def keep(self, a: Any, b: Any, *saved: Any) -> None:
        self.shapes = (_shape(a), _shape(b))
        self.saved = saved


class _Add(_Binary):
    name = "add"

    def forward(self, a: Any, b: Any) -> Array:
        self.keep(a, b)
        return apply(add_, a, b)

    def partials(self, dy: Array) -> tuple[Array, Array]:
        return dy, dy


class _Subtract(_Binary):
    name = "subtract"

    def forward(self, a: Any, b: Any) -> Array:
        self.keep(a, b)
        return apply(sub, a, b)

    def partials(self, dy: Array) -> tuple[Array, Array]:
        return dy, -dy if self.needs[1] else dy


class _Multiply(_Binary):
    name = "multiply"

    def forward(self, a: Any, b: Any) -> Array:
        self.keep(a, b, a if self.needs[1] else None, b if self.needs[0] else None)
        return apply(mul, a, b)

    def partials(self, dy: Array) -> tuple[Array, Array]:
        a, b = self.saved
        return dy if b is None else apply(mul, dy, b), dy if a is None else apply(mul, dy, a)


class _Divide(_Binary):
    name = "divide"

    def forward(self, a: Any, b: Any) -> Array:
        y = apply(truediv, a, b)
        self.keep(a, b, b, y)
        return y

    def partials(self, dy: Array) -> tuple[Array, Array]:
        b, y = self.saved
        da = apply(truediv, dy, b)
        return da, apply(mul, -dy, apply(truediv, y, b)) if self.needs[1] else dy


class _Where(_Binary):
    name = "where"

    def __init__(self, condition: Any) -> None:
        self.condition = condition

    def forward(self, a: Any, b: Any) -> Array:
        self.keep(a, b)
        xp = array_module(a if hasattr(a, "shape") else b)
        self.condition = xp.asarray(self.condition, dtype=bool)
        dtype = a.dtype if hasattr(a, "dtype") else b.dtype
        a, b = xp.asarray(a, dtype=dtype), xp.asarray(b, dtype=dtype)
        return narrowed(xp.where(self.condition, a, b), dtype)  # CuPy's bfloat16 becomes float32

    def partials(self, dy: Array) -> tuple[Array, Array]:
        xp, zero = array_module(dy), dy.dtype.type(0)  # no product: inf * 0 is NaN
        da, db = xp.where(self.condition, dy, zero), xp.where(self.condition, zero, dy)
        return narrowed(da, dy.dtype), narrowed(db, dy.dtype)


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
        return narrowed(_power(float_operand(x), self.exponent), x.dtype)

    def backward(self, dy: Array) -> Array:
        (x,) = self.saved
        if self.exponent == 0:
            return array_module(x).zeros_like(x)
        slope = self.exponent * _power(float_operand(x), self.exponent - 1)
        return narrowed(float_operand(dy) * slope, dy.dtype)


@np.errstate(divide="ignore", invalid="ignore")
def _power(x: Array, exponent: int | float) -> Array:
    """x ** exponent, by sqrt for 0.5 and -0.5: CuPy's (-inf) ** 0.5 is inf, not NaN."""
    if exponent in (0.5, -0.5):
        root = array_module(x).sqrt(x)
        return root if exponent > 0 else 1 / root
    return forward_strides(x) ** exponent


class _FromResult(Function):
    """A function whose derivative is computed from its result."""

    def derivative(self, y: Array) -> Array:
        raise NotImplementedError

    def keep(self, y: Array) -> Array:
        self.saved = (y,)
        return y

    def backward(self, dy: Array) -> Array:
        (y,) = self.saved
        return narrowed(float_operand(dy) * self.derivative(float_operand(y)), dy.dtype)


class _Exp(_FromResult):
    name = "exp"

    def forward(self, x: Array) -> Array:
        return self.keep(array_module(x).exp(forward_strides(x)))

    def derivative(self, y: Array) -> Array:
        return y


class _Sqrt(_FromResult):
    name = "sqrt"

    def forward(self, x: Array) -> Array:
        return self.keep(array_module(x).sqrt(x))

    def derivative(self, y: Array) -> Array:
        return 0.5 / y


class _Log(Function):
    name = "log"

    def forward(self, x: Array) -> Array:
        self.saved = (x,)
        return array_module(x).log(forward_strides(x))

    def backward(self, dy: Array) -> Array:
        (x,) = self.saved
        return dy / x
