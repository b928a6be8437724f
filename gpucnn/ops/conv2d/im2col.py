"""Convolution as matrix products over windows copied out of the image, on NumPy: any geometry.

    columns (P, K)      every window as a row: P = output pixels, K = KH * KW * C / groups
    y  = columns w^T    (P, OC)
    dw = dy^T columns   (OC, K)
    dx = the windows dy w (P, K), added back to where they came from

The columns of a whole batch would be KH * KW times the image; they are made for a band of a few
rows or images at a time, which stays in the cache that the product then reads it from.

With few channels a window has no long runs to copy.  Then the columns are made the other way
round, (K, P), from planes (C, H, W): each row is long runs of one shifted plane.  A last row of
ones makes the bias a weight like the others: with so few multiplications for each result, adding
it to them would take half as long as the product.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from gpucnn.cpu import empty, parallel, scratch, spans
from gpucnn.device import Array
from gpucnn.integers import ceil_div
from gpucnn.ops._exact import narrowed, wide
from gpucnn.ops.conv2d.fusion import Epilogue
from gpucnn.ops.geometry import Geometry

Gradients = tuple[Array | None, Array | None, Array | None]

# Bytes of columns made at a time, or of the result if that is more.  Half of this stays in a 2 MiB
# L2 cache, but the larger products gain more: 3x3 with stride 2 took 0.91 to 0.96 of its time.
_BAND_BYTES = 1 << 21

# dw is summed in this many parts, each by one thread in the order of the images.
_SUM_PARTS = 8

_view = np.lib.stride_tricks.as_strided


def forward(
    x: Array, w: Array, b: Array | None, window: Geometry, epilogue: Epilogue, keep: bool
) -> None:
    """The convolution (N, OH, OW, OC), handed to the epilogue part by part."""
    v, oc = window, w.shape[0]
    epilogue.take_pool((v.oh, v.ow))
    columns_of = _Columns(v, oc, x.dtype, epilogue.window)
    w_t = w.reshape(v.groups, oc // v.groups, columns_of.k).transpose(0, 2, 1)
    if columns_of.planar:
        rows = w_t[0], np.zeros((1, oc), x.dtype) if b is None else b[None]
        w_t, b = np.concatenate(rows, out=empty((columns_of.k + 1, oc), x.dtype))[None], None
    clip = epilogue.places is not None and b is None and epilogue.take_relu()

    def convolve(images: slice) -> None:
        part = epilogue.room(images)
        for rows, columns in columns_of.bands(x, images):
            into = part[:, rows].reshape(-1, oc)  # contiguous: several bands mean one image
            result = into
            if epilogue.places is not None:
                result = scratch("im2col places", (columns.shape[1], oc), x.dtype)
            if columns_of.planar:
                for some, ours in zip(_blocks(columns[0]), _blocks(result), strict=True):
                    np.matmul(some, w_t[0], out=ours)
            elif v.groups == 1:
                np.matmul(columns[0], w_t[0], out=result)
            else:
                by_group = result.reshape(-1, v.groups, oc // v.groups)
                by_group[...] = np.matmul(columns, w_t).transpose(1, 0, 2)
            if epilogue.places is not None:
                band = part[:, rows]
                by_place = result.reshape(*epilogue.window, *band.shape)
                epilogue.places.pool(by_place, band, (images.start, rows.start), keep, clip)
            if b is not None:
                into += b
        epilogue.finish(part, images, keep)

    parallel(convolve, columns_of.chunks())


def backward(
    dy: Array, x: Array, w: Array, window: Geometry, needs: tuple[bool, ...], epilogue: Epilogue
) -> Gradients:
    """dx, dw and db, as far as needed."""
    dx = _backward_input(dy, w, window, epilogue) if needs[0] else None
    dw, db = _backward_weight(dy, x, w, window, epilogue) if needs[1] or needs[2] else (None, None)
    return dx, dw if needs[1] else None, db if needs[2] else None


def _blocks(rows: Array) -> list[Array]:
    """All rows (M, X), as (blocks, 256, X) and (1, the rest, X).

    So few rows of few columns BLAS multiplies where they lie, in 0.75 of the time.
    """
    whole = len(rows) // 256 * 256
    found = [rows[:whole].reshape(-1, 256, rows.shape[1])] if whole else []
    return found if whole == len(rows) else [*found, rows[whole:][None]]


def add_rows(rows: Array) -> Array:
    """The sum of rows (M, C) that are in the cache: BLAS adds 5 times faster than sum().

    That of float16 is a float32."""
    return np.ones(len(rows), wide(rows.dtype)) @ rows


def sum_rows(rows: Array) -> Array:
    """The sum of rows (M, C), for a bias: (C,)."""
    step = 4096
    parts = np.zeros((max(1, ceil_div(len(rows), step)), rows.shape[1]), wide(rows.dtype))

    def add(span: slice) -> None:
        parts[span.start // step] = add_rows(rows[span])

    parallel(add, list(spans(len(rows), step)))
    return narrowed(parts[0] if len(parts) == 1 else parts.sum(axis=0), rows.dtype)


def _backward_weight(
    dy: Array, x: Array, w: Array, v: Geometry, epilogue: Epilogue
) -> tuple[Array, Array]:
    oc, groups = w.shape[0], v.groups
    columns_of = _Columns(v, oc, x.dtype, epilogue.window)
    k, planar = columns_of.k, columns_of.planar
    chunks = columns_of.chunks()
    runs = [chunks[i::_SUM_PARTS] for i in range(min(_SUM_PARTS, len(chunks)))]
    parts = np.zeros((max(len(runs), 1), groups, oc // groups, k + planar), x.dtype)
    sums = np.zeros((len(parts), oc), wide(x.dtype))

    def add(i: int) -> None:
        for images in runs[i]:
            d = epilogue.gradient(dy, images)
            if not planar:
                sums[i] += add_rows(d.reshape(-1, oc))
            for rows, columns in columns_of.bands(x, images):
                d_band = columns_of.gradient(d, images, rows, epilogue)
                d_band = d_band.reshape(-1, groups, oc // groups)
                if planar:  # the transposed product takes BLAS 1.2 times as long or more
                    for some, ours in zip(_blocks(columns[0]), _blocks(d_band[:, 0]), strict=True):
                        parts[i, 0] += (some.transpose(0, 2, 1) @ ours).sum(axis=0).T
                else:
                    parts[i] += np.matmul(d_band.transpose(1, 2, 0), columns)

    parallel(add, range(len(runs)))
    total = parts.sum(axis=0)
    if planar:
        return np.ascontiguousarray(total[..., :k]).reshape(w.shape), total[0, :, k].copy()
    return total.reshape(w.shape), narrowed(sums.sum(axis=0), x.dtype)


def _backward_input(dy: Array, w: Array, v: Geometry, epilogue: Epilogue) -> Array:
    oc, depth = w.shape[0] // v.groups, v.c // v.groups
    dx = empty((v.n, v.h, v.w, v.c), dy.dtype)
    columns_of = _Columns(v, w.shape[0], dy.dtype, epilogue.window)
    if columns_of.pointwise:

        def multiply(images: slice) -> None:
            into = dx[images].reshape(-1, v.c)
            d = epilogue.gradient(dy, images).reshape(-1, oc)
            np.matmul(d, w.reshape(oc, v.c), out=into)

        parallel(multiply, columns_of.chunks())
        return dx
    # (KH * KW, groups, OC / groups, C / groups): one product for each pixel of the window
    taps = w.reshape(v.groups, oc, v.kh * v.kw, depth).transpose(2, 0, 1, 3)

    def spread(images: slice) -> None:
        count = images.stop - images.start
        shape = (count, v.h + v.top + v.bottom, v.w + v.left + v.right, v.groups, depth)
        total = scratch("im2col padded", shape, dy.dtype)
        total[...] = 0
        d = epilogue.gradient(dy, images)
        for rows in columns_of.row_spans():
            band = columns_of.gradient(d, images, rows, epilogue, as_images=True)
            first, height = rows.start * epilogue.window[0], band.shape[1]
            dy_band = band.reshape(1, -1, v.groups, oc).transpose(0, 2, 1, 3)
            pixels = dy_band.shape[2]
            out = scratch("im2col columns", (v.kh * v.kw, v.groups, pixels, depth), dy.dtype)
            np.matmul(dy_band, taps, out=out)
            parts = out.reshape(v.kh, v.kw, v.groups, count, height, v.ow, depth)
            for r in range(v.kh):
                top = first * v.stride_h + r * v.dilation_h
                bottom = (first + height - 1) * v.stride_h + r * v.dilation_h + 1
                for s in range(v.kw):
                    left = s * v.dilation_w
                    into = total[
                        :,
                        top : bottom : v.stride_h,
                        left : left + (v.ow - 1) * v.stride_w + 1 : v.stride_w,
                    ]
                    into += parts[r, s].transpose(1, 2, 3, 0, 4)
        inner = total[:, v.top : v.top + v.h, v.left : v.left + v.w]
        dx[images].reshape(inner.shape)[...] = inner

    parallel(spread, columns_of.chunks())
    return dx


class _Columns:
    """Makes columns (groups, P, K), chunk of images by chunk, and in it band of rows by band.

    Planar ones are (1, P, K + 1): the last is 1.  The P pixels of a band are sorted by their place
    in a pooling window of `places` pixels, whose rows a band's are.
    """

    def __init__(self, v: Geometry, oc: int, dtype: np.dtype[Any], places: tuple[int, int]) -> None:
        self.v, self.dtype, self.places = v, dtype, places
        self.k = v.kh * v.kw * (v.c // v.groups)
        # Every window is one pixel: the image is its own columns.
        self.pointwise = not v.padded and (
            v.kh == v.kw == v.stride_h == v.stride_w == v.groups == places[0] == places[1] == 1
        )
        # Long runs: rows of windows, unless they are short and rows of the plane are longer.
        self.planar = (
            not self.pointwise and v.groups == 1 and v.stride_w == 1 and v.kw * v.c <= 16 <= v.ow
        )
        self.height, self.width = v.oh // places[0], v.ow // places[1]
        pixels = max(1, _BAND_BYTES // (max(v.kh * v.kw * v.c, oc) * dtype.itemsize))
        self.images = max(1, pixels // (v.oh * v.ow))  # in one chunk
        rows = max(1, pixels // (places[0] * v.ow))
        self.rows = self.height if self.images > 1 else min(self.height, rows)  # in one band

    def chunks(self) -> list[slice]:
        return list(spans(self.v.n, self.images))

    def row_spans(self) -> list[slice]:
        return list(spans(self.height, self.rows))

    def bands(self, x: Array, images: slice) -> Iterator[tuple[slice, Array]]:
        """The output rows of each band, and its columns; the memory is used again for the next."""
        padded = self._padded(x, images)
        for rows in self.row_spans():
            yield rows, self._columns(padded, rows)

    def gradient(
        self, d: Array, images: slice, rows: slice, epilogue: Epilogue, as_images: bool = False
    ) -> Array:
        """What the epilogue's gradient d of these images is to the convolution's result in a band.

        Its pixels are in the order of the columns', or as_images.
        """
        band = d[:, rows]
        if epilogue.places is None:
            return band
        (ph, pw), (n, height, width, oc) = self.places, band.shape
        if as_images:
            into = scratch("im2col places", (n, height * ph, width * pw, oc), d.dtype)
            by_place = into.reshape(n, height, ph, width, pw, oc).transpose(2, 4, 0, 1, 3, 5)
        else:
            into = by_place = scratch("im2col places", (ph, pw, *band.shape), d.dtype)
        epilogue.places.unpool(band, (images.start, rows.start), by_place)
        return into

    def _padded(self, x: Array, images: slice) -> Array:
        """Images with their zeros around: (N, H, W, C), or planes first: (C, N, H, W)."""
        v = self.v
        if not v.padded and not self.planar:
            return x[images]
        shape = (images.stop - images.start, v.h + v.top + v.bottom, v.w + v.left + v.right)
        if self.planar:
            memory = scratch("im2col padded", (v.c, *shape), self.dtype)
            padded = memory.transpose(1, 2, 3, 0)
        else:
            memory = padded = scratch("im2col padded", (*shape, v.c), self.dtype)
        memory[...] = 0  # one call costs less than four for the edges
        padded[:, v.top : v.top + v.h, v.left : v.left + v.w] = x[images]
        return memory

    def _columns(self, padded: Array, rows: slice) -> Array:
        if self.pointwise:
            return padded[:, rows].reshape(1, -1, self.k)
        v, depth, (ph, pw) = self.v, self.v.c // self.v.groups, self.places
        images = padded.transpose(1, 2, 3, 0) if self.planar else padded
        sn, sh, sw, sc = images.strides
        down, across = sh * v.stride_h, sw * v.stride_w
        count, height = len(images), rows.stop - rows.start
        pixels = (ph, pw, count, height, self.width)
        by_pixel = (down, across, sn, down * ph, across * pw)
        taps, by_tap = (v.kh, v.kw, depth), (sh * v.dilation_h, sw * v.dilation_w, sc)
        first = images[:, rows.start * ph * v.stride_h :]
        if self.planar:
            windows = _view(first, taps + pixels, by_tap + by_pixel)
            columns = scratch("im2col columns", (self.k + 1, math.prod(pixels)), self.dtype)
            np.copyto(columns[: self.k].reshape(windows.shape), windows)
            columns[self.k] = 1
            return columns[None].transpose(0, 2, 1)
        windows = _view(first, (v.groups, *pixels, *taps), (depth * sc, *by_pixel, *by_tap))
        columns = scratch("im2col columns", windows.shape, self.dtype)
        np.copyto(columns, windows)
        return columns.reshape(v.groups, -1, self.k)
