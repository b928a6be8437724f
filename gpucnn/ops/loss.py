"""Losses other than cross_entropy, which is in softmax.py."""

from typing import Any

import numpy as np

from gpucnn.autograd import Function
from gpucnn.device import Array, array_module, working_on
from gpucnn.errors import ArgumentError, DtypeError, ShapeError
from gpucnn.ops._exact import narrowed, wide, widened
from gpucnn.ops.elementwise import float_tensor, subtract
from gpucnn.ops.reduction import mean
from gpucnn.precision import autocast_dtype
from gpucnn.tensor import Tensor

_REDUCTIONS = ("mean", "sum", "none")


def mse_loss(x: Any, target: Any) -> Tensor:
    """The mean of (x - target)**2 over all elements: a scalar.

    x and target have the same shape and floating-point dtype; either may require a gradient.
    Raises ShapeError if the shapes differ (nothing is broadcast) or are empty, DtypeError unless
    both are floating-point, of one dtype.
    """
    x, target = (float_tensor("mse_loss", t) for t in (x, target))
    if x.shape != target.shape:
        raise ShapeError(f"mse_loss: x {x.shape} and target {target.shape} differ")
    difference = subtract(x, target)
    if x.size == 0:
        raise ShapeError(f"mse_loss: nothing to average in shape {x.shape}")
    return mean(difference * difference)


def l1_loss(x: Any, target: Any, reduction: str = "mean") -> Tensor:
    """|x - target|, averaged over all elements: a scalar.

    reduction is "mean", "sum", or "none" for the loss of each element, in x's shape.  Where x
    equals target the gradient is 0.  Dtypes and errors as for `binary_cross_entropy_with_logits`.
    """
    return _elementwise("l1_loss", _L1(), x, target, reduction)


def smooth_l1_loss(x: Any, target: Any, reduction: str = "mean", beta: float = 1.0) -> Tensor:
    """d**2 / (2 beta) where d = |x - target| < beta, else d - beta / 2; averaged: a scalar.

    beta 0 gives l1_loss.  reduction, dtypes and errors as for `l1_loss`; also ArgumentError for a
    negative beta.
    Source: Girshick 2015, section 2.3 (Fast R-CNN, with beta 1).
    """
    if not beta >= 0:
        raise ArgumentError(f"smooth_l1_loss: beta must not be negative, got {beta}")
    loss = _SmoothL1(beta) if beta else _L1()
    return _elementwise("smooth_l1_loss", loss, x, target, reduction)


def binary_cross_entropy_with_logits(
    x: Any, target: Any, weight: Any = None, reduction: str = "mean", pos_weight: Any = None
) -> Tensor:
    """-target log sigmoid(x) - (1 - target) log sigmoid(-x), averaged: a scalar, in nats.

    target has x's shape; its values are probabilities, 0 to 1.  weight multiplies the loss of each
    element, pos_weight its first term; both broadcast to x's shape, so that (K,) weights the
    classes of logits (..., K).  reduction is "mean" (over all elements), "sum", or "none" for the
    loss of each element, in x's shape.  Computed as
    pos_weight target softplus(-x) + (1 - target) softplus(x), which never overflows and cancels
    nothing.  x and target may require a gradient.

    Half precision is computed in float32.  The loss has the dtype of x; under autocast it is
    float32.

    Raises ShapeError if the shapes differ, a weight does not broadcast, or there is nothing to
    average; ArgumentError for another reduction; DtypeError unless x and target are floating-point,
    of one dtype or with x in half precision and target float32.
    """
    loss = _BinaryCrossEntropy()
    name = "binary_cross_entropy_with_logits"
    return _elementwise(name, loss, x, target, reduction, weight, pos_weight)


class _Loss(Function):
    """A loss of each element, perhaps weighted, and its reduction."""

    reduction = "mean"
    weight: Any = None  # None, or an array that broadcasts
    pos_weight: Any = None

    def loss(self, x: Array, target: Array) -> Array:
        """The loss of each element."""
        raise NotImplementedError

    def slopes(self, x: Array, target: Array) -> tuple[Array, Array]:
        """Its derivatives by x and by target."""
        raise NotImplementedError

    def forward(self, x: Array, target: Array) -> Array:
        self.saved = (x, target)
        with np.errstate(invalid="ignore", over="ignore"):  # 0 * infinity, as on a GPU
            y = self.loss(widened(x), widened(target))
            if self.weight is not None:
                y = y * self.weight
            if self.reduction == "mean":
                y = y.mean()
            elif self.reduction == "sum":
                y = y.sum()
        return narrowed(y, x.dtype if autocast_dtype() is None else wide(x.dtype))

    def backward(self, dy: Array) -> tuple[Array | None, Array | None]:
        x, target = self.saved
        share = widened(dy)
        if self.reduction == "mean":
            share = share / share.dtype.type(x.size)
        if self.weight is not None:
            share = share * self.weight
        with np.errstate(invalid="ignore", over="ignore"):
            slopes = self.slopes(widened(x), widened(target))
            dx, dtarget = (
                narrowed(slope * share, given.dtype) if needed else None
                for slope, given, needed in zip(slopes, (x, target), self.needs, strict=True)
            )
        return dx, dtarget


class _L1(_Loss):
    name = "l1_loss"

    def loss(self, x: Array, target: Array) -> Array:
        return abs(x - target)

    def slopes(self, x: Array, target: Array) -> tuple[Array, Array]:
        away = x - target  # NaN has slope 0, as in PyTorch; sign(NaN) depends on the library
        slope = (away > 0).astype(x.dtype) - (away < 0).astype(x.dtype)
        return slope, -slope


class _SmoothL1(_Loss):
    name = "smooth_l1_loss"

    def __init__(self, beta: float) -> None:
        self.beta = beta

    def loss(self, x: Array, target: Array) -> Array:
        xp, beta = array_module(x), x.dtype.type(self.beta)
        size = abs(x - target)
        return xp.where(size < beta, size * size * (0.5 / beta), size - beta / 2)

    def slopes(self, x: Array, target: Array) -> tuple[Array, Array]:
        slope = array_module(x).clip((x - target) / x.dtype.type(self.beta), -1, 1)
        return slope, -slope


class _BinaryCrossEntropy(_Loss):
    name = "binary_cross_entropy_with_logits"

    def loss(self, x: Array, target: Array) -> Array:
        negative, positive = _softplus(x)
        return self._positive(target) * negative + (1 - target) * positive

    def slopes(self, x: Array, target: Array) -> tuple[Array, Array]:
        xp = array_module(x)
        small = xp.exp(-abs(x))
        rise, fall = xp.maximum(small, x >= 0), xp.maximum(small, x <= 0)
        dx = ((1 - target) * rise - self._positive(target) * fall) / (1 + small)
        negative, positive = _softplus(x)
        return dx, self._positive(negative) - positive

    def _positive(self, factor: Array) -> Array:
        return factor if self.pos_weight is None else factor * self.pos_weight


def _softplus(x: Array) -> tuple[Array, Array]:
    """log(1 + e**-x) and log(1 + e**x)."""
    xp = array_module(x)
    both = xp.log1p(xp.exp(-abs(x)))
    return both + xp.maximum(-x, x.dtype.type(0)), both + xp.maximum(x, x.dtype.type(0))


def _elementwise(
    op: str,
    loss: _Loss,
    x: Any,
    target: Any,
    reduction: str,
    weight: Any = None,
    pos_weight: Any = None,
) -> Tensor:
    """Apply `loss` to x and target, checked."""
    check_reduction(op, reduction)
    x, target = (float_tensor(op, t) for t in (x, target))
    if x.shape != target.shape:
        raise ShapeError(f"{op}: x {x.shape} and target {target.shape} differ")
    if target.dtype not in (x.dtype, wide(x.dtype)):
        raise DtypeError(
            f"{op}: x is {x.dtype}, target is {target.dtype}\n"
            "  expected one dtype for both; convert with .astype"
        )
    if reduction == "mean" and x.size == 0:
        raise ShapeError(f"{op}: nothing to average in shape {x.shape}")
    loss.reduction = reduction
    loss.weight = _weights(op, "weight", weight, x)
    loss.pos_weight = _weights(op, "pos_weight", pos_weight, x)
    return loss(x, target)


def check_reduction(op: str, reduction: str) -> None:
    """Raise ArgumentError, naming `op`, for an unknown reduction."""
    if reduction not in _REDUCTIONS:
        raise ArgumentError(
            f"{op}: reduction {reduction!r} is unknown; expected {', '.join(_REDUCTIONS)}"
        )


def _weights(op: str, name: str, weight: Any, x: Tensor) -> Array | None:
    """Weights as an array beside x, in the dtype to compute in."""
    if weight is None:
        return None
    weight = weight.data if isinstance(weight, Tensor) else weight
    with working_on(x.device):
        array = array_module(x.data).asarray(weight, dtype=wide(x.dtype))
    try:
        fits = np.broadcast_shapes(array.shape, x.shape) == x.shape
    except ValueError:
        fits = False
    if not fits:
        raise ShapeError(f"{op}: {name} {array.shape} does not broadcast to x {x.shape}")
    return array
