"""Sums, means and extremes over axes."""

import math
from typing import Any

import numpy as np

from gpucnn.autograd import Function
from gpucnn.device import Array, array_module
from gpucnn.errors import ArgumentError, ShapeError
from gpucnn.ops._exact import narrowed, wide, widened
from gpucnn.ops.elementwise import as_tensor, require_float
from gpucnn.ops.shape import astype
from gpucnn.tensor import Tensor

Axis = int | tuple[int, ...] | None


def sum(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The sum over `axis` (one, several, or None for all); reduced axes stay as 1 if keepdims.

    float16 is added up in float32 and rounded once: beyond 65504 the sum is infinite.
    """
    x = as_tensor(x)
    return _Sum(_axes("sum", x, axis), keepdims)(x)


def mean(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The mean over `axis`; of float16 it is finite even where the sum is not.

    Raises ShapeError if there is nothing to average.
    """
    t = as_tensor(x)
    axes = _axes("mean", t, axis)
    count = math.prod(t.shape[i] for i in axes)
    if count == 0:
        raise ShapeError(f"mean: nothing to average in shape {t.shape} over axes {axes}")
    require_float("mean", t)
    return _Sum(axes, keepdims, "mean", 1.0 / count)(t)


def var(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The mean squared distance from the mean over `axis` (divides by the count).

    float16 is computed in float32, where the squares do not overflow.
    """
    x = as_tensor(x)
    if x.dtype == np.float16:
        return astype(var(astype(x, np.float32), axis, keepdims), x.dtype)
    centred = x - mean(x, axis, keepdims=True)
    return mean(centred * centred, axis, keepdims)


def max(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The largest value over `axis`.  Elements that tie share the gradient equally.

    NaN wins over every number, and the NaNs share the gradient, as in torch.max(x).
    """
    return _extreme("max", x, axis, keepdims)


def min(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The smallest value over `axis`.  Elements that tie share the gradient equally.

    NaN wins over every number, and the NaNs share the gradient, as in torch.min(x).
    """
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
    """The sum times a factor: 1, or for a mean one over the count."""

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
        xp, given = array_module(dy), dy.dtype
        if self.factor is not None:
            dy = narrowed(widened(dy) * self.factor, given)
        return xp.broadcast_to(self.spread(dy), self.shape).copy()


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
        x, y = self.saved
        xp, y = array_module(x), self.spread(y)
        winners = (x == y) | (x != x)  # a NaN: y is one too then
        count = winners.sum(axis=self.axes, keepdims=True, dtype=wide(x.dtype))
        share = narrowed(widened(self.spread(dy)) / count, dy.dtype)
        return xp.where(winners, share, dy.dtype.type(0))
