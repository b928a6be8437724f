"""Adaptive pooling: windows as large as they must be for an output of a given size."""

import math

import numpy as np

from gpucnn.device import Array, to_device
from gpucnn.errors import ArgumentError, ShapeError
from gpucnn.ops.matmul import matmul
from gpucnn.ops.shape import reshape
from gpucnn.tensor import Tensor


def adaptive_avg_pool2d(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The means of OH x OW windows that cover the image: (N, H, W, C) -> (N, OH, OW, C).

    size is (OH, OW).  Window i takes rows floor(i H / OH) up to ceil((i + 1) H / OH) - 1, and
    columns alike: neighbours overlap where OH does not divide H.  An image of that size already
    comes back as it is.

    Raises ShapeError if x has no pixels or is not of images, ArgumentError for a size below 1.
    """
    if x.ndim != 4 or x.shape[1] * x.shape[2] == 0:
        raise ShapeError(f"adaptive_avg_pool2d: expected images (N, H, W, C), got shape {x.shape}")
    oh, ow = size
    if oh < 1 or ow < 1:
        raise ArgumentError(f"adaptive_avg_pool2d: size must be at least 1, got {size}")
    n, h, w, c = x.shape
    if (h, w) == (oh, ow):
        return x
    rows = matmul(_means(x, h, oh), reshape(x, (n, h, w * c)))  # (N, OH, W C)
    return matmul(_means(x, w, ow), reshape(rows, (n, oh, w, c)))


def _means(x: Tensor, size: int, outputs: int) -> Tensor:
    """The matrix (outputs, size) that takes the mean of each window along one axis."""
    matrix: Array = np.zeros((outputs, size), x.dtype)
    for i in range(outputs):
        first, end = i * size // outputs, math.ceil((i + 1) * size / outputs)
        matrix[i, first:end] = 1 / (end - first)
    return Tensor(to_device(matrix, x.device))
