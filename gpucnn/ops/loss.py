"""Losses other than cross_entropy, which is in softmax.py."""

from typing import Any

from gpucnn.errors import ShapeError
from gpucnn.ops.elementwise import as_tensor, subtract
from gpucnn.ops.reduction import mean
from gpucnn.tensor import Tensor


def mse_loss(x: Any, target: Any) -> Tensor:
    """The mean of (x - target)**2 over all elements: a scalar.

    x and target have the same shape and floating-point dtype; either may require a gradient.
    Raises ShapeError if the shapes differ (nothing is broadcast), DtypeError.
    """
    x, target = as_tensor(x), as_tensor(target)
    if x.shape != target.shape:
        raise ShapeError(f"mse_loss: x {x.shape} and target {target.shape} differ")
    difference = subtract(x, target)
    return mean(difference * difference)
