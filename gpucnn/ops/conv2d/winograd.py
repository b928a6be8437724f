"""The Winograd engine F(m x m, r x r) on NumPy: stride 1, no dilation, no groups.

An m x m tile of the result depends on an n x n tile of the image, n = m + r - 1.  Transformed,

    y = AT [ (G weight GT) * (BT d B) ] A          (* element by element)

so that a filter costs n * n multiplications per tile, and the plain sum m * m * r * r: 36 instead
of 144 for m = 4, r = 3.  Summed over channels, each of the n * n positions is one matrix
product.  All three transforms are linear, so both 1-D passes are one matrix, and the backward pass
is the exact adjoint: every matrix transposed, in the opposite order.

    V = KB d        (n * n, tiles, C)     KB = kron(BT, BT)   (n * n, n * n)
    U = KG weight   (n * n, OC, C)        KG = kron(G, G)     (n * n, r * r)
    M[p] = V[p] U[p]^T  for every position p: (tiles, OC)
    y = KA M        (tiles, m * m, OC)    KA = kron(AT, AT)   (m * m, n * n)

A transform is one product for each tile, and writes its result directly where the products of each
position read it: BLAS accepts rows of C at any constant stride, so no tile is transposed in memory,
and V, U and M are contiguous where most of the time goes.  The filters are transposed before their
transform: then both V U^T in the forward pass and dM U in the backward pass are products of
matrices without a transpose, which cpu/blas.py speeds up.

In images of at most two tiles by two, every tile is cut by an edge.  There KB is shortened to the
pixels that are on the image, which are multiplied in place, without being gathered.

Source: Lavin and Gray 2015.
"""

from dataclasses import dataclass

import numpy as np

from gpucnn.cpu import Work, blas, empty, parallel, parallel_all, scratch, spans
from gpucnn.device import Array
from gpucnn.ops import _exact
from gpucnn.ops.conv2d import winograd_filters
from gpucnn.ops.conv2d.engine import Cache, Gradients
from gpucnn.ops.conv2d.fusion import Epilogue
from gpucnn.ops.conv2d.winograd_tiles import Tiles, by_position
from gpucnn.ops.geometry import Geometry

# A narrow layer's dU is summed in this many parts.
_SUM_PARTS = 8


@dataclass(frozen=True)
class Winograd:
    """The engine: see engine.Engine.  `tile` is m, 2 or 4."""

    tile: int

    def forward(
        self,
        x: Array,
        weight: Array,
        bias: Array | None,
        g: Geometry,
        epilogue: Epilogue,
        keep: bool,
        cache: Cache | None,
    ) -> "SavedWinograd | None":
        m, oc = self.tile, len(weight)
        epilogue.fuse_pool((m, m))
        clip = epilogue.fuse_relu()
        tiles = Tiles(g, m, oc, x.dtype, epilogue.pool_window)
        n2 = len(tiles.kg)
        ka = tiles.ka[:, :n2] if bias is None else tiles.ka
        todo: list[Work] = []
        if keep:
            winograd_filters.forget(cache, tiles.kg)
            u_t, of_filters = winograd_filters.transposed(weight, tiles.kg)
            todo.append(of_filters)
        else:
            u_t = winograd_filters.cached(weight, tiles.kg, cache)
        every = g.n * tiles.per_image
        v_saved = by_position((n2, every, g.c), x.dtype) if keep else None
        parts = tiles.parts(slice(0, g.n), oc) if tiles.narrow else []
        positions = list(spans(n2, n2 if len(parts) > 1 else 1))  # many parts: all at once in each

        def convolve(images: slice) -> None:
            rows = tiles.rows(images)
            count = rows.stop - rows.start
            if v_saved is None:
                v = by_position((n2, count, g.c), x.dtype, "winograd v")
            else:
                v = v_saved[:, rows]
            products = by_position((ka.shape[1], count, oc), x.dtype, "winograd products")

            def transform(part: slice) -> None:
                tiles.transform(x, part, v[:, tiles.rows(part, images.start)])

            def multiply(positions: slice) -> None:
                blas.multiply(v[positions], u_t[positions], products[positions])

            def transform_back(part: slice) -> None:
                rows = tiles.rows(part, images.start)
                if bias is not None:
                    products[n2, rows] = bias
                of_part = products[:, rows].transpose(1, 0, 2)
                buffer = scratch("winograd tiles", (len(of_part), len(ka), oc), x.dtype)
                result = np.matmul(ka, of_part, out=buffer)
                if epilogue.pool_by_offset is not None:
                    by_offset = tiles.by_offset(result)
                    result = scratch("winograd pooled", by_offset.shape[2:], x.dtype)
                    epilogue.pool_by_offset.pool(by_offset, result, part.start, keep, False)
                y = epilogue.output_buffer(part)
                tiles.scatter(result, y, clip)
                epilogue.finish(y, part, keep)

            parallel_all((transform, tiles.parts(images, g.c)), *todo)
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
        return None if v_saved is None else SavedWinograd(v_saved, weight, g, m, epilogue)


@dataclass
class SavedWinograd:
    """What Winograd.forward saves for the backward pass."""

    v: Array  # V (n * n, tiles, C)
    weight: Array
    g: Geometry
    tile: int
    epilogue: Epilogue

    def backward(self, dy: Array, needs: tuple[bool, ...], last_use: bool) -> Gradients:
        """As engine.Saved.  dM = KA^T dy serves dx and dweight; with last_use, dV overwrites V."""
        v, weight, g, epilogue = self.v, self.weight, self.g, self.epilogue
        dy = np.ascontiguousarray(dy)
        oc, r = weight.shape[:2]
        tiles = Tiles(g, self.tile, oc, dy.dtype, epilogue.pool_window)
        kg, n2 = tiles.kg, len(tiles.kg)
        ka = tiles.ka[:, :n2]
        dx = empty((g.n, g.h, g.w, g.c), dy.dtype) if needs[0] else None
        u, todo = None, []
        if needs[0]:
            u, of_filters = winograd_filters.natural(weight, kg)
            todo.append(of_filters)
        dweight = empty((oc, r * r, g.c), dy.dtype) if needs[1] else None
        dbias = np.zeros(oc, dy.dtype) if needs[2] else None

        def transform(part: slice, dm: Array, total: Array) -> None:
            """Set dm to dM of these images, and add the sum of their dy to total."""
            dy_tiles = tiles.gather_result(epilogue.gradient(dy, part))
            if dbias is not None:
                total += _exact.add_rows(dy_tiles.reshape(-1, oc))
            if epilogue.pool_by_offset is not None:
                pooled = dy_tiles.reshape(len(dy_tiles), -1)
                dy_tiles = scratch("winograd by offset", (len(pooled), len(ka), oc), dy.dtype)
                epilogue.pool_by_offset.unpool(pooled, part.start, tiles.by_offset(dy_tiles))
            np.matmul(ka.T, dy_tiles, out=dm.transpose(1, 0, 2))

        def transform_filters_back(filters: slice, du: Array) -> None:
            assert dweight is not None
            np.matmul(kg.T, du.transpose(1, 0, 2), out=dweight[filters])

        def backward_narrow() -> None:
            """Process each run of parts in one thread, in image order, with its own sum."""
            parts = tiles.parts(slice(0, g.n), oc)
            runs = [parts[i::_SUM_PARTS] for i in range(min(_SUM_PARTS, len(parts)))]
            dus = empty((len(runs) if needs[1] else 0, n2, oc, g.c), dy.dtype)
            sums = np.zeros((len(runs), oc), _exact.wide(dy.dtype))

            def add(i: int) -> None:
                for part in runs[i]:
                    rows = tiles.rows(part)
                    dm = by_position(
                        (n2, rows.stop - rows.start, oc), dy.dtype, "winograd products"
                    )
                    transform(part, dm, sums[i])
                    if u is not None:
                        dv = by_position((*dm.shape[:2], g.c), dy.dtype, "winograd v")
                        blas.multiply(dm, u, dv)
                        tiles.transform_back(dv, dx, part)
                    if dweight is None:
                        continue
                    into = dus[i]
                    if part is not runs[i][0]:
                        into = scratch("winograd filters", into.shape, dy.dtype)
                    blas.multiply_transposed(dm, v[:, rows], into)
                    if part is not runs[i][0]:
                        dus[i] += into

            parallel(add, range(len(runs)))
            if dbias is not None:
                dbias[...] = sums.sum(axis=0)
            if dweight is not None:
                parallel(
                    lambda f: transform_filters_back(f, dus[:, :, f].sum(axis=0)), spans(oc, 64)
                )

        def backward_wide(images: slice, du: Array) -> None:
            """Set dx[images] from dy[images], and add these images' share to du and dbias."""
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
                if dweight is not None:
                    if images.start == 0:
                        np.matmul(dm[p].transpose(0, 2, 1), v_span[p], out=du[p])
                    else:
                        du[p] += dm[p].transpose(0, 2, 1) @ v_span[p]
                if u is not None:
                    blas.multiply(dm[p], u[p], dv[p])

            def transform_back(part: slice) -> None:
                tiles.transform_back(dv[:, tiles.rows(part, images.start)], dx, part)

            parallel_all((transform_part, range(len(parts))), *todo)
            todo.clear()
            if dbias is not None:
                dbias[...] += sums.sum(axis=0)
            parallel(multiply, spans(n2, 1))
            after: list[Work] = []
            if u is not None:
                after.append((transform_back, tiles.parts(images, g.c)))
            if dweight is not None and images.stop == g.n:
                after.append((lambda f: transform_filters_back(f, du[:, f]), spans(oc, 64)))
            parallel_all(*after)

        if tiles.narrow:
            parallel_all(*todo)
            backward_narrow()
        else:
            du = by_position((n2 if needs[1] else 0, oc, g.c), dy.dtype)
            for images in tiles.spans():
                backward_wide(images, du)
        return dx, None if dweight is None else dweight.reshape(weight.shape), dbias
