"""Pooling with any array module: one pass over the image for each offset inside the window.

It serves float64 on a GPU, and windows too large for cpu.py.
"""

from dataclasses import dataclass
from typing import Protocol

from gpucnn.device import Array, array_module
from gpucnn.ops.geometry import Geometry


def _padded(x: Array, g: Geometry, value: float) -> Array:
    if not g.padded:
        return x
    xp = array_module(x)
    shape = (g.n, g.h + g.top + g.bottom, g.w + g.left + g.right, g.c)
    padded = xp.full(shape, value, x.dtype)
    padded[:, g.top : g.top + g.h, g.left : g.left + g.w] = x
    return padded


def _cropped(dx: Array, g: Geometry) -> Array:
    if not g.padded:
        return dx
    return array_module(dx).ascontiguousarray(dx[:, g.top : g.top + g.h, g.left : g.left + g.w])


def offsets(g: Geometry) -> list[tuple[slice, slice]]:
    """For each offset inside the window, in row order, its rows and columns of all windows."""
    return [
        (
            slice(r, r + (g.oh - 1) * g.stride_h + 1, g.stride_h),
            slice(s, s + (g.ow - 1) * g.stride_w + 1, g.stride_w),
        )
        for r in range(g.kh)
        for s in range(g.kw)
    ]


class SavedMax(Protocol):
    """What max_forward saves for the backward pass."""

    def backward(self, dy: Array) -> Array:
        """dx (N, H, W, C) for dy (N, OH, OW, C)."""
        ...


def max_forward(x: Array, g: Geometry, keep: bool) -> tuple[Array, SavedMax | None]:
    """y (N, OH, OW, C) and, with `keep`, the state for backward."""
    padded = _padded(x, g, -array_module(x).inf)
    y, winner = largest([padded[:, rows, columns] for rows, columns in offsets(g)], first(x, g))
    return y, _SavedWinners(winner, g) if keep else None


@dataclass
class _SavedWinners:
    winner: Array  # (N, OH, OW, C): offset of the largest value inside its window, in row order
    g: Geometry

    def backward(self, dy: Array) -> Array:
        xp, g = array_module(dy), self.g
        dx = xp.zeros((g.n, g.h + g.top + g.bottom, g.w + g.left + g.right, g.c), dy.dtype)
        for i, (rows, columns) in enumerate(offsets(g)):
            dx[:, rows, columns] += xp.where(self.winner == i, dy, dy.dtype.type(0))
        return _cropped(dx, g)


def largest(candidates: list[Array], first: Array) -> tuple[Array, Array]:
    """The largest candidate and its index: the first on a tie, the last NaN if there is one, and
    `first` where all are -infinity."""
    xp = array_module(candidates[0])
    y = xp.full(candidates[0].shape, -xp.inf, candidates[0].dtype)
    winner = xp.empty(y.shape, first.dtype)
    winner[...] = first
    for i, candidate in enumerate(candidates):
        winner = xp.where((candidate > y) | xp.isnan(candidate), winner.dtype.type(i), winner)
        y = xp.maximum(y, candidate)
    return y, winner


def first(x: Array, g: Geometry) -> Array:
    """The offset inside each window of its first pixel on the image: (OH, OW, 1)."""
    xp = array_module(x)
    row = xp.maximum(g.top - xp.arange(g.oh) * g.stride_h, 0)
    column = xp.maximum(g.left - xp.arange(g.ow) * g.stride_w, 0)
    offset = (row[:, None] * g.kw + column)[..., None]
    return offset.astype(xp.int16 if g.kh * g.kw < 2**15 else xp.int32)


def pixels(x: Array, g: Geometry, area: tuple[bool, int, int]) -> Array:
    """The number of pixels in the mean of each window: (OH, OW, 1).

    area is (count_include_pad, bottom, right): whether padding counts, and if so how many rows and
    columns of it after the image.
    """
    xp = array_module(x)
    count_include_pad, bottom, right = area
    counts = []
    for size, k, stride, outputs, before, after in (
        (g.h, g.kh, g.stride_h, g.oh, g.top, bottom),
        (g.w, g.kw, g.stride_w, g.ow, g.left, right),
    ):
        starts = xp.arange(outputs) * stride - before
        first, last = (-before, size + after) if count_include_pad else (0, size)
        counts.append(xp.minimum(starts + k, last) - xp.maximum(starts, first))
    return (counts[0][:, None, None] * counts[1][:, None]).astype(x.dtype)


def avg_forward(x: Array, g: Geometry, area: tuple[bool, int, int]) -> Array:
    """y (N, OH, OW, C) for x (N, H, W, C); area as in `pixels`."""
    xp = array_module(x)
    padded = _padded(x, g, 0)
    y = xp.zeros((g.n, g.oh, g.ow, g.c), x.dtype)
    for rows, columns in offsets(g):
        y += padded[:, rows, columns]
    y /= pixels(x, g, area)
    return y


def avg_backward(dy: Array, g: Geometry, area: tuple[bool, int, int]) -> Array:
    """dx (N, H, W, C) for dy (N, OH, OW, C); area as in `pixels`."""
    xp = array_module(dy)
    share = dy / pixels(dy, g, area)
    dx = xp.zeros((g.n, g.h + g.top + g.bottom, g.w + g.left + g.right, g.c), dy.dtype)
    for rows, columns in offsets(g):
        dx[:, rows, columns] += share
    return _cropped(dx, g)


def global_backward(dy: Array, shape: tuple[int, ...]) -> Array:
    """dx of `shape` (N, H, W, C) for dy (N, C)."""
    xp, (_, h, w, _) = array_module(dy), shape
    return xp.ascontiguousarray(
        xp.broadcast_to((dy / dy.dtype.type(h * w))[:, None, None, :], shape)
    )
