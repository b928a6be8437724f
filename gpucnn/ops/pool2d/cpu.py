"""Pooling on NumPy: along the columns of a window, then along its rows, in chunks of images.

Where windows are disjoint, backward goes in the opposite order: rows first, whose runs are long,
then columns.  Where they overlap, it adds each gradient at the index of its winner.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from gpucnn.cpu import empty, parallel, scratch, spans
from gpucnn.device import Array
from gpucnn.ops._exact import bits, select
from gpucnn.ops.geometry import Geometry
from gpucnn.ops.pool2d import portable

# Bytes of the images in a chunk: they and their intermediate results stay in cache.
_CHUNK_BYTES = 1 << 20


def _chunks(g: Geometry, dtype: np.dtype[Any]) -> list[slice]:
    image = g.h * g.w * g.c * dtype.itemsize
    return list(spans(g.n, max(1, _CHUNK_BYTES // max(image, 1))))


def _padded_shape(g: Geometry, images: int) -> tuple[int, int, int, int]:
    return images, g.h + g.top + g.bottom, g.w + g.left + g.right, g.c


def _padded_chunk(x: Array, g: Geometry, chunk: slice, value: float) -> Array:
    if not g.padded:
        return x[chunk]
    padded = scratch("pool padded", _padded_shape(g, chunk.stop - chunk.start), x.dtype)
    padded[...] = value
    padded[:, g.top : g.top + g.h, g.left : g.left + g.w] = x[chunk]
    return padded


def _along(x: Array, axis: int, g: Geometry) -> list[Array]:
    """For each offset inside the window along axis 1 or 2, the rows or columns of x there."""
    k, stride, outputs = ((g.kh, g.stride_h, g.oh), (g.kw, g.stride_w, g.ow))[axis - 1]
    before = (slice(None),) * axis
    return [x[(*before, slice(i, i + (outputs - 1) * stride + 1, stride))] for i in range(k)]


def _reduce(function: np.ufunc, candidates: list[Array], into: Array) -> None:
    """Set into to function(... function(candidates[0], candidates[1]) ...)."""
    if len(candidates) == 1:
        np.copyto(into, candidates[0])
        return
    function(candidates[0], candidates[1], out=into)
    for candidate in candidates[2:]:
        function(into, candidate, out=into)


# --- max ---


def _disjoint(g: Geometry) -> bool:
    """Whether no two windows share a pixel."""
    return g.stride_h >= g.kh and g.stride_w >= g.kw


def max_forward(x: Array, g: Geometry, keep: bool) -> tuple[Array, portable.SavedMax | None]:
    """y (N, OH, OW, C) and, with `keep`, the state for backward."""
    if max(g.kh, g.kw) > 255 or (g.kh * g.kw > 255 and not _disjoint(g)):
        return portable.max_forward(x, g, keep)  # winners here are bytes
    if not keep:
        return _max(x, g), None
    return _max_disjoint(x, g) if _disjoint(g) else _max_overlapping(x, g)


def _row_buffer(g: Geometry, chunk: slice, dtype: Any) -> Array:
    """Memory for the results along the columns: (images, padded H, OW, C)."""
    shape = _padded_shape(g, chunk.stop - chunk.start)
    return scratch("pool rows", (*shape[:2], g.ow, g.c), dtype)


def _max(x: Array, g: Geometry) -> Array:
    y = empty((g.n, g.oh, g.ow, g.c), x.dtype)

    def pool(chunk: slice) -> None:
        by_row = _row_buffer(g, chunk, x.dtype)
        _reduce(np.maximum, _along(_padded_chunk(x, g, chunk, -np.inf), 2, g), by_row)
        _reduce(np.maximum, _along(by_row, 1, g), y[chunk])

    parallel(pool, _chunks(g, x.dtype))
    return y


def _max_disjoint(x: Array, g: Geometry) -> "tuple[Array, _SavedDisjoint]":
    y = empty((g.n, g.oh, g.ow, g.c), x.dtype)
    columns = empty((*_padded_shape(g, g.n)[:2], g.ow, g.c), np.uint8)
    rows = empty(y.shape, np.uint8)

    def pool(chunk: slice) -> None:
        by_row = _row_buffer(g, chunk, x.dtype)
        _largest(_along(_padded_chunk(x, g, chunk, -np.inf), 2, g), by_row, columns[chunk])
        _largest(_along(by_row, 1, g), y[chunk], rows[chunk])
        if _unusual(y[chunk]):
            winner = _exact_winners(x, g, chunk)
            _split(winner, _along(columns[chunk], 1, g), rows[chunk], g.kw)

    parallel(pool, _chunks(g, x.dtype))
    return y, _SavedDisjoint(columns, rows, g)


@dataclass
class _SavedDisjoint:
    columns: Array  # (N, padded H, OW, C) uint8: the winning column in each row of a window
    rows: Array  # (N, OH, OW, C) uint8: the winning row
    g: Geometry

    def backward(self, dy: Array) -> Array:
        def spread(d: Array, chunk: slice, axis: int, parts: list[Array]) -> None:
            _to_winner(d, (self.rows, self.columns)[axis - 1][chunk], parts)

        return _spread(dy, self.g, spread)


def _max_overlapping(x: Array, g: Geometry) -> "tuple[Array, _SavedOverlapping]":
    y = empty((g.n, g.oh, g.ow, g.c), x.dtype)
    winners = empty(y.shape, np.uint8)

    def pool(chunk: slice) -> None:
        by_row = _row_buffer(g, chunk, x.dtype)
        columns = scratch("pool columns", by_row.shape, np.uint8)
        row = scratch("pool row", y[chunk].shape, np.uint8)
        _largest(_along(_padded_chunk(x, g, chunk, -np.inf), 2, g), by_row, columns)
        _largest(_along(by_row, 1, g), y[chunk], row)
        if _unusual(y[chunk]):
            winners[chunk] = _exact_winners(x, g, chunk)
        else:
            _join(columns, row, winners[chunk], g)

    parallel(pool, _chunks(g, x.dtype))
    return y, _SavedOverlapping(winners, g)


@dataclass
class _SavedOverlapping:
    winners: Array  # (N, OH, OW, C) uint8: offset of the largest value in its window, in row order
    g: Geometry

    def backward(self, dy: Array) -> Array:
        return _add_at_winners(dy, self.winners, self.g)


def _largest(candidates: list[Array], best: Array, winner: Array) -> None:
    """Set best to the largest candidate, and winner to the index of the first that is as large."""
    if len(candidates) == 1:
        np.copyto(best, candidates[0])
        winner[...] = 0
        return
    np.greater(candidates[1], candidates[0], out=winner.view(bool))  # True is index 1
    np.maximum(candidates[0], candidates[1], out=best)
    wins = scratch("pool wins", best.shape, np.uint8)
    for i, candidate in enumerate(candidates[2:], 2):
        np.greater(candidate, best, out=wins.view(bool))
        np.maximum(candidate, best, out=best)
        np.multiply(wins, i, out=wins)
        np.maximum(winner, wins, out=winner)  # a later winner has a larger index


def _unusual(y: Array) -> bool:
    """Whether a maximum is NaN or -infinity, where _largest compares and so takes index 0.

    One minimum, of values that are in cache, finds both.
    """
    return y.size > 0 and not y.min() > -np.inf


def _exact_winners(x: Array, g: Geometry, chunk: slice) -> Array:
    """The offset of each window's winner, by portable.py's rules for NaN and -infinity."""
    part = replace(g, n=chunk.stop - chunk.start)
    padded = _padded_chunk(x, g, chunk, -np.inf)
    candidates = [padded[:, rows, columns] for rows, columns in portable.offsets(g)]
    return portable.largest(candidates, portable.first(x, part))[1]


def _split(winner: Array, columns: list[Array], row: Array, width: int) -> None:
    """Split offsets in row order into the winning row, and the winning column within that row."""
    np.floor_divide(winner, width, out=row, casting="unsafe")
    for r, column in enumerate(columns):
        np.copyto(column, winner % width, where=row == r, casting="unsafe")


def _join(column: Array, row: Array, into: Array, g: Geometry) -> None:
    """Set into to offsets in row order, from the winning row and the winning column of each row."""
    wins = scratch("pool wins", row.shape, np.uint8)
    offset = scratch("pool offset", row.shape, np.uint8)
    columns = _along(column, 1, g)
    np.copyto(into, columns[0])
    for r in range(1, g.kh):
        np.equal(row, r, out=wins.view(bool))
        np.add(columns[r], r * g.kw, out=offset)
        np.multiply(offset, wins, out=offset)
        np.maximum(into, offset, out=into)  # a later row has larger offsets


def _to_winner(d: Array, winner: Array, parts: list[Array]) -> None:
    """The adjoint of _largest: copy d to the part that won, and zero the others."""
    product = scratch("pool product", d.shape, d.dtype)  # contiguous: casting short runs is slow
    if len(parts) == 2:
        if parts[1].flags.c_contiguous:
            product = parts[1]
        select(d, winner.view(bool), product)
        if product is not parts[1]:
            np.copyto(parts[1], product)
        np.subtract(bits(d), bits(product), out=bits(parts[0]))  # as bits: inf - inf would be NaN
        return
    mine = scratch("pool wins", d.shape, bool)
    for i, part in enumerate(parts):
        np.equal(winner, i, out=mine)
        select(d, mine, product)
        np.copyto(part, product)


def _add_at_winners(dy: Array, winners: Array, g: Geometry) -> Array:
    """dx (N, H, W, C), with each number of dy added at its window's winner."""
    dx = empty((g.n, g.h, g.w, g.c), dy.dtype)
    chunks = _chunks(g, dy.dtype)
    shape = _padded_shape(g, chunks[0].stop if chunks else 0)
    # Flat index of each window's first pixel in a chunk, and of each offset relative to it.
    firsts = _firsts(shape, g.oh, g.ow, g.stride_h, g.stride_w)
    steps = (np.arange(g.kh)[:, None] * shape[2] + np.arange(g.kw)).reshape(-1) * g.c

    def unpool(chunk: slice) -> None:
        d, count = dy[chunk].reshape(-1), chunk.stop - chunk.start
        into = scratch("pool padded", (count, *shape[1:]), dy.dtype) if g.padded else dx[chunk]
        into[...] = 0
        winner = scratch("pool indices", d.shape, np.intp)
        np.take(steps, winners[chunk].reshape(-1), out=winner, mode="clip")
        winner += firsts[: len(winner)]
        np.add.at(into.reshape(-1), winner, d)
        if g.padded:
            dx[chunk] = into[:, g.top : g.top + g.h, g.left : g.left + g.w]

    parallel(unpool, chunks)
    return dx


@lru_cache(maxsize=4)  # every chunk of a training step needs the same ones
def _firsts(shape: tuple[int, ...], oh: int, ow: int, stride_h: int, stride_w: int) -> Array:
    """Flat index of each window's first pixel in padded images: (images * OH * OW * C,)."""
    images, height, width, channels = shape
    row = np.arange(images)[:, None] * height + np.arange(oh) * stride_h  # (images, OH)
    pixel = row[:, :, None] * width + np.arange(ow) * stride_w
    return (pixel[..., None] * channels + np.arange(channels)).reshape(-1)


def _spread(
    dy: Array, g: Geometry, spread: Callable[[Array, slice, int, list[Array]], None]
) -> Array:
    """dx (N, H, W, C) from dy: spread(d, chunk, axis, parts) along rows, then along columns."""
    dx = empty((g.n, g.h, g.w, g.c), dy.dtype)

    def unpool(chunk: slice) -> None:
        shape = _padded_shape(g, chunk.stop - chunk.start)
        by_row = scratch("pool rows", (*shape[:2], g.ow, g.c), dy.dtype)
        _clear_unset(by_row, 1, g)
        spread(dy[chunk], chunk, 1, _along(by_row, 1, g))
        into = scratch("pool padded", shape, dy.dtype) if g.padded else dx[chunk]
        _clear_unset(into, 2, g)
        spread(by_row, chunk, 2, _along(into, 2, g))
        if g.padded:
            dx[chunk] = into[:, g.top : g.top + g.h, g.left : g.left + g.w]

    parallel(unpool, _chunks(g, dy.dtype))
    return dx


def _clear_unset(into: Array, axis: int, g: Geometry) -> None:
    """Zero the rows or columns that no window's first `stride` offsets cover."""
    k, stride, outputs = ((g.kh, g.stride_h, g.oh), (g.kw, g.stride_w, g.ow))[axis - 1]
    before = (slice(None),) * axis
    into[(*before, slice((outputs - 1) * stride + min(k, stride), None))] = 0
    for i in range(k, stride):
        into[(*before, slice(i, (outputs - 1) * stride, stride))] = 0


class MaxPoolByOffset:
    """Max pooling, part by part, of values sorted by their offset inside the window."""

    def __init__(self) -> None:
        self.winners: dict[Any, tuple[Array, Array]] = {}  # by part: winning columns, winning row

    def pool(self, values: Array, into: Array, part: object, keep: bool, clip: bool) -> None:
        """Set into (...) to each window's largest of values (KH, KW, ...), clipped at 0 if `clip`.

        `part` names the part for unpool; winners are saved with `keep`.
        """
        if not keep:
            np.maximum.reduce(values, axis=(0, 1), out=into, initial=0 if clip else None)
            return
        by_row = scratch("pool rows", values.shape[:1] + into.shape, values.dtype)
        self.winners[part] = empty(by_row.shape, np.uint8), empty(into.shape, np.uint8)
        columns, row = self.winners[part]
        _largest([values[:, j] for j in range(values.shape[1])], by_row, columns)
        _largest(list(by_row), into, row)
        if _unusual(into):
            by_offset = values.reshape(-1, *into.shape)
            winner = portable.largest(list(by_offset), np.zeros((), np.int32))[1]
            _split(winner, list(columns), row, values.shape[1])
        if clip:
            np.clip(into, 0, np.inf, out=into)

    def unpool(self, d: Array, part: object, into: Array) -> None:
        """The adjoint: set into (KH, KW, ...) from d (...)."""
        column, row = self.winners[part]
        by_row = scratch("pool rows", column.shape, d.dtype)
        _to_winner(d, row, list(by_row))
        for d_row, winner, by_column in zip(by_row, column, into, strict=True):
            _to_winner(d_row, winner, list(by_column))


# --- mean ---


def avg_forward(x: Array, g: Geometry, area: tuple[bool, int, int]) -> Array:
    """y (N, OH, OW, C) for x (N, H, W, C); area as in portable.pixels."""
    y = empty((g.n, g.oh, g.ow, g.c), x.dtype)
    pixels = _pixels(x, g, area)

    def pool(chunk: slice) -> None:
        padded = _padded_chunk(x, g, chunk, 0)
        by_row = scratch("pool rows", (*padded.shape[:2], g.ow, g.c), x.dtype)
        _reduce(np.add, _along(padded, 2, g), by_row)
        _reduce(np.add, _along(by_row, 1, g), y[chunk])
        y[chunk] /= pixels

    parallel(pool, _chunks(g, x.dtype))
    return y


def avg_backward(dy: Array, g: Geometry, area: tuple[bool, int, int]) -> Array:
    """dx (N, H, W, C) for dy (N, OH, OW, C); area as in portable.pixels."""
    pixels = _pixels(dy, g, area)

    def spread(d: Array, chunk: slice, axis: int, parts: list[Array]) -> None:
        share = d
        if axis == 1:
            share = scratch("pool share", d.shape, d.dtype)
            np.divide(d, pixels, out=share)
        for i, part in enumerate(parts):
            if i < (g.stride_h, g.stride_w)[axis - 1]:
                np.copyto(part, share)
            else:  # overlaps an earlier part, which is set already
                part += share

    return _spread(dy, g, spread)


def _pixels(x: Array, g: Geometry, area: tuple[bool, int, int]) -> Array:
    """portable.pixels, or a single number if all means are over the same number of pixels."""
    pixels = portable.pixels(x, g, area)
    return pixels.flat[0] if pixels.size and (pixels == pixels.flat[0]).all() else pixels


def global_forward(x: Array) -> Array:
    """The mean (N, C) of x (N, H, W, C)."""
    n, h, w, c = x.shape
    rows, y = x.reshape(n, h * w, c), empty((n, 1, c), x.dtype)
    ones = np.ones((1, h * w), x.dtype)  # BLAS sums rows faster than mean() does

    def add(images: slice) -> None:
        np.matmul(ones, rows[images], out=y[images])

    parallel(add, spans(n, 16))
    y /= h * w
    return y.reshape(n, c)
