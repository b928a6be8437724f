"""Adaptive pooling: the window sizes follow from the size of the output."""

from typing import Any

import numpy as np

from gpucnn.autograd import Function
from gpucnn.device import Array, array_module
from gpucnn.errors import ShapeError
from gpucnn.integers import ceil_div
from gpucnn.ops._exact import narrowed, wide, widened
from gpucnn.ops.elementwise import float_tensor
from gpucnn.ops.geometry import Size, pair
from gpucnn.ops.pool2d.op import avg_pool2d
from gpucnn.tensor import Tensor

Windows = list[slice]  # of pixels along one axis, one for each output


def adaptive_avg_pool2d(x: Any, size: Size) -> Tensor:
    """The means of OH x OW windows that cover the image: (N, H, W, C) -> (N, OH, OW, C).

    size is (OH, OW), or an int for both.  Window i covers rows floor(i H / OH) to
    ceil((i + 1) H / OH) - 1; columns likewise.  Neighbours overlap where OH does not divide H.  An
    infinity or a NaN affects only the windows that contain it.  If x already has that size, x
    itself is returned.

    Raises ShapeError unless x is images of at least one pixel, ArgumentError for a size below 1,
    DtypeError unless x is floating-point.
    """
    t = float_tensor("adaptive_avg_pool2d", x)
    if t.ndim != 4 or t.shape[1] * t.shape[2] == 0:
        raise ShapeError(f"adaptive_avg_pool2d: expected images (N, H, W, C), got shape {t.shape}")
    oh, ow = pair("adaptive_avg_pool2d", "size", size, 1)
    _, h, w, _ = t.shape
    if (h, w) == (oh, ow):
        return t
    if h % oh == w % ow == 0:  # windows of one size, side by side
        return avg_pool2d(t, (h // oh, w // ow))
    return _AdaptiveAvgPool2d(_windows(h, oh), _windows(w, ow))(t)


def _windows(size: int, outputs: int) -> Windows:
    return [slice(i * size // outputs, ceil_div((i + 1) * size, outputs)) for i in range(outputs)]


class _AdaptiveAvgPool2d(Function):
    """Sum the rows of each window, then its columns.

    Sums slices, because a product with a matrix of zeros and ones would turn infinity into NaN.
    """

    name = "adaptive_avg_pool2d"

    def __init__(self, rows: Windows, columns: Windows) -> None:
        self.rows, self.columns = rows, columns

    def forward(self, x: Array) -> Array:
        xp, (n, _, w, c), dtype = array_module(x), x.shape, wide(x.dtype)
        self.shape, narrow, x = x.shape, x.dtype, widened(x)
        by_row = xp.empty((n, len(self.rows), w, c), dtype)
        for i, rows in enumerate(self.rows):
            by_row[:, i] = x[:, rows].sum(axis=1)
        y = xp.empty((n, len(self.rows), len(self.columns), c), dtype)
        for j, columns in enumerate(self.columns):
            y[:, :, j] = by_row[:, :, columns].sum(axis=2)
        y /= self._pixels(y)
        return narrowed(y, narrow)

    def backward(self, dy: Array) -> Array:
        xp, (n, _, w, c) = array_module(dy), self.shape
        share = widened(dy) / self._pixels(widened(dy))
        by_row = xp.zeros((n, len(self.rows), w, c), share.dtype)
        for j, columns in enumerate(self.columns):
            by_row[:, :, columns] += share[:, :, j, None]
        dx = xp.zeros(self.shape, share.dtype)
        for i, rows in enumerate(self.rows):
            dx[:, rows] += by_row[:, i, None]
        return narrowed(dx, dy.dtype)

    def _pixels(self, y: Array) -> Array:
        """The number of pixels in each mean: (OH, OW, 1)."""
        rows, columns = (
            np.array([window.stop - window.start for window in windows], y.dtype)
            for windows in (self.rows, self.columns)
        )
        return array_module(y).asarray((rows[:, None] * columns)[..., None])
