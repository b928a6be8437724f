"""The negative log-likelihood of labels: cross_entropy of probabilities that are logarithms."""

from typing import Any

import numpy as np

from gpucnn.autograd import Function
from gpucnn.device import Array, array_module
from gpucnn.ops._exact import narrowed, wide, widened
from gpucnn.ops._labels import checked_labels, class_weights
from gpucnn.ops.elementwise import float_tensor
from gpucnn.ops.loss import check_reduction
from gpucnn.precision import autocast_dtype
from gpucnn.tensor import Tensor


def nll_loss(x: Any, target: Any, weight: Any = None, reduction: str = "mean") -> Tensor:
    """The mean of -x[target] over the examples: a scalar, in nats.

    x is (..., K), at least two-dimensional: log-probabilities, such as log_softmax returns.  target
    is (...), integers in 0..K-1: a tensor, array or list.  weight (K,) weights each example by its
    label and makes the mean a weighted one.  reduction is "mean", "sum", or "none" for the loss of
    each example, in target's shape.  As in PyTorch, the mean is NaN if all weights are 0.

    Of log_softmax(logits) it is cross_entropy(logits), which is faster.

    Half precision is computed in float32.  The loss has the dtype of x; under autocast it is
    float32.

    Raises ShapeError if shapes do not fit or there is no example to average over; DtypeError for x
    that is not floating-point or labels that are not integers; ArgumentError for another reduction
    or a label out of range.  Labels on a GPU are not checked, because that would stall every step;
    one out of range makes its loss NaN.
    """
    check_reduction("nll_loss", reduction)
    x = float_tensor("nll_loss", x)
    labels = checked_labels("nll_loss", "x", x, target, empty=reduction != "mean")
    return _NLL(labels, class_weights("nll_loss", x, weight), reduction)(x)


class _NLL(Function):
    name = "nll_loss"

    def __init__(self, labels: Array, weight: Array | None, reduction: str) -> None:
        self.labels, self.weight, self.reduction = labels, weight, reduction

    def forward(self, x: Array) -> Array:
        xp = array_module(x)
        self.shape, self.dtype, dtype = x.shape, x.dtype, wide(x.dtype)
        labels = self.labels.reshape(-1).astype(np.int64, copy=False)
        rows = xp.arange(len(labels))
        columns = xp.clip(labels, 0, max(x.shape[-1] - 1, 0))
        weights = xp.ones(len(labels), dtype) if self.weight is None else self.weight[columns]
        share = -xp.where(labels == columns, weights, dtype.type(np.nan))
        loss = widened(x.reshape(len(labels), x.shape[-1])[rows, columns])
        with np.errstate(invalid="ignore"):  # 0 * infinity and 0 / 0, as on a GPU
            loss = loss * share
            if self.reduction == "mean":
                total = weights.sum()
                loss, share = loss.sum() / total, share / total
            elif self.reduction == "sum":
                loss = loss.sum()
            else:
                loss = loss.reshape(self.labels.shape)
        self.saved = (rows, columns, share)
        return narrowed(loss, x.dtype if autocast_dtype() is None else dtype)

    def backward(self, dy: Array) -> Array:
        rows, columns, share = self.saved
        dx = array_module(dy).zeros((len(rows), self.shape[-1]), self.dtype)
        dx[rows, columns] = narrowed(share * widened(dy).reshape(-1), self.dtype)
        return dx.reshape(self.shape)
