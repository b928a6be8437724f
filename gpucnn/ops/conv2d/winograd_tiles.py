"""Winograd's matrices, and the tiles of images that they transform, on NumPy.

winograd.py has the formulas, and multiplies the transformed tiles.

Source: Lavin and Gray 2015; Cook and Toom's interpolation for the matrices.
"""

from functools import cache, lru_cache
from typing import Any

import numpy as np

from gpucnn.cpu import empty, scratch, spans
from gpucnn.device import Array
from gpucnn.integers import ceil_div
from gpucnn.ops.geometry import Geometry

# Interpolation points for each n, besides infinity.  The powers of the usual 0, +-1, +-2 span a
# wider range: over 384 channels their float32 error was 1.2e-5, with these 3e-6 (im2col 4e-7).
_POINTS = {4: (0.0, 1.0, -1.0), 6: (0.0, 0.75, -0.75, 1.5, -1.5)}

# Bytes that fit a core's own cache.  A part's tiles are gathered and transformed while they are in
# it.  With half of this one thread is as fast, but two threads lose 7 % of a step: between NumPy
# calls they compete for the interpreter lock.
_CACHE_BYTES = 1 << 21

# Bytes of a narrow layer's part.  On two threads of a busy EPYC, 1 << 23 made a step of
# speedrun_cifar10 6 % longer, and one of alexnet_cifar10 no shorter.  Earlier, on a Xeon, parts
# that fit the cache made a step 4 % longer: their short operations wait for Python's lock.
_NARROW_BYTES = 1 << 21

# Tiles in one round of products: enough for BLAS to run at full speed, few enough to bound the
# memory of a large batch.
_SPAN_TILES = 1024


def transforms(m: int, r: int) -> tuple[Array, Array, Array]:
    """AT (m, n), G (n, r) and BT (n, n) in float64, n = m + r - 1 = 4 or 6.

    Row j of G evaluates the filter at point j, BT holds the Lagrange polynomials that belong to
    it, AT evaluates the powers; the last row and column are the point at infinity.
    """
    n = m + r - 1
    points = np.array(_POINTS[n])
    at, g, bt = np.zeros((m, n)), np.zeros((n, r)), np.zeros((n, n))
    for j, point in enumerate(points):
        others = np.delete(points, j)
        at[:, j] = point ** np.arange(m)
        g[j] = point ** np.arange(r) / np.prod(point - others)
        bt[j, : n - 1] = np.poly(others)[::-1]
    at[-1, -1] = g[-1, -1] = 1
    bt[-1] = np.poly(points)[::-1]
    return at, g, bt


@cache
def kronecker(
    m: int, r: int, dtype: Any, window: tuple[int, int] = (1, 1)
) -> tuple[Array, Array, Array]:
    """KA, KG, KB: both passes of each transform as one matrix.

    KA gives a tile's pixels sorted by their offset inside a pooling window of `window` pixels; its
    last column, of ones, adds the bias.
    """
    ka, kg, kb = (np.kron(k, k).astype(dtype) for k in transforms(m, r))
    kh, kw = window
    by_offset = ka.reshape(m // kh, kh, m // kw, kw, -1).transpose(1, 3, 0, 2, 4)
    return np.hstack((by_offset.reshape(ka.shape), np.ones((m * m, 1), dtype))), kg, kb


def by_position(shape: tuple[int, ...], dtype: Any, name: str | None = None) -> Array:
    """Uninitialised memory (positions, rows, channels); with `name` it is scratch memory.

    A transform walks all positions in parallel.  One row of padding between them keeps their
    distance from being a power of two, where they would compete for a few cache lines.
    """
    positions, rows, channels = shape
    larger = positions, rows + 1, channels
    memory = empty(larger, dtype) if name is None else scratch(name, larger, dtype)
    return memory[:, :rows]


@lru_cache(maxsize=64)
def _at_edges(
    g: Geometry, m: int, dtype: Any
) -> list[tuple[slice, Array, tuple[slice, slice], Array]]:
    """For each tile of an image, (seen, kb_seen, (rows, columns), kb_own) to transform it in place.

    seen is a slice in row order, from the tile's first pixel on the image to its last; kb_seen is
    KB for these pixels, (n * n, pixels).  rows and columns are those of the tile on the image;
    kb_own is KB for just the tile's own pixels, (n * n, rows * columns).
    """
    n = m + g.kh - 1
    kb = kronecker(m, g.kh, dtype)[2].reshape(n * n, n, n)

    def clip(first: int, size: int) -> tuple[slice, slice]:
        """The part of first .. first + n - 1 inside 0 .. size - 1, and its indices among the n."""
        inside = slice(max(first, 0), max(min(first + n, size), 0))
        return inside, slice(inside.start - first, inside.stop - first)

    found = []
    for top in range(-g.top, g.oh - g.top, m):
        for left in range(-g.left, g.ow - g.left, m):
            (rows, own_rows), (columns, own_columns) = clip(top, g.h), clip(left, g.w)
            own = kb[:, own_rows, own_columns]
            seen = slice(rows.start * g.w + columns.start, (rows.stop - 1) * g.w + columns.stop)
            if own.size == 0:
                seen = slice(0, 0)
            of_image = np.zeros((n * n, g.h, g.w), dtype)
            of_image[:, rows, columns] = own
            by_column = np.asfortranarray(of_image.reshape(n * n, -1)[:, seen])
            found.append((seen, by_column, (rows, columns), own.reshape(n * n, -1)))
    return found


class Tiles:
    """Cuts images into tiles, and lays the results out as images again.

    A tile's m * m results, pooled in windows of `window` pixels, become (mh, mw).

    If all transformed filters fit in a core's cache, the layer is `narrow`: each worker takes a few
    images through all steps, with the filters in its cache.  In other layers each position is
    multiplied for many images at once, so that its filters are read only once.
    """

    def __init__(
        self, g: Geometry, m: int, oc: int, dtype: np.dtype[Any], window: tuple[int, int]
    ) -> None:
        self.g, self.m, self.n = g, m, m + g.kh - 1
        self.window, self.mh, self.mw = window, m // window[0], m // window[1]
        self.down, self.across = ceil_div(g.oh, m), ceil_div(g.ow, m)
        self.per_image = self.down * self.across
        self.channel_bytes = self.per_image * self.n**2 * dtype.itemsize  # of an image's tiles
        self.narrow = self.n**2 * g.c * oc * dtype.itemsize <= _CACHE_BYTES
        self.widest = max(g.c, oc)
        self.ka, self.kg, self.kb = kronecker(m, g.kh, dtype, window)
        self.kb_by_column = np.asfortranarray(self.kb)  # BLAS is 1.1 times as fast in this order
        self.at_edges = _at_edges(g, m, dtype) if max(self.down, self.across) < 3 else None

    def spans(self) -> list[slice]:
        """All images, in slices of about _SPAN_TILES tiles."""
        return list(spans(self.g.n, max(1, _SPAN_TILES // self.per_image)))

    def parts(self, images: slice, channels: int) -> list[slice]:
        """These images in slices whose tiles of `channels` fit a core's cache.

        All steps of a narrow layer need the same slices, of about _NARROW_BYTES.
        """
        step = self._step(self.widest if self.narrow else channels)
        starts = range(images.start, images.stop, step)
        return [slice(start, min(start + step, images.stop)) for start in starts]

    def _step(self, channels: int) -> int:
        """Images in a part: at most an eighth, so that every worker gets one."""
        held = (_NARROW_BYTES if self.narrow else _CACHE_BYTES) // (self.channel_bytes * channels)
        return max(1, min(held, ceil_div(self.g.n, 8)))

    def rows(self, images: slice, first: int = 0) -> slice:
        """The tiles of these images, counted from the first tile of image `first`."""
        per_image = self.per_image
        return slice((images.start - first) * per_image, (images.stop - first) * per_image)

    def transform(self, x: Array, images: slice, into: Array) -> None:
        """Set into (n * n, tiles, C) to V of these images of x."""
        if self.at_edges is None:
            np.matmul(self.kb_by_column, self._gather(x, images), out=into.transpose(1, 0, 2))
            return
        # An edge cuts every tile: multiply the pixels that are on the image in place.
        pixels = x[images].reshape(images.stop - images.start, -1, self.g.c)
        for i, (seen, kb, _, _) in enumerate(self.at_edges):
            np.matmul(kb, pixels[:, seen], out=into[:, i :: self.per_image].transpose(1, 0, 2))

    def transform_back(self, dv: Array, dx: Array, images: slice) -> None:
        """The adjoint: set dx[images] from dV (n * n, tiles, C)."""
        if self.at_edges is None:
            of_tiles = dv.transpose(1, 0, 2)
            buffer = scratch("winograd tiles", of_tiles.shape, dv.dtype)
            self._overlap_add(np.matmul(self.kb.T, of_tiles, out=buffer), dx, images)
            return
        total = dx[images]
        total[...] = 0
        for i, (_, _, (rows, columns), kb) in enumerate(self.at_edges):
            into = total[:, rows, columns]
            of_tile = dv[:, i :: self.per_image].transpose(1, 0, 2)
            buffer = scratch("winograd tiles", (len(into), kb.shape[1], self.g.c), dv.dtype)
            into += np.matmul(kb.T, of_tile, out=buffer).reshape(into.shape)

    def _gather(self, x: Array, images: slice) -> Array:
        """The overlapping tiles of these images of x, zero-padded: (tiles, n * n, C)."""
        g, m, n = self.g, self.m, self.n
        count = images.stop - images.start
        h, w = m * self.down + g.kh - 1, m * self.across + g.kw - 1
        padded = scratch("winograd padded", (count, h, w, g.c), x.dtype)
        padded[...] = 0  # one call costs less than four for the edges
        padded[:, g.top : g.top + g.h, g.left : g.left + g.w] = x[images]
        sn, sh, sw, sc = padded.strides
        view = np.lib.stride_tricks.as_strided(
            padded, (count, self.down, self.across, n, n, g.c), (sn, m * sh, m * sw, sh, sw, sc)
        )
        tiles = scratch("winograd tiles", view.shape, x.dtype)
        np.copyto(tiles, view)
        return tiles.reshape(-1, n * n, g.c)

    def _overlap_add(self, tiles: Array, dx: Array, images: slice) -> None:
        """The adjoint of _gather: tiles (tiles, n * n, C) summed into dx[images]."""
        g, m, n = self.g, self.m, self.n
        count, blocks = images.stop - images.start, ceil_div(n, m)
        d = tiles.reshape(count, self.down, self.across, n, n, g.c)
        shape = (count, self.down + blocks - 1, m, self.across + blocks - 1, m, g.c)
        total = scratch("winograd padded", shape, dx.dtype)
        total[:, self.down :] = 0
        total[:, :, :, self.across :] = 0
        for i in range(blocks):
            for j in range(blocks):
                part = d[:, :, :, i * m : (i + 1) * m, j * m : (j + 1) * m].transpose(
                    0, 1, 3, 2, 4, 5
                )
                into = total[
                    :, i : i + self.down, : part.shape[2], j : j + self.across, : part.shape[4]
                ]
                if i == j == 0:
                    into[...] = part
                else:
                    into += part
        rows = total.reshape(count, shape[1] * m, shape[3] * m, g.c)
        dx[images] = rows[:, g.top : g.top + g.h, g.left : g.left + g.w]

    def scatter(self, result: Array, y: Array, clip: bool) -> None:
        """Copy the tiles result (tiles, mh * mw, OC) into images y, clipped at 0 with `clip`."""
        shape = (len(y), self.mh * self.down, self.mw * self.across, y.shape[3])
        whole = y if y.shape == shape else scratch("winograd padded", shape, y.dtype)
        into = self._cut(whole)
        if clip:
            np.maximum(result.reshape(into.shape), 0, out=into)
        else:
            np.copyto(into, result.reshape(into.shape))
        if whole is not y:
            y[...] = whole[:, : y.shape[1], : y.shape[2]]

    def gather_result(self, dy: Array) -> Array:
        """The adjoint of scatter: images dy as tiles (tiles, mh * mw, OC)."""
        images, height, width, oc = dy.shape
        shape = (images, self.mh * self.down, self.mw * self.across, oc)
        whole = dy
        if dy.shape != shape:
            whole = scratch("winograd padded", shape, dy.dtype)
            whole[:, height:] = 0
            whole[:, :height, width:] = 0
            whole[:, :height, :width] = dy
        cut = self._cut(whole)
        tiles = scratch("winograd tiles", cut.shape, dy.dtype)
        np.copyto(tiles, cut)
        return tiles.reshape(-1, self.mh * self.mw, oc)

    def _cut(self, whole: Array) -> Array:
        """A view of images (images, H, W, OC): (images, down, across, mh, mw, OC)."""
        shape = (len(whole), self.down, self.mh, self.across, self.mw, whole.shape[3])
        return whole.reshape(shape).transpose(0, 1, 3, 2, 4, 5)

    def by_offset(self, tiles: Array) -> Array:
        """A view of tiles (tiles, m * m, OC), in the order of KA: (KH, KW, tiles, mh * mw * OC)."""
        return tiles.reshape(len(tiles), *self.window, -1).transpose(1, 2, 0, 3)
