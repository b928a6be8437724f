"""Losses other than cross_entropy, which lives with softmax."""

from typing import Any

from gpucnn.errors import ShapeError
from gpucnn.ops.elementwise import as_tensor, subtract
from gpucnn.ops.reduction import mean
from gpucnn.tensor import Tensor


def mse_loss(y: Any, target: Any) -> Tensor:
    """The mean of (y - target)**2 over every element: a scalar.  Shapes must be equal."""
    y, target = as_tensor(y), as_tensor(target)
    if y.shape != target.shape:
        raise ShapeError(f"mse_loss: y {y.shape} and target {target.shape} differ")
    difference = subtract(y, target)
    return mean(difference * difference)
