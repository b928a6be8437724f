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
position read it: BLAS takes rows of C at any constant stride, so that no tile is transposed in
memory, and V, U and M are contiguous where most of the time goes.  The filters are, before their
transform: then V U^T here and dM U on the way back both are products of matrices as they lie,
which _products.py makes faster.

In images of at most two tiles by two every tile is cut by an edge; there KB is shortened to the
pixels that are on the image, which are multiplied as they lie, without being gathered.

Source: Lavin and Gray 2015.
"""

from collections.abc import Sequence

import numpy as np

from gpucnn.cpu import Work, empty, parallel, parallel_all, scratch, spans
from gpucnn.cpu import blas as _products
from gpucnn.device import Array
from gpucnn.ops import _exact
from gpucnn.ops.conv2d import winograd_filters as _winograd_filters
from gpucnn.ops.conv2d.fusion import Epilogue
from gpucnn.ops.conv2d.im2col import add_rows
from gpucnn.ops.conv2d.winograd_tiles import Tiles, by_position
from gpucnn.ops.geometry import Geometry

# A narrow layer's dU is summed in this many parts.
_SUM_PARTS = 8


def forward(
    x: Array,
    w: Array,
    b: Array | None,
    window: Geometry,
    m: int,
    epilogue: Epilogue,
    keep: bool,
) -> tuple[Array, ...]:
    """The convolution, handed to the epilogue part by part; what backward needs if `keep`: V, w."""
    oc = len(w)
    epilogue.take_pool((m, m))
    clip = epilogue.take_relu()
    tiles = Tiles(window, m, oc, x.dtype, epilogue.window)
    n2 = len(tiles.kg)
    ka = tiles.ka[:, :n2] if b is None else tiles.ka
    todo: list[Work] = []
    if keep:
        _winograd_filters.forget(w, tiles.kg)
        u_t, of_filters = _winograd_filters.transposed(w, tiles.kg)
        todo.append(of_filters)
    else:
        u_t = _winograd_filters.without_gradients(w, tiles.kg)
    every = window.n * tiles.per_image
    kept = by_position((n2, every, window.c), x.dtype) if keep else None
    parts = tiles.parts(slice(0, window.n), oc) if tiles.narrow else []
    positions = list(spans(n2, n2 if len(parts) > 1 else 1))  # all at once in a part of several

    def convolve(images: slice) -> None:
        rows = tiles.rows(images)
        count = rows.stop - rows.start
        if kept is None:
            v = by_position((n2, count, window.c), x.dtype, "winograd v")
        else:
            v = kept[:, rows]
        products = by_position((ka.shape[1], count, oc), x.dtype, "winograd products")

        def transform(part: slice) -> None:
            tiles.transform(x, part, v[:, tiles.rows(part, images.start)])

        def multiply(positions: slice) -> None:
            _products.multiply(v[positions], u_t[positions], products[positions])

        def transform_back(part: slice) -> None:
            rows = tiles.rows(part, images.start)
            if b is not None:
                products[n2, rows] = b
            of_part = products[:, rows].transpose(1, 0, 2)
            room = scratch("winograd tiles", (len(of_part), len(ka), oc), x.dtype)
            result = np.matmul(ka, of_part, out=room)
            if epilogue.places is not None:
                by_place = tiles.by_place(result)
                result = scratch("winograd pooled", by_place.shape[2:], x.dtype)
                epilogue.places.pool(by_place, result, part.start, keep, False)
            y = epilogue.room(part)
            tiles.scatter(result, y, clip)
            epilogue.finish(y, part, keep)

        parallel_all((transform, tiles.parts(images, window.c)), *todo)
        todo.clear()
        parallel(multiply, positions)
        parallel(transform_back, tiles.parts(images, oc))

    if tiles.narrow:
        parallel_all(*todo)
        todo.clear()
        parallel(convolve, parts)
    else:
        for images in tiles.spans():
            convolve(images)
    return () if kept is None else (kept, w)


def backward(
    dy: Array,
    kept: Sequence[Array],
    window: Geometry,
    m: int,
    needs: tuple[bool, ...],
    last_use: bool,
    epilogue: Epilogue,
) -> tuple[Array | None, Array | None, Array | None]:
    """dx, dw and db, as far as needed: dM = KA^T dy serves dx and dw.

    If this is the last use of V, dV takes its memory.
    """
    v, w = kept
    oc, r = w.shape[:2]
    tiles = Tiles(window, m, oc, dy.dtype, epilogue.window)
    kg, n2 = tiles.kg, len(tiles.kg)
    ka = tiles.ka[:, :n2]
    dx = empty((window.n, window.h, window.w, window.c), dy.dtype) if needs[0] else None
    u, todo = None, []
    if needs[0]:
        u, of_filters = _winograd_filters.natural(w, kg)
        todo.append(of_filters)
    dw = empty((oc, r * r, window.c), dy.dtype) if needs[1] else None
    db = np.zeros(oc, dy.dtype) if needs[2] else None

    def transform(part: slice, dm: Array, total: Array) -> None:
        """Set dm to dM of these images, and add their dy to total."""
        dy_tiles = tiles.gather_result(epilogue.gradient(dy, part))
        if db is not None:
            total += add_rows(dy_tiles.reshape(-1, oc))
        if epilogue.places is not None:
            pooled = dy_tiles.reshape(len(dy_tiles), -1)
            dy_tiles = scratch("winograd places", (len(pooled), len(ka), oc), dy.dtype)
            epilogue.places.unpool(pooled, part.start, tiles.by_place(dy_tiles))
        np.matmul(ka.T, dy_tiles, out=dm.transpose(1, 0, 2))

    def transform_filters_back(filters: slice, du: Array) -> None:
        assert dw is not None
        np.matmul(kg.T, du.transpose(1, 0, 2), out=dw[filters])

    def narrow() -> None:
        """Runs of parts, each by one thread in the order of the images, with a sum of its own."""
        parts = tiles.parts(slice(0, window.n), oc)
        runs = [parts[i::_SUM_PARTS] for i in range(min(_SUM_PARTS, len(parts)))]
        dus = empty((len(runs) if needs[1] else 0, n2, oc, window.c), dy.dtype)
        sums = np.zeros((len(runs), oc), _exact.wide(dy.dtype))

        def add(i: int) -> None:
            for part in runs[i]:
                rows = tiles.rows(part)
                dm = by_position((n2, rows.stop - rows.start, oc), dy.dtype, "winograd products")
                transform(part, dm, sums[i])
                if u is not None:
                    dv = by_position((*dm.shape[:2], window.c), dy.dtype, "winograd v")
                    _products.multiply(dm, u, dv)
                    tiles.transform_back(dv, dx, part)
                if dw is None:
                    continue
                into = dus[i]
                if part is not runs[i][0]:
                    into = scratch("winograd filters", into.shape, dy.dtype)
                _products.multiply_transposed(dm, v[:, rows], into)
                if part is not runs[i][0]:
                    dus[i] += into

        parallel(add, range(len(runs)))
        if db is not None:
            db[...] = sums.sum(axis=0)
        if dw is not None:
            parallel(lambda f: transform_filters_back(f, dus[:, :, f].sum(axis=0)), spans(oc, 64))

    def wide(images: slice, du: Array) -> None:
        """From dy[images] to dx[images], and to what these images add to du and db."""
        rows, parts = tiles.rows(images), tiles.parts(images, oc)
        v_span = v[:, rows]
        dm = by_position((n2, rows.stop - rows.start, oc), dy.dtype, "winograd products")
        dv = v_span
        if u is not None and not last_use:
            dv = by_position(v_span.shape, dy.dtype, "winograd v")
        sums = np.zeros((len(parts), oc), _exact.wide(dy.dtype))

        def transform_part(i: int) -> None:
            transform(parts[i], dm[:, tiles.rows(parts[i], images.start)], sums[i])

        def multiply(p: slice) -> None:
            if dw is not None:
                if images.start == 0:
                    np.matmul(dm[p].transpose(0, 2, 1), v_span[p], out=du[p])
                else:
                    du[p] += dm[p].transpose(0, 2, 1) @ v_span[p]
            if u is not None:
                _products.multiply(dm[p], u[p], dv[p])

        def transform_back(part: slice) -> None:
            tiles.transform_back(dv[:, tiles.rows(part, images.start)], dx, part)

        parallel_all((transform_part, range(len(parts))), *todo)
        todo.clear()
        if db is not None:
            db[...] += sums.sum(axis=0)
        parallel(multiply, spans(n2, 1))
        after: list[Work] = []
        if u is not None:
            after.append((transform_back, tiles.parts(images, window.c)))
        if dw is not None and images.stop == window.n:
            after.append((lambda f: transform_filters_back(f, du[:, f]), spans(oc, 64)))
        parallel_all(*after)

    if tiles.narrow:
        parallel_all(*todo)
        narrow()
    else:
        du = by_position((n2 if needs[1] else 0, oc, window.c), dy.dtype)
        for images in tiles.spans():
            wide(images, du)
    return dx, None if dw is None else dw.reshape(w.shape), db
