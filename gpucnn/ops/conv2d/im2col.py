"""The im2col engine on NumPy: matrix products over windows copied out of the image, any geometry.

    columns                     (P, K): every window as a row, P pixels, K = KH * KW * C / groups
    y = columns weight^T        (P, OC)
    dweight = dy^T columns      (OC, K)
    dcolumns = dy weight        (P, K): dx is the sum of its rows, each added back to its window

The columns of a whole batch would be KH * KW times the image.  They are built for a band of a few
rows or images at a time, which is still in cache when the product reads it.

With few channels a window has no long runs to copy.  Then the columns are built transposed, (K, P),
from planes (C, H, W): each row is long runs of one shifted plane.  A last row of ones turns the
bias into one more weight: with so few multiplications for each result, adding the bias separately
would take half as long as the product.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn.cpu import empty, parallel, scratch, spans
from gpucnn.device import Array
from gpucnn.ops._exact import add_rows, narrowed, wide
from gpucnn.ops.conv2d.engine import Cache, Gradients, Saved
from gpucnn.ops.conv2d.fusion import Epilogue
from gpucnn.ops.geometry import Geometry

# Bytes of a band's columns, or of its result if that is more.  Half of this would stay in a 2 MiB
# L2 cache, but larger products gain more: 3x3 with stride 2 took 0.91 to 0.96 of its time.
_BAND_BYTES = 1 << 21

# dweight is summed in this many parts, each by one thread in the order of the images.
_SUM_PARTS = 8

_view = np.lib.stride_tricks.as_strided


@dataclass(frozen=True)
class Im2col:
    """The engine: see engine.Engine."""

    def forward(
        self,
        x: Array,
        weight: Array,
        bias: Array | None,
        g: Geometry,
        epilogue: Epilogue,
        keep: bool,
        cache: Cache | None,
    ) -> Saved | None:
        _convolve(x, weight, bias, g, epilogue, keep)
        return SavedIm2col(x, weight, g, epilogue) if keep else None


@dataclass
class SavedIm2col:
    x: Array
    weight: Array
    g: Geometry
    epilogue: Epilogue

    def backward(self, dy: Array, needs: tuple[bool, ...], last_use: bool) -> Gradients:
        x, weight, g, epilogue = self.x, self.weight, self.g, self.epilogue
        dy = np.ascontiguousarray(dy)
        dx = dweight = dbias = None
        if needs[0]:
            dx = _backward_input(dy, weight, g, epilogue)
        if needs[1]:
            dweight, dbias = _backward_weight(dy, x, weight, g, epilogue)
        elif needs[2]:
            dbias = _backward_bias(dy, x, weight, g, epilogue)
        return dx, dweight, dbias if needs[2] else None


def _convolve(
    x: Array, weight: Array, bias: Array | None, g: Geometry, epilogue: Epilogue, keep: bool
) -> None:
    oc = len(weight)
    epilogue.fuse_pool((g.oh, g.ow))
    columns_of = _Columns(g, oc, x.dtype, epilogue.pool_window)
    weight_t = weight.reshape(g.groups, oc // g.groups, columns_of.k).transpose(0, 2, 1)
    if columns_of.planar:
        rows = weight_t[0], np.zeros((1, oc), x.dtype) if bias is None else bias[None]
        weight_t = np.concatenate(rows, out=empty((columns_of.k + 1, oc), x.dtype))[None]
        bias = None
    by_offset = epilogue.pool_by_offset
    clip = by_offset is not None and bias is None and epilogue.fuse_relu()

    def convolve(images: slice) -> None:
        part = epilogue.output_buffer(images)
        for rows, columns in columns_of.bands(x, images):
            into = part[:, rows].reshape(-1, oc)  # contiguous: several bands mean one image
            result = into
            if by_offset is not None:
                result = scratch("im2col by offset", (columns.shape[1], oc), x.dtype)
            if columns_of.planar:
                for block, block_out in zip(_blocks(columns[0]), _blocks(result), strict=True):
                    np.matmul(block, weight_t[0], out=block_out)
            elif g.groups == 1:
                np.matmul(columns[0], weight_t[0], out=result)
            else:
                by_group = result.reshape(-1, g.groups, oc // g.groups)
                by_group[...] = np.matmul(columns, weight_t).transpose(1, 0, 2)
            if by_offset is not None:
                band = part[:, rows]
                values = result.reshape(*epilogue.pool_window, *band.shape)
                by_offset.pool(values, band, (images.start, rows.start), keep, clip)
            if bias is not None:
                into += bias
        epilogue.finish(part, images, keep)

    parallel(convolve, columns_of.chunks())


def _blocks(rows: Array) -> list[Array]:
    """Views of rows (M, X): (M // 256, 256, X) and (1, M % 256, X).

    BLAS multiplies so few rows and columns without packing them, in 0.75 of the time.
    """
    whole = len(rows) // 256 * 256
    found = [rows[:whole].reshape(-1, 256, rows.shape[1])] if whole else []
    return found if whole == len(rows) else [*found, rows[whole:][None]]


def _backward_weight(
    dy: Array, x: Array, weight: Array, g: Geometry, epilogue: Epilogue
) -> tuple[Array, Array]:
    """dweight and dbias."""
    oc, groups = weight.shape[0], g.groups
    columns_of = _Columns(g, oc, x.dtype, epilogue.pool_window)
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
                if planar:  # BLAS takes 1.2 times as long or more for the transposed product
                    for block, d_block in zip(
                        _blocks(columns[0]), _blocks(d_band[:, 0]), strict=True
                    ):
                        parts[i, 0] += (block.transpose(0, 2, 1) @ d_block).sum(axis=0).T
                else:
                    parts[i] += np.matmul(d_band.transpose(1, 2, 0), columns)

    parallel(add, range(len(runs)))
    total = parts.sum(axis=0)
    if planar:
        return np.ascontiguousarray(total[..., :k]).reshape(weight.shape), total[0, :, k].copy()
    return total.reshape(weight.shape), narrowed(sums.sum(axis=0), x.dtype)


def _backward_bias(dy: Array, x: Array, weight: Array, g: Geometry, epilogue: Epilogue) -> Array:
    """dbias alone, for frozen filters: no columns are built."""
    oc = len(weight)
    chunks = _Columns(g, oc, x.dtype, epilogue.pool_window).chunks()
    sums = np.zeros((max(len(chunks), 1), oc), wide(x.dtype))

    def add(i: int) -> None:
        sums[i] = add_rows(epilogue.gradient(dy, chunks[i]).reshape(-1, oc))

    parallel(add, range(len(chunks)))
    return narrowed(sums.sum(axis=0), x.dtype)


def _backward_input(dy: Array, weight: Array, g: Geometry, epilogue: Epilogue) -> Array:
    oc, depth = weight.shape[0] // g.groups, g.c // g.groups
    dx = empty((g.n, g.h, g.w, g.c), dy.dtype)
    columns_of = _Columns(g, weight.shape[0], dy.dtype, epilogue.pool_window)
    if columns_of.pointwise:

        def multiply(images: slice) -> None:
            into = dx[images].reshape(-1, g.c)
            d = epilogue.gradient(dy, images).reshape(-1, oc)
            np.matmul(d, weight.reshape(oc, g.c), out=into)

        parallel(multiply, columns_of.chunks())
        return dx
    # (KH * KW, groups, OC / groups, C / groups): one product for each pixel of the window
    taps = weight.reshape(g.groups, oc, g.kh * g.kw, depth).transpose(2, 0, 1, 3)

    def spread(images: slice) -> None:
        count = images.stop - images.start
        shape = (count, g.h + g.top + g.bottom, g.w + g.left + g.right, g.groups, depth)
        total = scratch("im2col padded", shape, dy.dtype)
        total[...] = 0
        d = epilogue.gradient(dy, images)
        for rows in columns_of.row_spans():
            band = columns_of.gradient(d, images, rows, epilogue, as_images=True)
            first, height = rows.start * epilogue.pool_window[0], band.shape[1]
            dy_band = band.reshape(1, -1, g.groups, oc).transpose(0, 2, 1, 3)
            pixels = dy_band.shape[2]
            out = scratch("im2col columns", (g.kh * g.kw, g.groups, pixels, depth), dy.dtype)
            np.matmul(dy_band, taps, out=out)
            parts = out.reshape(g.kh, g.kw, g.groups, count, height, g.ow, depth)
            for r in range(g.kh):
                top = first * g.stride_h + r * g.dilation_h
                bottom = (first + height - 1) * g.stride_h + r * g.dilation_h + 1
                for s in range(g.kw):
                    left = s * g.dilation_w
                    into = total[
                        :,
                        top : bottom : g.stride_h,
                        left : left + (g.ow - 1) * g.stride_w + 1 : g.stride_w,
                    ]
                    into += parts[r, s].transpose(1, 2, 3, 0, 4)
        inner = total[:, g.top : g.top + g.h, g.left : g.left + g.w]
        dx[images].reshape(inner.shape)[...] = inner

    parallel(spread, columns_of.chunks())
    return dx


class _Columns:
    """Builds the columns (groups, P, K) of each band of rows in each chunk of images.

    Planar columns are (1, P, K + 1), the last column all ones.  The P pixels of a band are sorted
    by offset inside a pooling window of `window` pixels; a band consists of whole rows of windows.
    """

    def __init__(self, g: Geometry, oc: int, dtype: np.dtype[Any], window: tuple[int, int]) -> None:
        self.g, self.dtype, self.window = g, dtype, window
        self.k = g.kh * g.kw * (g.c // g.groups)
        # Every window is one pixel: the image itself holds the columns.  A transposed convolution
        # may have fewer windows.
        self.pointwise = (not g.padded and (g.oh, g.ow) == (g.h, g.w)) and (
            g.kh == g.kw == g.stride_h == g.stride_w == g.groups == window[0] == window[1] == 1
        )
        # Rows of windows are the runs to copy, unless rows of the plane are longer.
        self.planar = (
            not self.pointwise and g.groups == 1 and g.stride_w == 1 and g.kw * g.c <= 16 <= g.ow
        )
        self.height, self.width = g.oh // window[0], g.ow // window[1]
        pixels = max(1, _BAND_BYTES // (max(g.kh * g.kw * g.c, oc) * dtype.itemsize))
        self.images = max(1, pixels // (g.oh * g.ow))  # in one chunk
        rows = max(1, pixels // (window[0] * g.ow))
        self.rows = self.height if self.images > 1 else min(self.height, rows)  # in one band

    def chunks(self) -> list[slice]:
        return list(spans(self.g.n, self.images))

    def row_spans(self) -> list[slice]:
        return list(spans(self.height, self.rows))

    def bands(self, x: Array, images: slice) -> Iterator[tuple[slice, Array]]:
        """The output rows of each band and its columns, in memory that the next band reuses."""
        padded = self._padded(x, images)
        for rows in self.row_spans():
            yield rows, self._columns(padded, rows)

    def gradient(
        self, d: Array, images: slice, rows: slice, epilogue: Epilogue, as_images: bool = False
    ) -> Array:
        """The convolution's gradient in a band, from the epilogue's gradient d of these images.

        Pixels are in the order of the columns, or with as_images in that of the image.
        """
        band = d[:, rows]
        if epilogue.pool_by_offset is None:
            return band
        (ph, pw), (n, height, width, oc) = self.window, band.shape
        if as_images:
            into = scratch("im2col by offset", (n, height * ph, width * pw, oc), d.dtype)
            by_offset = into.reshape(n, height, ph, width, pw, oc).transpose(2, 4, 0, 1, 3, 5)
        else:
            into = by_offset = scratch("im2col by offset", (ph, pw, *band.shape), d.dtype)
        epilogue.pool_by_offset.unpool(band, (images.start, rows.start), by_offset)
        return into

    def _padded(self, x: Array, images: slice) -> Array:
        """Images with their padding: (N, H, W, C), or planes first, (C, N, H, W), if planar."""
        g = self.g
        if not g.padded and not self.planar:
            return x[images]
        shape = (images.stop - images.start, g.h + g.top + g.bottom, g.w + g.left + g.right)
        if self.planar:
            memory = scratch("im2col padded", (g.c, *shape), self.dtype)
            padded = memory.transpose(1, 2, 3, 0)
        else:
            memory = padded = scratch("im2col padded", (*shape, g.c), self.dtype)
        memory[...] = 0  # one call costs less than four for the edges
        padded[:, g.top : g.top + g.h, g.left : g.left + g.w] = x[images]
        return memory

    def _columns(self, padded: Array, rows: slice) -> Array:
        if self.pointwise:
            return padded[:, rows].reshape(1, -1, self.k)
        g, depth, (ph, pw) = self.g, self.g.c // self.g.groups, self.window
        images = padded.transpose(1, 2, 3, 0) if self.planar else padded
        sn, sh, sw, sc = images.strides
        down, across = sh * g.stride_h, sw * g.stride_w
        count, height = len(images), rows.stop - rows.start
        pixels = (ph, pw, count, height, self.width)
        by_pixel = (down, across, sn, down * ph, across * pw)
        taps, by_tap = (g.kh, g.kw, depth), (sh * g.dilation_h, sw * g.dilation_w, sc)
        first = images[:, rows.start * ph * g.stride_h :]
        if self.planar:
            windows = _view(first, taps + pixels, by_tap + by_pixel)
            columns = scratch("im2col columns", (self.k + 1, math.prod(pixels)), self.dtype)
            np.copyto(columns[: self.k].reshape(windows.shape), windows)
            columns[self.k] = 1
            return columns[None].transpose(0, 2, 1)
        windows = _view(first, (g.groups, *pixels, *taps), (depth * sc, *by_pixel, *by_tap))
        columns = scratch("im2col columns", windows.shape, self.dtype)
        np.copyto(columns, windows)
        return columns.reshape(g.groups, -1, self.k)
