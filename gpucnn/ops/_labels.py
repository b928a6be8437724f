"""Checks that cross_entropy and nll_loss share."""

from typing import Any

import numpy as np

from gpucnn.device import Array, array_module, device_of, to_device, working_on
from gpucnn.errors import ArgumentError, DtypeError, ShapeError
from gpucnn.ops._exact import wide
from gpucnn.tensor import Tensor


def checked_labels(op: str, what: str, x: Tensor, labels: Any, empty: bool = False) -> Array:
    """The labels, a tensor, array or list, as an array on the device of x, checked.

    x is (..., K), at least two-dimensional; errors call it `what`.  empty: it may be empty.
    """
    labels = labels.data if isinstance(labels, Tensor) else labels
    if not hasattr(labels, "dtype"):
        labels = np.asarray(labels)
    if labels.dtype.kind not in "iu":
        raise DtypeError(f"{op}: expected integer labels, got {labels.dtype}")
    if labels.shape != x.shape[:-1] or x.ndim < 2:
        raise ShapeError(
            f"{op}: {what} {x.shape} need labels of shape {x.shape[:-1]}, got {tuple(labels.shape)}"
        )
    if x.size == 0 and not (empty and labels.size == 0):
        raise ShapeError(f"{op}: no examples to average over in {what} {x.shape}")
    if not isinstance(labels, np.ndarray):
        return labels
    classes = x.shape[-1]
    if labels.size and not (labels.min() >= 0 and labels.max() < classes):
        raise ArgumentError(
            f"{op}: labels must be in 0..{classes - 1}, got {labels.min()}..{labels.max()}"
        )
    return to_device(labels, device_of(x.data))


def class_weights(op: str, x: Tensor, weight: Any) -> Array | None:
    """The weights of the K classes of x as an array beside x, in the dtype to compute in."""
    if weight is None:
        return None
    weight = weight.data if isinstance(weight, Tensor) else weight
    with working_on(x.device):
        array: Array = array_module(x.data).asarray(weight, dtype=wide(x.dtype))
    if array.shape != x.shape[-1:]:
        raise ShapeError(f"{op}: expected {x.shape[-1]} class weights, got shape {array.shape}")
    return array
