"""Losses as modules; each result is a scalar."""

from typing import Any

from gpucnn import ops
from gpucnn.nn.module import Module
from gpucnn.tensor import Tensor


class CrossEntropyLoss(Module):
    """The mean of -log softmax(logits)[target], in nats: ops.cross_entropy.

    logits is (..., K), target (...) integers in 0..K-1.  weight (K,) weights each example by its
    label.  label_smoothing in [0, 1) spreads that part of each target evenly over the classes.

    Raises, when called, ShapeError, DtypeError or ArgumentError as the op does.
    """

    def __init__(self, weight: Any = None, label_smoothing: float = 0.0) -> None:
        self.weight = weight
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, target: Any) -> Tensor:
        return ops.cross_entropy(logits, target, self.weight, self.label_smoothing)


class MSELoss(Module):
    """The mean of (y - target)**2 over every element: ops.mse_loss.

    y and target have the same shape; the result is a scalar.  Raises ShapeError if they differ.
    """

    def forward(self, y: Tensor, target: Any) -> Tensor:
        return ops.mse_loss(y, target)
