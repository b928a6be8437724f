"""Pooling with any array module: one pass over the image for each position inside the window.

What float64 on a GPU takes, and windows too large for the other halves.
"""

from gpucnn.device import Array, array_module
from gpucnn.ops.geometry import Geometry


def _padded(x: Array, v: Geometry, value: float) -> Array:
    if not v.padded:
        return x
    xp = array_module(x)
    shape = (v.n, v.h + v.top + v.bottom, v.w + v.left + v.right, v.c)
    padded = xp.full(shape, value, x.dtype)
    padded[:, v.top : v.top + v.h, v.left : v.left + v.w] = x
    return padded


def _cropped(dx: Array, v: Geometry) -> Array:
    if not v.padded:
        return dx
    return array_module(dx).ascontiguousarray(dx[:, v.top : v.top + v.h, v.left : v.left + v.w])


def _positions(v: Geometry) -> list[tuple[slice, slice]]:
    """For each position inside the window, in row order, the pixels of all windows there."""
    return [
        (
            slice(r, r + (v.oh - 1) * v.stride_h + 1, v.stride_h),
            slice(s, s + (v.ow - 1) * v.stride_w + 1, v.stride_w),
        )
        for r in range(v.kh)
        for s in range(v.kw)
    ]


def max_forward(x: Array, v: Geometry, keep: bool) -> tuple[Array, tuple[Array, ...]]:
    padded = _padded(x, v, -array_module(x).inf)
    y, winner = largest([padded[:, rows, columns] for rows, columns in _positions(v)], first(x, v))
    return y, (winner,) if keep else ()


def largest(candidates: list[Array], first: Array) -> tuple[Array, Array]:
    """The largest candidate, and its position among them: the first on a tie, the last NaN if there
    are any, and `first` where all are -infinity."""
    xp = array_module(candidates[0])
    y = xp.full(candidates[0].shape, -xp.inf, candidates[0].dtype)
    winner = xp.empty(y.shape, first.dtype)
    winner[...] = first
    for i, candidate in enumerate(candidates):
        winner = xp.where((candidate > y) | xp.isnan(candidate), winner.dtype.type(i), winner)
        y = xp.maximum(y, candidate)
    return y, winner


def first(x: Array, v: Geometry) -> Array:
    """The position inside each window of its first pixel on the image: (OH, OW, 1)."""
    xp = array_module(x)
    row = xp.maximum(v.top - xp.arange(v.oh) * v.stride_h, 0)
    column = xp.maximum(v.left - xp.arange(v.ow) * v.stride_w, 0)
    position = (row[:, None] * v.kw + column)[..., None]
    return position.astype(xp.int16 if v.kh * v.kw < 2**15 else xp.int32)


def max_backward(dy: Array, kept: tuple[Array, ...], v: Geometry) -> Array:
    xp, (winner,) = array_module(dy), kept
    dx = xp.zeros((v.n, v.h + v.top + v.bottom, v.w + v.left + v.right, v.c), dy.dtype)
    for i, (rows, columns) in enumerate(_positions(v)):
        dx[:, rows, columns] += xp.where(winner == i, dy, dy.dtype.type(0))
    return _cropped(dx, v)


def pixels(x: Array, v: Geometry, area: tuple[bool, int, int]) -> Array:
    """How many pixels the mean of each window is over: (OH, OW, 1)."""
    xp = array_module(x)
    count_include_pad, bottom, right = area
    counts = []
    for size, k, stride, outputs, before, after in (
        (v.h, v.kh, v.stride_h, v.oh, v.top, bottom),
        (v.w, v.kw, v.stride_w, v.ow, v.left, right),
    ):
        starts = xp.arange(outputs) * stride - before
        first, last = (-before, size + after) if count_include_pad else (0, size)
        counts.append(xp.minimum(starts + k, last) - xp.maximum(starts, first))
    return (counts[0][:, None, None] * counts[1][:, None]).astype(x.dtype)


def avg_forward(x: Array, v: Geometry, area: tuple[bool, int, int]) -> Array:
    xp = array_module(x)
    padded = _padded(x, v, 0)
    y = xp.zeros((v.n, v.oh, v.ow, v.c), x.dtype)
    for rows, columns in _positions(v):
        y += padded[:, rows, columns]
    y /= pixels(x, v, area)
    return y


def avg_backward(dy: Array, v: Geometry, area: tuple[bool, int, int]) -> Array:
    xp = array_module(dy)
    share = dy / pixels(dy, v, area)
    dx = xp.zeros((v.n, v.h + v.top + v.bottom, v.w + v.left + v.right, v.c), dy.dtype)
    for rows, columns in _positions(v):
        dx[:, rows, columns] += share
    return _cropped(dx, v)


def global_forward(x: Array) -> Array:
    return x.mean(axis=(1, 2), dtype=x.dtype)


def global_backward(dy: Array, shape: tuple[int, ...]) -> Array:
    xp, (_, h, w, _) = array_module(dy), shape
    return xp.ascontiguousarray(
        xp.broadcast_to((dy / dy.dtype.type(h * w))[:, None, None, :], shape)
    )
