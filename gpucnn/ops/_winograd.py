"""Winograd's convolution F(m x m, r x r) on NumPy: stride 1, no dilation, no groups.

An m x m tile of the result depends on an n x n tile of the image, n = m + r - 1.  Transformed,

    y = AT [ (G w GT) * (BT d B) ] A          (* element by element)

so that a filter costs n * n multiplications a tile where the plain sum needs m * m * r * r:
36 for 144 where m = 4, r = 3.  Over channels, each of the n * n positions is one matrix product.
All three transforms are linear, so both 1-D passes are one matrix, and the backward pass is the
exact adjoint: every matrix transposed, in the opposite order.

    V = KB d   (n * n, tiles, C)        KB = kron(BT, BT)   (n * n, n * n)
    U = KG w   (n * n, OC, C)           KG = kron(G, G)     (n * n, r * r)
    M[p] = V[p] U[p]^T  for every position p: (tiles, OC)
    y = KA M   (tiles, m * m, OC)       KA = kron(AT, AT)   (m * m, n * n)

A transform is one product for each tile, written straight to where the products for each
position read it: BLAS takes rows of C at any constant stride, so that nothing is transposed in
memory, and V, U and M are contiguous where most of the time goes.

Source: Lavin and Gray 2015; Cook and Toom's interpolation for the matrices.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from gpucnn.device import Array
from gpucnn.ops._epilogue import Epilogue
from gpucnn.ops._im2col import add_rows
from gpucnn.ops.window import Window
from gpucnn.threads import parallel, scratch, spans

# Interpolation points for each n, infinity aside.  The usual 0, +-1, +-2 make powers that differ
# more: on 384 channels their float32 error was 1.2e-5, that of these 3e-6 (im2col 4e-7).
_POINTS = {4: (0.0, 1.0, -1.0), 6: (0.0, 0.75, -0.75, 1.5, -1.5)}

# Tiles between two rounds of products: enough for BLAS to multiply at full speed, few enough to
# bound the memory of a large batch.
_SPAN_TILES = 1024

# Bytes of tiles that are gathered and transformed at a time, so that the second finds them in a
# core's own cache.  Half of it would serve one thread as well, but two lose a tenth of a step to
# each other then: between its calls of NumPy each needs the interpreter's lock.
_PART_BYTES = 1 << 20


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
def _kronecker(m: int, r: int, dtype: Any) -> tuple[Array, Array, Array]:
    """KA, KG, KB: both passes of each transform as one matrix."""
    ka, kg, kb = (np.kron(k, k).astype(dtype) for k in transforms(m, r))
    return ka, kg, kb


class _Tiles:
    """How the images of a window are cut into tiles."""

    def __init__(self, v: Window, m: int) -> None:
        self.v, self.m, self.n = v, m, m + v.kh - 1
        self.down, self.across = -(-v.oh // m), -(-v.ow // m)
        self.per_image = self.down * self.across

    def spans(self) -> list[slice]:
        """All images, in slices of about _SPAN_TILES tiles."""
        return list(spans(self.v.n, max(1, _SPAN_TILES // self.per_image)))

    def parts(self, images: slice, channels: int, dtype: np.dtype[Any]) -> list[slice]:
        """These images, in slices whose tiles a core's cache holds."""
        image = self.per_image * self.n**2 * channels * dtype.itemsize
        step = max(1, _PART_BYTES // image)
        starts = range(images.start, images.stop, step)
        return [slice(start, min(start + step, images.stop)) for start in starts]

    def rows(self, images: slice, first: int = 0) -> slice:
        """The tiles of these images, counted from those of image `first`."""
        per_image = self.per_image
        return slice((images.start - first) * per_image, (images.stop - first) * per_image)

    def gather(self, x: Array, images: slice) -> Array:
        """The overlapping tiles of these images of x, zeros around: (tiles, n * n, C)."""
        v, m, n = self.v, self.m, self.n
        count = images.stop - images.start
        h, w = m * self.down + v.kh - 1, m * self.across + v.kw - 1
        padded = scratch("winograd padded", (count, h, w, v.c), x.dtype)
        padded[:, : v.top] = 0
        padded[:, v.top + v.h :] = 0
        padded[:, v.top : v.top + v.h, : v.left] = 0
        padded[:, v.top : v.top + v.h, v.left + v.w :] = 0
        padded[:, v.top : v.top + v.h, v.left : v.left + v.w] = x[images]
        sn, sh, sw, sc = padded.strides
        view = np.lib.stride_tricks.as_strided(
            padded, (count, self.down, self.across, n, n, v.c), (sn, m * sh, m * sw, sh, sw, sc)
        )
        tiles = scratch("winograd tiles", view.shape, x.dtype)
        np.copyto(tiles, view)
        return tiles.reshape(-1, n * n, v.c)

    def overlap_add(self, tiles: Array, dx: Array, images: slice) -> None:
        """The adjoint of gather: tiles (tiles, n * n, C) summed into dx[images]."""
        v, m, n = self.v, self.m, self.n
        count, blocks = images.stop - images.start, -(-n // m)
        d = tiles.reshape(count, self.down, self.across, n, n, v.c)
        shape = (count, self.down + blocks - 1, m, self.across + blocks - 1, m, v.c)
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
        rows = total.reshape(count, shape[1] * m, shape[3] * m, v.c)
        dx[images] = rows[:, v.top : v.top + v.h, v.left : v.left + v.w]

    def scatter(self, result: Array, b: Array | None, y: Array) -> None:
        """Lay the tiles result (tiles, m * m, OC), plus b, into images y."""
        v, m = self.v, self.m
        shape = (len(y), m * self.down, m * self.across, y.shape[3])
        whole = y if y.shape == shape else scratch("winograd padded", shape, y.dtype)
        into = self._cut(whole)
        if b is None:
            np.copyto(into, result.reshape(into.shape))
        else:
            np.add(result.reshape(into.shape), b, out=into)
        if whole is not y:
            y[...] = whole[:, : v.oh, : v.ow]

    def gather_result(self, dy: Array) -> Array:
        """The adjoint of scatter: images dy as tiles (tiles, m * m, OC)."""
        v, m, oc = self.v, self.m, dy.shape[3]
        shape = (len(dy), m * self.down, m * self.across, oc)
        whole = dy
        if dy.shape != shape:
            whole = scratch("winograd padded", shape, dy.dtype)
            whole[:, v.oh :] = 0
            whole[:, : v.oh, v.ow :] = 0
            whole[:, : v.oh, : v.ow] = dy
        tiles = scratch("winograd tiles", (len(dy), self.down, self.across, m, m, oc), dy.dtype)
        np.copyto(tiles, self._cut(whole))
        return tiles.reshape(-1, m * m, oc)

    def _cut(self, whole: Array) -> Array:
        """A view of images (images, H, W, OC): (images, down, across, m, m, OC)."""
        shape = (len(whole), self.down, self.m, self.across, self.m, whole.shape[3])
        return whole.reshape(shape).transpose(0, 1, 3, 2, 4, 5)


def forward(
    x: Array,
    w: Array,
    b: Array | None,
    window: Window,
    m: int,
    epilogue: Epilogue,
    keep: bool,
) -> tuple[Array, ...]:
    """The convolution, handed to the epilogue part by part; what backward needs if `keep`: V, U."""
    oc, r = w.shape[:2]
    kg = _kronecker(m, r, x.dtype)[1]
    tiles, n2 = _Tiles(window, m), len(kg)
    u = np.empty((n2, oc, window.c), x.dtype)

    def transform(filters: slice) -> None:
        by_filter = u[:, filters].transpose(1, 0, 2)
        np.matmul(kg, w[filters].reshape(-1, r * r, window.c), out=by_filter)

    parallel(transform, spans(oc, 64))
    kept = np.empty((n2, window.n * tiles.per_image, window.c), x.dtype) if keep else None

    for images in tiles.spans():
        rows = tiles.rows(images)
        count = rows.stop - rows.start
        if kept is not None:
            v = kept[:, rows]
        else:
            v = scratch("winograd v", (n2, count, window.c), x.dtype)
        products = scratch("winograd products", (n2, count, oc), x.dtype)
        _forward_span(x, b, u, v, products, tiles, images, epilogue, keep)
    return () if kept is None else (kept, u)


def _forward_span(
    x: Array,
    b: Array | None,
    u: Array,
    v: Array,
    products: Array,
    tiles: _Tiles,
    images: slice,
    epilogue: Epilogue,
    keep: bool,
) -> None:
    """From x[images] to the epilogue, by way of v and the products."""
    ka, _, kb = _kronecker(tiles.m, tiles.v.kh, x.dtype)

    def transform(part: slice) -> None:
        into = v[:, tiles.rows(part, images.start)].transpose(1, 0, 2)
        np.matmul(kb, tiles.gather(x, part), out=into)

    def multiply(p: int) -> None:
        np.matmul(v[p], u[p].T, out=products[p])

    def transform_back(part: slice) -> None:
        of_part = products[:, tiles.rows(part, images.start)].transpose(1, 0, 2)
        shape = (len(of_part), len(ka), u.shape[1])
        result = np.matmul(ka, of_part, out=scratch("winograd tiles", shape, x.dtype))
        y = epilogue.room(part)
        tiles.scatter(result, b, y)
        epilogue.finish(y, part, keep)

    parallel(transform, tiles.parts(images, x.shape[3], x.dtype))
    parallel(multiply, range(len(u)))
    parallel(transform_back, tiles.parts(images, u.shape[1], x.dtype))


def backward(
    dy: Array,
    kept: Sequence[Array],
    w_shape: tuple[int, ...],
    window: Window,
    m: int,
    needs: tuple[bool, ...],
    last_use: bool,
    epilogue: Epilogue,
) -> tuple[Array | None, Array | None, Array | None]:
    """dx, dw and db, as far as needed: dM = KA^T dy serves dx and dw.

    If this is the last use of V, dV takes its memory.
    """
    v, u = kept
    oc, r = w_shape[:2]
    kg = _kronecker(m, r, dy.dtype)[1]
    tiles = _Tiles(window, m)
    dx = np.empty((window.n, window.h, window.w, window.c), dy.dtype) if needs[0] else None
    du = np.empty_like(u) if needs[1] else None
    db = np.zeros(oc, dy.dtype) if needs[2] else None

    for images in tiles.spans():
        rows = tiles.rows(images)
        dm = scratch("winograd products", (len(u), rows.stop - rows.start, oc), dy.dtype)
        dv = v[:, rows]
        if dx is not None and not last_use:
            dv = scratch("winograd v", dv.shape, dy.dtype)
        _backward_span(dy, dx, du, db, u, v[:, rows], dm, dv, tiles, images, epilogue)

    if du is None:
        return dx, None, db
    dw = np.empty((oc, r * r, window.c), dy.dtype)

    def transform(filters: slice) -> None:
        np.matmul(kg.T, du[:, filters].transpose(1, 0, 2), out=dw[filters])

    parallel(transform, spans(oc, 64))
    return dx, dw.reshape(w_shape), db


def _backward_span(
    dy: Array,
    dx: Array | None,
    du: Array | None,
    db: Array | None,
    u: Array,
    v: Array,
    dm: Array,
    dv: Array,
    tiles: _Tiles,
    images: slice,
    epilogue: Epilogue,
) -> None:
    """From dy[images] to dx[images], and to what these images add to du and db."""
    ka, _, kb = _kronecker(tiles.m, tiles.v.kh, dy.dtype)
    oc = u.shape[1]
    parts = tiles.parts(images, oc, dy.dtype)
    sums = np.empty((len(parts), oc), dy.dtype)

    def transform(i: int) -> None:
        dy_tiles = tiles.gather_result(epilogue.gradient(dy, parts[i]))
        into = dm[:, tiles.rows(parts[i], images.start)].transpose(1, 0, 2)
        np.matmul(ka.T, dy_tiles, out=into)
        if db is not None:
            sums[i] = add_rows(dy_tiles.reshape(-1, oc))

    def multiply(p: int) -> None:
        if du is not None:
            if images.start == 0:
                np.matmul(dm[p].T, v[p], out=du[p])
            else:
                du[p] += dm[p].T @ v[p]
        if dx is not None:
            np.matmul(dm[p], u[p], out=dv[p])

    def transform_back(part: slice) -> None:
        of_part = dv[:, tiles.rows(part, images.start)].transpose(1, 0, 2)
        tiles_of_dx = scratch("winograd tiles", of_part.shape, dy.dtype)
        tiles.overlap_add(np.matmul(kb.T, of_part, out=tiles_of_dx), dx, part)

    parallel(transform, range(len(parts)))
    if db is not None:
        db += sums.sum(axis=0)
    parallel(multiply, range(len(u)))
    if dx is not None:
        parallel(transform_back, tiles.parts(images, dx.shape[3], dy.dtype))
