"""Winograd's convolution where filters are dilated or see a group of channels alone, on NumPy.

With dilation d a filter sees every d-th row and column: pixels of one lattice, and the results
are a lattice too.  So the image is taken apart into its d * d lattices, which are images of their
own for a dense convolution (d = 2, one row of x):

    a b c d e f g h      ->      a c e g      and      b d f h

Groups are convolutions of their own as well: their channels are copied out, and each has its
filters.  Both take copies of x, y and their gradients; the plain sum copies each pixel for every
pixel of the filter, 9 times and more.
"""

from typing import Any

from gpucnn.cpu import empty, parallel, spans
from gpucnn.device import Array
from gpucnn.integers import ceil_div
from gpucnn.ops.conv2d import winograd as _winograd
from gpucnn.ops.conv2d.fusion import Epilogue
from gpucnn.ops.geometry import Geometry

Gradients = tuple[Array | None, Array | None, Array | None]

# Images that are taken apart or put together at a time.
_IMAGES = 4


def forward(
    x: Array,
    w: Array,
    b: Array | None,
    window: Geometry,
    m: int,
    epilogue: Epilogue,
    keep: bool,
) -> tuple[Any, ...]:
    """The convolution, handed to the epilogue part by part; what backward needs if `keep`."""
    if _dense(window):
        return _winograd.forward(x, w, b, window, m, epilogue, keep)
    lattices = _Lattices(window, len(w))
    kept, results = [], []
    for channels, filters in zip(lattices.channels, lattices.filters, strict=True):
        bias = None if b is None else b[filters]
        result = lattices.plain(x.dtype)
        taken = lattices.take(x[..., channels])
        kept.append(_winograd.forward(taken, w[filters], bias, lattices.window, m, result, keep))
        results.append(lattices.apart(result.y))

    def finish(images: slice) -> None:
        part = epilogue.room(images)
        for filters, result in zip(lattices.filters, results, strict=True):
            for own, there in _places(result[images], part, (0, 0)):
                part[there][..., filters] = result[images][own]
        epilogue.finish(part, images, keep)

    parallel(finish, spans(window.n, _IMAGES))
    return tuple(kept)


def backward(
    dy: Array,
    kept: Any,
    w_shape: tuple[int, ...],
    window: Geometry,
    m: int,
    needs: tuple[bool, ...],
    last_use: bool,
    epilogue: Epilogue,
) -> Gradients:
    """dx, dw and db, as far as needed."""
    if _dense(window):
        return _winograd.backward(dy, kept, window, m, needs, last_use, epilogue)
    lattices = _Lattices(window, w_shape[0])
    plain = lattices.plain(dy.dtype)
    gradients = [empty(plain.y.shape, plain.y.dtype) for _ in lattices.filters]

    def take(images: slice) -> None:
        part = epilogue.gradient(dy, images)
        for filters, gradient in zip(lattices.filters, gradients, strict=True):
            _take(part[..., filters], lattices.apart(gradient)[images], (0, 0))

    parallel(take, spans(window.n, _IMAGES))
    dx = empty((window.n, window.h, window.w, window.c), dy.dtype) if needs[0] else None
    dw = empty(w_shape, dy.dtype) if needs[1] else None
    db = empty(w_shape[:1], dy.dtype) if needs[2] else None
    for group, filters in enumerate(lattices.filters):
        found = _winograd.backward(
            gradients[group], kept[group], lattices.window, m, needs, last_use, plain
        )
        if dx is not None:
            lattices.put(found[0], dx[..., lattices.channels[group]])
        if dw is not None:
            dw[filters] = found[1]
        if db is not None:
            db[filters] = found[2]
    return dx, dw, db


def _dense(v: Geometry) -> bool:
    return v.dilation_h == v.dilation_w == v.groups == 1


class _Lattices:
    """How images are taken apart: lattice (i, j) of image n is image (n * DH + i) * DW + j.

    All lattices have the size of the largest, the others zeros behind.  Padding that DH does not
    divide leaves some of them a zero more in front.  .window is the dense convolution of one
    group; .channels and .filters are those of each group.
    """

    def __init__(self, v: Geometry, filters: int) -> None:
        self.v = v
        (top, above), (left, beside) = divmod(v.top, v.dilation_h), divmod(v.left, v.dilation_w)
        self.before = (above, beside)  # zeros in front of the image before it is taken apart
        h, w = ceil_div(v.h + above, v.dilation_h), ceil_div(v.w + beside, v.dilation_w)
        oh, ow = ceil_div(v.oh, v.dilation_h), ceil_div(v.ow, v.dilation_w)
        n, depth = v.n * v.dilation_h * v.dilation_w, v.c // v.groups
        bottom, right = oh + v.kh - 1 - h - top, ow + v.kw - 1 - w - left
        self.window = Geometry(n, h, w, depth, v.kh, v.kw, oh, ow, 1, 1, top, bottom, left, right)
        self.channels = list(spans(v.c, depth))
        self.filters = list(spans(filters, filters // v.groups))

    def plain(self, dtype: Any) -> Epilogue:
        """Nothing follows the convolution of a group but its being put together."""
        filters = self.filters[0].stop
        return Epilogue(self.window, filters, dtype, False, None)

    def apart(self, lattices: Array) -> Array:
        """As (N, DH, DW, H, W, C), by the image that they are of."""
        v = self.v
        return lattices.reshape(v.n, v.dilation_h, v.dilation_w, *lattices.shape[1:])

    def take(self, x: Array) -> Array:
        """The lattices of x (N, H, W, C of a group)."""
        v = self.window
        lattices = empty((v.n, v.h, v.w, v.c), x.dtype)
        apart = self.apart(lattices)
        parallel(
            lambda images: _take(x[images], apart[images], self.before), spans(len(x), _IMAGES)
        )
        return lattices

    def put(self, lattices: Array, dx: Array) -> None:
        """The adjoint of take: set dx, of which every pixel is on one lattice."""
        apart = self.apart(lattices)

        def put(images: slice) -> None:
            for own, there in _places(apart[images], dx[images], self.before):
                dx[images][there] = apart[images][own]

        parallel(put, spans(len(dx), _IMAGES))


def _take(image: Array, lattices: Array, before: tuple[int, int]) -> None:
    """Set lattices (N, DH, DW, h, w, C) from image (N, H, W, C)."""
    for own, there in _places(lattices, image, before):
        every, i, j, rows, columns = own
        lattice = lattices[every, i, j]
        lattice[:, : rows.start] = 0
        lattice[:, rows.stop :] = 0
        lattice[:, rows, : columns.start] = 0
        lattice[:, rows, columns.stop :] = 0
        lattice[:, rows, columns] = image[there]


def _places(
    lattices: Array, image: Array, before: tuple[int, int]
) -> list[tuple[tuple[Any, ...], tuple[Any, ...]]]:
    """For each lattice the indices of its pixels that lie on the image, and theirs there."""
    _, down, across, high, wide, _ = lattices.shape
    places, every = [], slice(None)
    for i in range(down):
        rows = _meet(i - before[0], down, high, image.shape[1])
        for j in range(across):
            columns = _meet(j - before[1], across, wide, image.shape[2])
            places.append(((every, i, j, rows[0], columns[0]), (every, rows[1], columns[1])))
    return places


def _meet(first: int, step: int, count: int, size: int) -> tuple[slice, slice]:
    """Which of the pixels first, first + step, ... (`count` of them) are among 0 .. size - 1;
    and those pixels."""
    low = min(max(0, -(first // step)), count)
    high = max(low, min(count, -((first - size) // step)))
    start = max(first + low * step, 0)
    return slice(low, high), slice(start, start + (high - low) * step, step)
