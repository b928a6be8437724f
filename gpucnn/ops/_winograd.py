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

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

from gpucnn.device import Array
from gpucnn.ops.window import Window
from gpucnn.threads import parallel, scratch, spans

# Interpolation points for each n, infinity aside.  The usual 0, +-1, +-2 make powers that differ
# more: on 384 channels their float32 error was 1.2e-5, that of these 3e-6 (im2col 4e-7).
_POINTS = {4: (0.0, 1.0, -1.0), 6: (0.0, 0.75, -0.75, 1.5, -1.5)}

# Tiles that are transformed at a time: 256 rows are enough for BLAS to multiply at full speed;
# with 64, which would stay in a 2 MiB L2 cache, products took 1.3 times as long.
_CHUNK_TILES = 256

# Bytes of tiles that are gathered and transformed at a time, so that the second finds them in a
# core's own cache.
_PART_BYTES = 1 << 19

# Chunks whose dM is kept until dU has been summed over them: bounds the memory of a large batch.
_SUM_CHUNKS = 4


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
        self.images = max(1, _CHUNK_TILES // self.per_image)  # in one chunk

    def chunks(self, images: slice | None = None) -> list[slice]:
        """These images, or all, in slices of `self.images`."""
        first, last = (0, self.v.n) if images is None else (images.start, images.stop)
        return [slice(i, min(i + self.images, last)) for i in range(first, last, self.images)]

    def parts(
        self, chunk: slice, channels: int, dtype: np.dtype[Any]
    ) -> Iterator[tuple[slice, slice]]:
        """A chunk cut into as many images as a transform holds in the cache: images, and their
        tiles counted from the first of the chunk."""
        image = self.per_image * self.n**2 * channels * dtype.itemsize
        for part in spans(chunk.stop - chunk.start, max(1, _PART_BYTES // image)):
            images = slice(chunk.start + part.start, chunk.start + part.stop)
            yield images, slice(part.start * self.per_image, part.stop * self.per_image)

    def rows(self, chunk: slice) -> slice:
        """The tiles of these images."""
        return slice(chunk.start * self.per_image, chunk.stop * self.per_image)

    def gather(self, x: Array, chunk: slice) -> Array:
        """The overlapping tiles of a chunk of x, zeros around: (tiles, n * n, C)."""
        v, m, n = self.v, self.m, self.n
        count = chunk.stop - chunk.start
        h, w = m * self.down + v.kh - 1, m * self.across + v.kw - 1
        padded = scratch("winograd padded", (count, h, w, v.c), x.dtype)
        padded[:, : v.top] = 0
        padded[:, v.top + v.h :] = 0
        padded[:, v.top : v.top + v.h, : v.left] = 0
        padded[:, v.top : v.top + v.h, v.left + v.w :] = 0
        padded[:, v.top : v.top + v.h, v.left : v.left + v.w] = x[chunk]
        sn, sh, sw, sc = padded.strides
        view = np.lib.stride_tricks.as_strided(
            padded, (count, self.down, self.across, n, n, v.c), (sn, m * sh, m * sw, sh, sw, sc)
        )
        tiles = scratch("winograd tiles", view.shape, x.dtype)
        np.copyto(tiles, view)
        return tiles.reshape(-1, n * n, v.c)

    def overlap_add(self, tiles: Array, dx: Array, chunk: slice) -> None:
        """The adjoint of gather: tiles (tiles, n * n, C) summed into dx[chunk]."""
        v, m, n = self.v, self.m, self.n
        count, blocks = chunk.stop - chunk.start, -(-n // m)
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
        dx[chunk] = rows[:, v.top : v.top + v.h, v.left : v.left + v.w]

    def scatter(self, result: Array, b: Array | None, y: Array, chunk: slice) -> None:
        """Lay the tiles result (tiles, m * m, OC), plus b, into y[chunk]."""
        v, m, oc = self.v, self.m, y.shape[3]
        count = chunk.stop - chunk.start
        exact = v.oh == m * self.down and v.ow == m * self.across
        shape = (count, m * self.down, m * self.across, oc)
        whole = y[chunk] if exact else scratch("winograd padded", shape, y.dtype)
        into = whole.reshape(count, self.down, m, self.across, m, oc).transpose(0, 1, 3, 2, 4, 5)
        part = result.reshape(into.shape)
        if b is None:
            np.copyto(into, part)
        else:
            np.add(part, b, out=into)
        if not exact:
            y[chunk] = whole[:, : v.oh, : v.ow]

    def gather_result(self, dy: Array, chunk: slice) -> Array:
        """The adjoint of scatter: dy[chunk] as tiles (tiles, m * m, OC)."""
        v, m, oc = self.v, self.m, dy.shape[3]
        count = chunk.stop - chunk.start
        whole = dy[chunk]
        if v.oh != m * self.down or v.ow != m * self.across:
            shape = (count, m * self.down, m * self.across, oc)
            whole = scratch("winograd padded", shape, dy.dtype)
            whole[:, v.oh :] = 0
            whole[:, : v.oh, v.ow :] = 0
            whole[:, : v.oh, : v.ow] = dy[chunk]
        view = whole.reshape(count, self.down, m, self.across, m, oc).transpose(0, 1, 3, 2, 4, 5)
        tiles = scratch("winograd tiles", view.shape, dy.dtype)
        np.copyto(tiles, view)
        return tiles.reshape(-1, m * m, oc)


def forward(
    x: Array, w: Array, b: Array | None, window: Window, m: int, keep: bool
) -> tuple[Array, tuple[Array, ...]]:
    """The convolution and, if `keep`, what backward needs: V and U."""
    oc, r = w.shape[:2]
    ka, kg, kb = _kronecker(m, r, x.dtype)
    tiles, n2 = _Tiles(window, m), len(kb)
    u = np.empty((n2, oc, window.c), x.dtype)

    def transform(filters: slice) -> None:
        by_filter = u[:, filters].transpose(1, 0, 2)
        np.matmul(kg, w[filters].reshape(-1, r * r, window.c), out=by_filter)

    parallel(transform, list(spans(oc, 64)))
    y = np.empty((window.n, window.oh, window.ow, oc), x.dtype)
    v = np.empty((n2, window.n * tiles.per_image, window.c), x.dtype) if keep else None

    def convolve(chunk: slice) -> None:
        count = (chunk.stop - chunk.start) * tiles.per_image
        if v is None:
            v_chunk = scratch("winograd v", (n2, count, window.c), x.dtype)
        else:
            v_chunk = v[:, tiles.rows(chunk)]
        for images, rows in tiles.parts(chunk, window.c, x.dtype):
            np.matmul(kb, tiles.gather(x, images), out=v_chunk[:, rows].transpose(1, 0, 2))
        products = scratch("winograd products", (n2, count, oc), x.dtype)
        np.matmul(v_chunk, u.transpose(0, 2, 1), out=products)
        for images, rows in tiles.parts(chunk, oc, x.dtype):
            result = scratch("winograd tiles", (rows.stop - rows.start, len(ka), oc), x.dtype)
            np.matmul(ka, products[:, rows].transpose(1, 0, 2), out=result)
            tiles.scatter(result, b, y, images)

    parallel(convolve, tiles.chunks())
    return y, () if v is None else (v, u)


def backward(
    dy: Array,
    kept: tuple[Array, ...],
    w_shape: tuple[int, ...],
    window: Window,
    m: int,
    needs: tuple[bool, ...],
) -> tuple[Array | None, Array | None, Array | None]:
    """dx, dw and db, as far as needed: dM = KA^T dy serves dx and dw."""
    v, u = kept
    oc, r = w_shape[:2]
    ka, kg, kb = _kronecker(m, r, dy.dtype)
    tiles, n2 = _Tiles(window, m), len(kb)
    dx = np.empty((window.n, window.h, window.w, window.c), dy.dtype) if needs[0] else None
    du = np.empty_like(u) if needs[1] else None
    db = np.empty((len(tiles.chunks()), oc), dy.dtype) if needs[2] else None

    for images in spans(window.n, _SUM_CHUNKS * tiles.images):
        all_rows = tiles.rows(images)
        dm = np.empty((n2, all_rows.stop - all_rows.start, oc), dy.dtype)

        def chunk_backward(chunk: slice, dm: Array = dm, start: int = all_rows.start) -> None:
            own = tiles.rows(chunk)
            dm_chunk = dm[:, own.start - start : own.stop - start]
            if db is not None:
                db_chunk = db[chunk.start // tiles.images]
                db_chunk[...] = 0
            for images, rows in tiles.parts(chunk, oc, dy.dtype):
                dy_tiles = tiles.gather_result(dy, images)
                np.matmul(ka.T, dy_tiles, out=dm_chunk[:, rows].transpose(1, 0, 2))
                if db is not None:  # here dy is in the cache; BLAS adds rows faster than sum()
                    rows_of_dy = dy_tiles.reshape(-1, oc)
                    db_chunk += np.ones(len(rows_of_dy), dy.dtype) @ rows_of_dy
            if dx is None:
                return
            dv = scratch("winograd v", (n2, dm_chunk.shape[1], window.c), dy.dtype)
            np.matmul(dm_chunk, u, out=dv)
            for images, rows in tiles.parts(chunk, window.c, dy.dtype):
                dd = scratch("winograd tiles", (rows.stop - rows.start, n2, window.c), dy.dtype)
                np.matmul(kb.T, dv[:, rows].transpose(1, 0, 2), out=dd)
                tiles.overlap_add(dd, dx, images)

        def position_backward(p: int, dm: Array = dm, rows: slice = all_rows) -> None:
            assert du is not None
            if rows.start == 0:
                np.matmul(dm[p].T, v[p, rows], out=du[p])
            else:
                du[p] += dm[p].T @ v[p, rows]

        parallel(chunk_backward, tiles.chunks(images))
        if du is not None:
            parallel(position_backward, range(n2))

    db = None if db is None else db.sum(axis=0)
    if du is None:
        return dx, None, db
    dw = np.empty((oc, r * r, window.c), dy.dtype)

    def transform(filters: slice) -> None:
        np.matmul(kg.T, du[:, filters].transpose(1, 0, 2), out=dw[filters])

    parallel(transform, list(spans(oc, 64)))
    return dx, dw.reshape(w_shape), db
