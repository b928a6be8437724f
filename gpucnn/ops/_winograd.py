"""Winograd's convolution F(m x m, r x r) on NumPy: stride 1, no dilation, no groups.

An m x m tile of the result depends on an n x n tile of the image, n = m + r - 1.  Transformed,

    y = AT [ (G w GT) * (BT d B) ] A          (* element by element)

so that a filter costs n * n multiplications a tile where the plain sum needs m * m * r * r:
36 for 144 where m = 4, r = 3.  Over channels, each of the n * n positions is one matrix product.
All three transforms are linear, so both 1-D passes are one matrix, and the backward pass is the
exact adjoint: every matrix transposed, in the opposite order.

    V = KB d   (tiles, n * n, C)        KB = kron(BT, BT)   (n * n, n * n)
    U = KG w   (OC, n * n, C)           KG = kron(G, G)     (n * n, r * r)
    M[p] = V[p] U[p]^T  for every position p
    y = KA M   (tiles, m * m, OC)       KA = kron(AT, AT)   (m * m, n * n)

Positions stay the middle axis: the products then read rows of C with a constant stride, which
BLAS takes as they are, and no array is ever transposed in memory.

Source: Lavin and Gray 2015; Cook and Toom's interpolation for the matrices.
"""

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

# Tiles whose dM is kept until dU has been summed over them: bounds the memory of a large batch.
_SUM_TILES = 1024


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

    def chunks(self) -> list[slice]:
        return list(spans(self.v.n, self.images))

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
    u = np.empty((oc, n2, window.c), x.dtype)

    def transform(filters: slice) -> None:
        np.matmul(kg, w[filters].reshape(-1, r * r, window.c), out=u[filters])

    parallel(transform, list(spans(oc, 64)))
    y = np.empty((window.n, window.oh, window.ow, oc), x.dtype)
    v = np.empty((window.n * tiles.per_image, n2, window.c), x.dtype) if keep else None

    def convolve(chunk: slice) -> None:
        d = tiles.gather(x, chunk)
        v_chunk = scratch("winograd v", d.shape, x.dtype) if v is None else v[tiles.rows(chunk)]
        np.matmul(kb, d, out=v_chunk)
        products = scratch("winograd products", (len(d), n2, oc), x.dtype)
        _products(v_chunk, u.transpose(1, 2, 0), products)
        result = scratch("winograd tiles", (len(d), len(ka), oc), x.dtype)
        tiles.scatter(np.matmul(ka, products, out=result), b, y, chunk)

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
    du = np.zeros(u.shape, dy.dtype) if needs[1] else None
    db = np.empty((len(tiles.chunks()), oc), dy.dtype) if needs[2] else None
    batch = max(1, _SUM_TILES // tiles.per_image // tiles.images) * tiles.images
    for images in spans(window.n, batch):
        first = images.start * tiles.per_image
        count = (images.stop - images.start) * tiles.per_image
        dm = np.empty((count, n2, oc), dy.dtype)

        def chunk_backward(chunk: slice, dm: Array = dm, first: int = first) -> None:
            rows = tiles.rows(chunk)
            dm_chunk = dm[rows.start - first : rows.stop - first]
            dy_tiles = tiles.gather_result(dy, chunk)
            np.matmul(ka.T, dy_tiles, out=dm_chunk)
            if db is not None:  # here dy is in the cache, and BLAS adds rows faster than sum()
                rows_of_dy = dy_tiles.reshape(-1, oc)
                ones = np.ones(len(rows_of_dy), dy.dtype)
                np.matmul(ones, rows_of_dy, out=db[chunk.start // tiles.images])
            if dx is None:
                return
            dv = scratch("winograd v", (len(dm_chunk), n2, window.c), dy.dtype)
            _products(dm_chunk, u.transpose(1, 0, 2), dv)
            dd = scratch("winograd tiles", dv.shape, dy.dtype)
            tiles.overlap_add(np.matmul(kb.T, dv, out=dd), dx, chunk)

        def position_backward(p: int, dm: Array = dm, first: int = first) -> None:
            assert du is not None
            v_p = v[first : first + len(dm), p]
            if first == 0:
                np.matmul(dm[:, p].T, v_p, out=du[:, p])
            else:
                du[:, p] += dm[:, p].T @ v_p

        chunks = spans(images.stop - images.start, tiles.images)
        parallel(
            chunk_backward, [slice(images.start + c.start, images.start + c.stop) for c in chunks]
        )
        if du is not None:
            parallel(position_backward, range(n2))
    db = None if db is None else db.sum(axis=0)
    if du is None:
        return dx, None, db
    dw = np.empty((oc, r * r, window.c), dy.dtype)

    def transform(filters: slice) -> None:
        np.matmul(kg.T, du[filters], out=dw[filters])

    parallel(transform, list(spans(oc, 64)))
    return dx, dw.reshape(w_shape), db


def _products(a: Array, b: Array, out: Array) -> None:
    """A product for each position: a (tiles, n * n, K), b (n * n, K, L), out (tiles, n * n, L)."""
    np.matmul(a.transpose(1, 0, 2), b, out=out.transpose(1, 0, 2))
