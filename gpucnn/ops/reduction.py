"""Sums, means and extremes over axes."""

import math
from typing import Any

from gpucnn.autograd import Function
from gpucnn.device import Array, array_module
from gpucnn.errors import ArgumentError, ShapeError
from gpucnn.ops.elementwise import as_tensor
from gpucnn.tensor import Tensor

Axis = int | tuple[int, ...] | None


def sum(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The sum over `axis` (one, several, or None for all); reduced axes stay as 1 if keepdims."""
    x = as_tensor(x)
    return _Sum(_axes("sum", x, axis), keepdims)(x)


def mean(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The mean over `axis`.  Raises ShapeError if there is nothing to average."""
    t = as_tensor(x)
    axes = _axes("mean", t, axis)
    count = math.prod(t.shape[i] for i in axes)
    if count == 0:
        raise ShapeError(f"mean: nothing to average in shape {t.shape} over axes {axes}")
    return sum(t, axes, keepdims) * (1.0 / count)


def var(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The mean squared distance from the mean over `axis` (divides by the count)."""
    x = as_tensor(x)
    centred = x - mean(x, axis, keepdims=True)
    return mean(centred * centred, axis, keepdims)


def max(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The largest value over `axis`.  Elements that tie share the gradient equally."""
    return _extreme("max", x, axis, keepdims)


def min(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The smallest value over `axis`.  Elements that tie share the gradient equally."""
    return _extreme("min", x, axis, keepdims)


def _extreme(op: str, x: Any, axis: Axis, keepdims: bool) -> Tensor:
    x = as_tensor(x)
    axes = _axes(op, x, axis)
    if math.prod(x.shape[i] for i in axes) == 0:
        raise ShapeError(f"{op}: nothing to compare in shape {x.shape} over axes {axes}")
    return _Extreme(op, axes, keepdims)(x)


def _axes(op: str, x: Tensor, axis: Axis) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(x.ndim))
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
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
        """`reduced` with its reduced axes back as 1."""
        return reduced.reshape([1 if i in self.axes else n for i, n in enumerate(self.shape)])


class _Sum(_Reduction):
    name = "sum"

    def forward(self, x: Array) -> Array:
        self.shape = x.shape
        return x.sum(axis=self.axes, keepdims=self.keepdims, dtype=x.dtype)

    def backward(self, dy: Array) -> Array:
        return array_module(dy).broadcast_to(self.spread(dy), self.shape).copy()


class _Extreme(_Reduction):
    def __init__(self, name: str, axes: tuple[int, ...], keepdims: bool) -> None:
        super().__init__(axes, keepdims)
        self.name = name

    def forward(self, x: Array) -> Array:
        self.shape = x.shape
        y = getattr(x, self.name)(axis=self.axes, keepdims=self.keepdims)
        self.saved = (x, y)
        return y

    def backward(self, dy: Array) -> Array:
        x, y = self.saved or ()
        winners = x == self.spread(y)
        count = winners.sum(axis=self.axes, keepdims=True, dtype=x.dtype)
        return winners * (self.spread(dy) / count)
