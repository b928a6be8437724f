"""Pooling on NumPy: along the columns of a window, then along its rows, some images at a time.

Backward goes the other way where windows lie apart: rows first, whose runs are long, then columns.
Where they overlap it adds each gradient at the index of its winner.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from gpucnn.cpu import empty, parallel, scratch, spans
from gpucnn.device import Array
from gpucnn.ops._exact import bits, select
from gpucnn.ops.geometry import Geometry
from gpucnn.ops.pool2d import portable as _pool2d_array

# Bytes of the images that are pooled at a time: with what is made of them, they stay in the cache.
_CHUNK_BYTES = 1 << 20


def _chunks(v: Geometry, dtype: np.dtype[Any]) -> list[slice]:
    image = v.h * v.w * v.c * dtype.itemsize
    return list(spans(v.n, max(1, _CHUNK_BYTES // max(image, 1))))


def _padded_shape(v: Geometry, images: int) -> tuple[int, int, int, int]:
    return images, v.h + v.top + v.bottom, v.w + v.left + v.right, v.c


def _padded_chunk(x: Array, v: Geometry, chunk: slice, value: float) -> Array:
    if not v.padded:
        return x[chunk]
    padded = scratch("pool padded", _padded_shape(v, chunk.stop - chunk.start), x.dtype)
    padded[...] = value
    padded[:, v.top : v.top + v.h, v.left : v.left + v.w] = x[chunk]
    return padded


def _along(x: Array, axis: int, v: Geometry) -> list[Array]:
    """For each position inside the window along axis 1 or 2, the rows or columns of x there."""
    k, stride, outputs = ((v.kh, v.stride_h, v.oh), (v.kw, v.stride_w, v.ow))[axis - 1]
    before = (slice(None),) * axis
    return [x[(*before, slice(i, i + (outputs - 1) * stride + 1, stride))] for i in range(k)]


def _reduce(function: np.ufunc, candidates: list[Array], into: Array) -> None:
    if len(candidates) == 1:
        np.copyto(into, candidates[0])
        return
    function(candidates[0], candidates[1], out=into)
    for candidate in candidates[2:]:
        function(into, candidate, out=into)


# --- max ---


def _apart(v: Geometry) -> bool:
    """Whether no two windows share a pixel."""
    return v.stride_h >= v.kh and v.stride_w >= v.kw


def max_forward(x: Array, v: Geometry, keep: bool) -> tuple[Array, tuple[Array, ...]]:
    """y and, if asked for, the winners, in bytes.

    Windows that lie apart keep the winning column of each of their rows (N, H, OW, C), and the
    winning row (N, OH, OW, C); others the position of the winner in row order (N, OH, OW, C).
    """
    if max(v.kh, v.kw) > 255 or (v.kh * v.kw > 255 and not _apart(v)):
        return _pool2d_array.max_forward(x, v, keep)
    y = empty((v.n, v.oh, v.ow, v.c), x.dtype)
    shape = (*_padded_shape(v, v.n)[:2], v.ow, v.c)
    kept: tuple[Array, ...] = ()
    if keep and _apart(v):
        kept = empty(shape, np.uint8), empty(y.shape, np.uint8)
    elif keep:
        kept = (empty(y.shape, np.uint8),)

    def pool(chunk: slice) -> None:
        by_row = scratch("pool rows", (chunk.stop - chunk.start, *shape[1:]), x.dtype)
        columns, rows = _along(_padded_chunk(x, v, chunk, -np.inf), 2, v), _along(by_row, 1, v)
        if not keep:
            _reduce(np.maximum, columns, by_row)
            _reduce(np.maximum, rows, y[chunk])
            return
        if _apart(v):
            column, row = kept[0][chunk], kept[1][chunk]
        else:
            column = scratch("pool columns", by_row.shape, np.uint8)
            row = scratch("pool row", y[chunk].shape, np.uint8)
        _largest(columns, by_row, column)
        _largest(rows, y[chunk], row)
        if not _apart(v):
            _number(column, row, kept[0][chunk], v)
        if _unusual(y[chunk]):
            part = replace(v, n=len(y[chunk]))
            winner = _pool2d_array.max_forward(x[chunk], part, True)[1][0]
            if _apart(v):
                _split(winner, _along(column, 1, v), row, v.kw)
            else:
                kept[0][chunk] = winner

    parallel(pool, _chunks(v, x.dtype))
    return y, kept


def _largest(candidates: list[Array], best: Array, winner: Array) -> None:
    """The largest candidate, and the position of the first that is as large."""
    if len(candidates) == 1:
        np.copyto(best, candidates[0])
        winner[...] = 0
        return
    np.greater(candidates[1], candidates[0], out=winner.view(bool))  # 1 where it wins: position 1
    np.maximum(candidates[0], candidates[1], out=best)
    wins = scratch("pool wins", best.shape, np.uint8)
    for i, candidate in enumerate(candidates[2:], 2):
        np.greater(candidate, best, out=wins.view(bool))
        np.maximum(candidate, best, out=best)
        np.multiply(wins, i, out=wins)
        np.maximum(winner, wins, out=winner)  # a later winner has a larger number


def _unusual(y: Array) -> bool:
    """Whether a maximum is NaN or -infinity: _largest compares, and takes position 0 then.  One
    minimum finds both; it is read from the cache."""
    return y.size > 0 and not y.min() > -np.inf


def _split(winner: Array, columns: list[Array], row: Array, width: int) -> None:
    """Set the winning row, and in it the winning column, from the position in row order."""
    np.floor_divide(winner, width, out=row, casting="unsafe")
    for r, column in enumerate(columns):
        np.copyto(column, winner % width, where=row == r, casting="unsafe")


def _number(column: Array, row: Array, into: Array, v: Geometry) -> None:
    """The winners' positions in row order from the winning columns of all rows, and the rows."""
    wins = scratch("pool wins", row.shape, np.uint8)
    number = scratch("pool number", row.shape, np.uint8)
    columns = _along(column, 1, v)
    np.copyto(into, columns[0])
    for r in range(1, v.kh):
        np.equal(row, r, out=wins.view(bool))
        np.add(columns[r], r * v.kw, out=number)
        np.multiply(number, wins, out=number)
        np.maximum(into, number, out=into)  # a later row's numbers are larger


def max_backward(dy: Array, kept: tuple[Array, ...], v: Geometry) -> Array:
    if kept[0].dtype != np.uint8:
        return _pool2d_array.max_backward(dy, kept, v)
    if not _apart(v):
        return _add_at_winners(dy, kept[0], v)
    columns, rows = kept

    def spread(d: Array, chunk: slice, axis: int, parts: list[Array]) -> None:
        _to_winner(d, (rows, columns)[axis - 1][chunk], parts)

    return _spread(dy, v, spread)


def _to_winner(d: Array, winner: Array, parts: list[Array]) -> None:
    """The adjoint of _largest: d to the part that won."""
    product = scratch("pool product", d.shape, d.dtype)  # contiguous: ufuncs cast slowly in runs
    if len(parts) == 2:
        if parts[1].flags.c_contiguous:
            product = parts[1]
        select(d, winner.view(bool), product)
        if product is not parts[1]:
            np.copyto(parts[1], product)
        np.subtract(bits(d), bits(product), out=bits(parts[0]))  # of bits: inf - inf would be NaN
        return
    mine = scratch("pool wins", d.shape, bool)
    for i, part in enumerate(parts):
        np.equal(winner, i, out=mine)
        select(d, mine, product)
        np.copyto(part, product)


def _add_at_winners(dy: Array, winners: Array, v: Geometry) -> Array:
    dx = empty((v.n, v.h, v.w, v.c), dy.dtype)
    chunks = _chunks(v, dy.dtype)
    shape = _padded_shape(v, chunks[0].stop if chunks else 0)
    # Where each window begins in a chunk, and how far from there its winner is, by its number.
    firsts = _firsts(shape, v.oh, v.ow, v.stride_h, v.stride_w)
    steps = (np.arange(v.kh)[:, None] * shape[2] + np.arange(v.kw)).reshape(-1) * v.c

    def unpool(chunk: slice) -> None:
        d, count = dy[chunk].reshape(-1), chunk.stop - chunk.start
        into = scratch("pool padded", (count, *shape[1:]), dy.dtype) if v.padded else dx[chunk]
        into[...] = 0
        winner = scratch("pool indices", d.shape, np.intp)
        np.take(steps, winners[chunk].reshape(-1), out=winner, mode="clip")
        winner += firsts[: len(winner)]
        np.add.at(into.reshape(-1), winner, d)
        if v.padded:
            dx[chunk] = into[:, v.top : v.top + v.h, v.left : v.left + v.w]

    parallel(unpool, chunks)
    return dx


@lru_cache(maxsize=4)  # a training step asks for the same ones, chunk by chunk
def _firsts(shape: tuple[int, ...], oh: int, ow: int, stride_h: int, stride_w: int) -> Array:
    """The index of the first pixel of each window in flat memory of padded images, by channel."""
    images, height, width, channels = shape
    row = np.arange(images)[:, None] * height + np.arange(oh) * stride_h  # (images, OH)
    pixel = row[:, :, None] * width + np.arange(ow) * stride_w
    return (pixel[..., None] * channels + np.arange(channels)).reshape(-1)


def _spread(
    dy: Array, v: Geometry, spread: Callable[[Array, slice, int, list[Array]], None]
) -> Array:
    """dx from dy, along rows and then along columns by spread(d, chunk, axis, parts)."""
    dx = empty((v.n, v.h, v.w, v.c), dy.dtype)

    def unpool(chunk: slice) -> None:
        shape = _padded_shape(v, chunk.stop - chunk.start)
        by_row = scratch("pool rows", (*shape[:2], v.ow, v.c), dy.dtype)
        _clear_unset(by_row, 1, v)
        spread(dy[chunk], chunk, 1, _along(by_row, 1, v))
        into = scratch("pool padded", shape, dy.dtype) if v.padded else dx[chunk]
        _clear_unset(into, 2, v)
        spread(by_row, chunk, 2, _along(into, 2, v))
        if v.padded:
            dx[chunk] = into[:, v.top : v.top + v.h, v.left : v.left + v.w]

    parallel(unpool, _chunks(v, dy.dtype))
    return dx


def _clear_unset(into: Array, axis: int, v: Geometry) -> None:
    """Zero the rows or columns that no position before the stride is."""
    k, stride, outputs = ((v.kh, v.stride_h, v.oh), (v.kw, v.stride_w, v.ow))[axis - 1]
    before = (slice(None),) * axis
    into[(*before, slice((outputs - 1) * stride + min(k, stride), None))] = 0
    for i in range(k, stride):
        into[(*before, slice(i, (outputs - 1) * stride, stride))] = 0


class Places:
    """Max pooling of values that come sorted by their place in their window, part by part."""

    def __init__(self) -> None:
        self.kept: dict[Any, tuple[Array, Array]] = {}  # by part: winning columns and rows

    def pool(self, values: Array, into: Array, part: object, keep: bool, clip: bool) -> None:
        """Set into (...) to the largest of values (KH, KW, ...) for each window; 0 if clipped
        and that is larger."""
        if not keep:
            np.maximum.reduce(values, axis=(0, 1), out=into, initial=0 if clip else None)
            return
        by_row = scratch("pool rows", values.shape[:1] + into.shape, values.dtype)
        self.kept[part] = empty(by_row.shape, np.uint8), empty(into.shape, np.uint8)
        columns, row = self.kept[part]
        _largest([values[:, j] for j in range(values.shape[1])], by_row, columns)
        _largest(list(by_row), into, row)
        if _unusual(into):
            by_place = values.reshape(-1, *into.shape)
            winner = _pool2d_array.largest(list(by_place), np.zeros((), np.int32))[1]
            _split(winner, list(columns), row, values.shape[1])
        if clip:
            np.clip(into, 0, np.inf, out=into)

    def unpool(self, d: Array, part: object, into: Array) -> None:
        """The adjoint: set into (KH, KW, ...) from d (...)."""
        column, row = self.kept[part]
        by_row = scratch("pool rows", column.shape, d.dtype)
        _to_winner(d, row, list(by_row))
        for d_row, winner, by_column in zip(by_row, column, into, strict=True):
            _to_winner(d_row, winner, list(by_column))


# --- mean ---


def avg_forward(x: Array, v: Geometry, area: tuple[bool, int, int]) -> Array:
    y = empty((v.n, v.oh, v.ow, v.c), x.dtype)
    pixels = _pixels(x, v, area)

    def pool(chunk: slice) -> None:
        padded = _padded_chunk(x, v, chunk, 0)
        by_row = scratch("pool rows", (*padded.shape[:2], v.ow, v.c), x.dtype)
        _reduce(np.add, _along(padded, 2, v), by_row)
        _reduce(np.add, _along(by_row, 1, v), y[chunk])
        y[chunk] /= pixels

    parallel(pool, _chunks(v, x.dtype))
    return y


def avg_backward(dy: Array, v: Geometry, area: tuple[bool, int, int]) -> Array:
    pixels = _pixels(dy, v, area)

    def spread(d: Array, chunk: slice, axis: int, parts: list[Array]) -> None:
        share = d
        if axis == 1:
            share = scratch("pool share", d.shape, d.dtype)
            np.divide(d, pixels, out=share)
        for i, part in enumerate(parts):
            if i < (v.stride_h, v.stride_w)[axis - 1]:
                np.copyto(part, share)
            else:  # overlaps a part before it, which was set
                part += share

    return _spread(dy, v, spread)


def _pixels(x: Array, v: Geometry, area: tuple[bool, int, int]) -> Array:
    """How many pixels each mean is over: one number if they are all alike."""
    pixels = _pool2d_array.pixels(x, v, area)
    return pixels.flat[0] if pixels.size and (pixels == pixels.flat[0]).all() else pixels


def global_forward(x: Array) -> Array:
    n, h, w, c = x.shape
    rows, y = x.reshape(n, h * w, c), empty((n, 1, c), x.dtype)
    ones = np.ones((1, h * w), x.dtype)  # BLAS adds rows faster than mean()

    def add(images: slice) -> None:
        np.matmul(ones, rows[images], out=y[images])

    parallel(add, spans(n, 16))
    y /= h * w
    return y.reshape(n, c)
