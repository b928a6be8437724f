"""clamp and abs: numbers limited to a range, and their distance from 0."""

import math
from typing import Any

import numpy as np

from gpucnn.autograd import Function
from gpucnn.device import Array, array_module
from gpucnn.errors import ArgumentError, DtypeError
from gpucnn.ops._exact import narrowed
from gpucnn.ops._promotion import float_operand
from gpucnn.ops.elementwise import number_tensor, require_range
from gpucnn.precision import is_floating
from gpucnn.tensor import Tensor


def clamp(x: Any, min: int | float | None = None, max: int | float | None = None) -> Tensor:
    """x limited to min .. max, element by element; None is no limit.

    Where min > max, the result is max.  The gradient passes where min <= x <= max and is 0
    elsewhere, also where x is NaN, which stays NaN.

    Raises ArgumentError unless min and max are numbers or None, not both None and not NaN;
    DtypeError for bools, or for a limit that a tensor of integers cannot hold.
    """
    x = number_tensor("clamp", x)
    low, high = _limit(x, "min", min), _limit(x, "max", max)
    if low is None and high is None:
        raise ArgumentError("clamp: expected min, max or both, got neither")
    return _Clamp(low, high)(x)


def abs(x: Any) -> Tensor:
    """|x|, element by element; the gradient is 0 at 0 and at NaN.  Raises DtypeError for bools."""
    return _Abs()(number_tensor("abs", x))


def _limit(x: Tensor, what: str, value: Any) -> int | float | None:
    """min or max as a number that x's dtype can hold, checked."""
    value = value.item() if isinstance(value, np.generic) else value
    if value is None:
        return None
    if not isinstance(value, int | float) or math.isnan(value):
        got = value if isinstance(value, float) else type(value).__name__
        raise ArgumentError(f"clamp: expected a number or None as {what}, got {got}")
    if isinstance(value, float) and not is_floating(x.dtype):
        raise DtypeError(
            f"clamp: a float with a tensor of {x.dtype}\n  convert it: x.astype('float32')"
        )
    require_range("clamp", x, value)
    return value


class _Clamp(Function):
    name = "clamp"

    def __init__(self, low: int | float | None, high: int | float | None) -> None:
        self.low, self.high = low, high

    @np.errstate(over="ignore")  # a limit beyond float16's range is infinite
    def forward(self, x: Array) -> Array:
        self.saved = (x,)
        xp, dtype, y = array_module(x), x.dtype, x
        if self.low is not None:
            y = xp.where(y < self.low, dtype.type(self.low), y)
        if self.high is not None:
            y = xp.where(y > self.high, dtype.type(self.high), y)
        return narrowed(y, dtype)  # CuPy's bfloat16 becomes float32

    @np.errstate(over="ignore")
    def backward(self, dy: Array) -> Array:
        (x,) = self.saved
        inside = x == x
        if self.low is not None:
            inside &= x >= self.low
        if self.high is not None:
            inside &= x <= self.high
        return narrowed(array_module(x).where(inside, dy, dy.dtype.type(0)), dy.dtype)


class _Abs(Function):
    name = "abs"

    def forward(self, x: Array) -> Array:
        self.saved = (x,)
        return array_module(x).abs(x)

    def backward(self, dy: Array) -> Array:
        (x,) = self.saved
        one = np.float32(1) if dy.dtype.kind == "V" else dy.dtype.type(1)
        sign = (x > 0) * one - (x < 0) * one  # 0 for NaN, unlike xp.sign
        return narrowed(float_operand(dy) * sign, dy.dtype)
