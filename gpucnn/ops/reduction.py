"""Reductions over axes: sum, mean, var, max and min.

axis is one axis, several or None for all; negative axes count from the end.  Reduced axes vanish,
or stay with size 1 if keepdims is set.  An axis out of range or repeated raises ArgumentError.
"""

import math
from typing import Any

import numpy as np

from gpucnn.autograd import Function
from gpucnn.device import Array, array_module
from gpucnn.errors import ArgumentError, ShapeError
from gpucnn.integers import is_int
from gpucnn.ops._exact import narrowed, wide, widened
from gpucnn.ops.elementwise import as_tensor, number_tensor, require_float
from gpucnn.tensor import Tensor

Axis = int | tuple[int, ...] | None


def sum(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The sum over `axis`, 0 for no elements.

    float16 and bfloat16 are accumulated in float32 and rounded once: a sum beyond float16's 65504
    is infinite.  A sum of integers keeps their dtype.  Raises DtypeError for bools.
    """
    x = number_tensor("sum", x)
    return _Sum(_axes("sum", x, axis), keepdims)(x)


def mean(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The mean over `axis`; for float16 it is finite even where the sum is not.

    Raises ShapeError for no elements, DtypeError unless x is floating-point.
    """
    x = as_tensor(x)
    axes, count = _averaged("mean", x, axis)
    return _Sum(axes, keepdims, "mean", 1.0 / count)(x)


def var(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The population variance over `axis`: the mean squared deviation from the mean.

    float16, whose squares would overflow, and bfloat16 are computed in float32.
    Raises ShapeError for no elements, DtypeError unless x is floating-point.
    """
    x = as_tensor(x)
    return _Variance(*_averaged("var", x, axis), keepdims)(x)


def max(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The largest value over `axis`; elements that tie share the gradient equally.

    NaN wins over every number, and the NaNs share the gradient, as in torch.max(x).
    Raises ShapeError for no elements.
    """
    return _extreme("max", x, axis, keepdims)


def min(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The smallest value over `axis`; elements that tie share the gradient equally.

    NaN wins over every number, and the NaNs share the gradient, as in torch.min(x).
    Raises ShapeError for no elements.
    """
    return _extreme("min", x, axis, keepdims)


def _extreme(op: str, x: Any, axis: Axis, keepdims: bool) -> Tensor:
    x = as_tensor(x)
    axes = _axes(op, x, axis)
    if math.prod(x.shape[i] for i in axes) == 0:
        raise ShapeError(f"{op}: nothing to compare in shape {x.shape} over axes {axes}")
    return _Extreme(op, axes, keepdims)(x)


def _averaged(op: str, x: Tensor, axis: Axis) -> tuple[tuple[int, ...], int]:
    """The axes of a mean and the number of elements in it, checked."""
    require_float(op, x)
    axes = _axes(op, x, axis)
    count = math.prod(x.shape[i] for i in axes)
    if count == 0:
        raise ShapeError(f"{op}: nothing to average in shape {x.shape} over axes {axes}")
    return axes, count


def _axes(op: str, x: Tensor, axis: Axis) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(x.ndim))
    axes = axis if isinstance(axis, tuple | list) else (axis,)
    if not all(map(is_int, axes)):
        raise ArgumentError(f"{op}: axis must be an int, a tuple of ints or None, got {axis!r}")
    if any(not -x.ndim <= i < x.ndim for i in axes):
        raise ArgumentError(f"{op}: axis {axis} is out of range for shape {x.shape}")
    positive = tuple(i % x.ndim for i in axes)
    if len(set(positive)) != len(positive):
        raise ArgumentError(f"{op}: axis {axis} names one axis twice")
    return positive


class _Reduction(Function):
    shape: tuple[int, ...] = ()

    def __init__(self, axes: tuple[int, ...], keepdims: bool) -> None:
        self.axes = axes
        self.keepdims = keepdims

    def spread(self, reduced: Array) -> Array:
        """`reduced` with its reduced axes restored as size 1."""
        return reduced.reshape([1 if i in self.axes else n for i, n in enumerate(self.shape)])


class _Sum(_Reduction):
    """The sum, multiplied by 1 / count for a mean."""

    def __init__(
        self, axes: tuple[int, ...], keepdims: bool, name: str = "sum", factor: float | None = None
    ) -> None:
        super().__init__(axes, keepdims)
        self.name, self.factor = name, factor

    def forward(self, x: Array) -> Array:
        self.shape = x.shape
        total = x.sum(axis=self.axes, keepdims=self.keepdims, dtype=wide(x.dtype))
        return narrowed(total if self.factor is None else total * self.factor, x.dtype)

    def backward(self, dy: Array) -> Array:
        xp, dtype = array_module(dy), dy.dtype
        if self.factor is not None:
            dy = narrowed(widened(dy) * self.factor, dtype)
        return xp.broadcast_to(self.spread(dy), self.shape).copy()


class _Variance(_Reduction):
    name = "var"

    def __init__(self, axes: tuple[int, ...], count: int, keepdims: bool) -> None:
        super().__init__(axes, keepdims)
        self.count = count

    def forward(self, x: Array) -> Array:
        self.shape = x.shape
        wide_x = widened(x)
        centred = wide_x - wide_x.sum(axis=self.axes, keepdims=True) * (1.0 / self.count)
        self.saved = (centred,)
        squares = (centred * centred).sum(axis=self.axes, keepdims=self.keepdims)
        return narrowed(squares * (1.0 / self.count), x.dtype)

    def backward(self, dy: Array) -> Array:
        (centred,) = self.saved  # its sum is 0, so the mean has no part in the gradient
        return narrowed(self.spread(widened(dy)) * (2.0 / self.count) * centred, dy.dtype)


class _Extreme(_Reduction):
    def __init__(self, name: str, axes: tuple[int, ...], keepdims: bool) -> None:
        super().__init__(axes, keepdims)
        self.name = name

    def forward(self, x: Array) -> Array:
        self.shape = x.shape
        with np.errstate(invalid="ignore"):  # ml_dtypes' bfloat16 warns of a NaN
            y = getattr(x, self.name)(axis=self.axes, keepdims=self.keepdims)
        self.saved = (x, y)
        return y

    def backward(self, dy: Array) -> Array:
        x, y = self.saved
        xp, y = array_module(x), self.spread(y)
        winners = (x == y) | (x != x)  # NaN, where y is NaN too
        count = winners.sum(axis=self.axes, keepdims=True, dtype=wide(x.dtype))
        share = narrowed(widened(self.spread(dy)) / count, dy.dtype)
        return narrowed(xp.where(winners, share, dy.dtype.type(0)), dy.dtype)
