"""Losses as modules; each result is a scalar, except with reduction="none"."""

from typing import Any

from gpucnn import ops
from gpucnn.nn.module import Module
from gpucnn.ops.loss import check_reduction
from gpucnn.tensor import Tensor


class CrossEntropyLoss(Module):
    """The mean of -log softmax(logits)[target], in nats: ops.cross_entropy.

    logits is (..., K), target (...) integers in 0..K-1.  weight (K,) weights each example by its
    label.  label_smoothing in [0, 1) spreads that part of each target evenly over the classes.
    reduction is "mean", or "sum" for the sum over the examples.

    Raises, when called, ShapeError, DtypeError or ArgumentError as the op does.
    """

    def __init__(
        self, weight: Any = None, label_smoothing: float = 0.0, reduction: str = "mean"
    ) -> None:
        self.weight = weight
        self.label_smoothing = label_smoothing
        self.reduction = reduction

    def forward(self, logits: Tensor, target: Any) -> Tensor:
        return ops.cross_entropy(logits, target, self.weight, self.label_smoothing, self.reduction)


class NLLLoss(Module):
    """The mean of -x[target] for log-probabilities x, in nats: ops.nll_loss.

    x is (..., K), such as LogSoftmax returns, target (...) integers in 0..K-1.  weight (K,) weights
    each example by its label.  reduction is "mean", "sum", or "none" for the loss of each example.

    Raises ArgumentError for another reduction; when called, ShapeError, DtypeError or ArgumentError
    as the op does.
    """

    def __init__(self, weight: Any = None, reduction: str = "mean") -> None:
        check_reduction("NLLLoss", reduction)
        self.weight, self.reduction = weight, reduction

    def forward(self, x: Tensor, target: Any) -> Tensor:
        return ops.nll_loss(x, target, self.weight, self.reduction)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"


class MSELoss(Module):
    """The mean of (y - target)**2 over every element: ops.mse_loss.

    y and target have the same shape; the result is a scalar.  Raises ShapeError if they differ.
    """

    def forward(self, y: Tensor, target: Any) -> Tensor:
        return ops.mse_loss(y, target)


class L1Loss(Module):
    """The mean of |y - target| over every element: ops.l1_loss.

    reduction is "mean", "sum", or "none" for the loss of each element.  y and target have the same
    shape.  Raises ArgumentError for another reduction; when called, ShapeError if shapes differ.
    """

    def __init__(self, reduction: str = "mean") -> None:
        check_reduction("L1Loss", reduction)
        self.reduction = reduction

    def forward(self, y: Tensor, target: Any) -> Tensor:
        return ops.l1_loss(y, target, self.reduction)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"


class SmoothL1Loss(Module):
    """d**2 / (2 beta) where d = |y - target| < beta, else d - beta / 2: ops.smooth_l1_loss.

    reduction as for L1Loss.  Raises ArgumentError for another reduction; when called, for a
    negative beta, and ShapeError if the shapes differ.
    """

    def __init__(self, reduction: str = "mean", beta: float = 1.0) -> None:
        check_reduction("SmoothL1Loss", reduction)
        self.reduction, self.beta = reduction, beta

    def forward(self, y: Tensor, target: Any) -> Tensor:
        return ops.smooth_l1_loss(y, target, self.reduction, self.beta)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}, beta={self.beta}"


class BCEWithLogitsLoss(Module):
    """Binary cross-entropy of logits, in nats: ops.binary_cross_entropy_with_logits.

    target has the logits' shape and holds probabilities.  weight multiplies the loss of each
    element, pos_weight that of positive targets; both broadcast to that shape, so (K,) weights the
    classes of logits (..., K).  reduction as for L1Loss.

    Raises ArgumentError for another reduction; when called, ShapeError or DtypeError as the op
    does.
    """

    def __init__(self, weight: Any = None, reduction: str = "mean", pos_weight: Any = None) -> None:
        check_reduction("BCEWithLogitsLoss", reduction)
        self.weight, self.reduction, self.pos_weight = weight, reduction, pos_weight

    def forward(self, logits: Tensor, target: Any) -> Tensor:
        return ops.binary_cross_entropy_with_logits(
            logits, target, self.weight, self.reduction, self.pos_weight
        )

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"
