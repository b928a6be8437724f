"""Pooling: one number for each window of an image, channel by channel."""

from collections.abc import Callable
from typing import Any

import numpy as np

from gpucnn.autograd import Function
from gpucnn.device import Array, by_device
from gpucnn.errors import ShapeError
from gpucnn.ops import _pool2d_array, _pool2d_cuda
from gpucnn.ops.window import Padding, Size, Window
from gpucnn.tensor import Tensor
from gpucnn.threads import parallel, scratch, spans


def max_pool2d(
    x: Tensor,
    window: Size,
    stride: Size | None = None,
    padding: Padding = 0,
    ceil: bool = False,
) -> Tensor:
    """Keep the largest value of each window.

    x is (N, H, W, C); the result is (N, OH, OW, C) with
    OH = (H + top + bottom - window) // stride + 1.  Sizes are in pixels; stride None means
    window.  Padding is -infinity: it never wins.  With ceil the last window may hang over the
    edge.  On a tie the first element in row order takes the gradient.

    Raises ShapeError if a window is larger than the padded image, or sees padding alone.
    Source: Krizhevsky et al. 2012, section 3.4 (overlapping pooling).
    """
    return _MaxPool2d(max_window(x.shape, window, stride, padding, ceil))(x)


def max_window(
    shape: tuple[int, ...],
    window: Size,
    stride: Size | None = None,
    padding: Padding = 0,
    ceil: bool = False,
) -> Window:
    """The geometry of max_pool2d over images of `shape`; raises its errors."""
    return _geometry("max_pool2d", shape, window, stride, padding, ceil)


def avg_pool2d(
    x: Tensor,
    window: Size,
    stride: Size | None = None,
    padding: Padding = 0,
    ceil: bool = False,
    count_padding: bool = True,
) -> Tensor:
    """The mean of each window.

    Shapes are max_pool2d's.  Padding is zero; with count_padding it counts as pixels of the mean,
    without it the mean is over pixels of the image alone.  What ceil adds beyond the padding
    never counts.

    Raises ShapeError if a window is larger than the padded image, or sees padding alone.
    """
    geometry = _geometry("avg_pool2d", x.shape, window, stride, padding, ceil)
    bottom = right = 0
    if count_padding:  # what was asked for, without what ceil added
        asked = Window.of("avg_pool2d", x.shape, window, stride or window, padding)
        bottom, right = asked.bottom, asked.right
    return _AvgPool2d(geometry, count_padding, bottom, right)(x)


def global_avg_pool2d(x: Tensor) -> Tensor:
    """The mean of each channel over the whole image: (N, H, W, C) -> (N, C)."""
    if x.ndim != 4 or x.shape[1] * x.shape[2] == 0:
        raise ShapeError(f"global_avg_pool2d: expected images (N, H, W, C), got shape {x.shape}")
    return _GlobalAvgPool2d()(x)


def _geometry(
    op: str,
    shape: tuple[int, ...],
    window: Size,
    stride: Size | None,
    padding: Padding,
    ceil: bool,
) -> Window:
    v = Window.of(op, shape, window, window if stride is None else stride, padding, ceil=ceil)
    last_row, last_column = (v.oh - 1) * v.stride_h - v.top, (v.ow - 1) * v.stride_w - v.left
    if v.top >= v.kh or v.left >= v.kw or last_row >= v.h or last_column >= v.w:
        raise ShapeError(
            f"{op}: a window of {v.kh} x {v.kw} pixels sees padding alone\n"
            f"  x {shape}, padding {((v.top, v.bottom), (v.left, v.right))}; "
            "pad by less than the window"
        )
    return v


class _MaxPool2d(Function):
    name = "max_pool2d"

    def __init__(self, window: Window) -> None:
        self.window = window

    def forward(self, x: Array) -> Array:
        y, kept = _max_forward(x, self.window, self.needs[0])
        self.saved = kept
        return y

    def backward(self, dy: Array) -> Array:
        assert self.saved is not None
        return _max_backward(dy, self.saved, self.window)


class _AvgPool2d(Function):
    name = "avg_pool2d"

    def __init__(self, window: Window, count_padding: bool, bottom: int, right: int) -> None:
        self.window = window
        self.area = (count_padding, bottom, right)

    def forward(self, x: Array) -> Array:
        return _avg_forward(x, self.window, self.area)

    def backward(self, dy: Array) -> Array:
        return _avg_backward(dy, self.window, self.area)


class _GlobalAvgPool2d(Function):
    name = "global_avg_pool2d"

    def forward(self, x: Array) -> Array:
        self.shape = x.shape
        return _global_forward(x)

    def backward(self, dy: Array) -> Array:
        return _global_backward(dy, self.shape)


# --- NumPy: along the columns of a window, then along its rows, some images at a time ---

# Bytes of the images that are pooled at a time: with what is made of them, they stay in the cache.
_CHUNK_BYTES = 1 << 19


def _chunks(x: Array, v: Window) -> list[slice]:
    image = v.h * v.w * v.c * x.dtype.itemsize
    return list(spans(v.n, max(1, _CHUNK_BYTES // max(image, 1))))


def _padded_chunk(x: Array, v: Window, chunk: slice, value: float) -> Array:
    if not v.padded:
        return x[chunk]
    count = chunk.stop - chunk.start
    shape = (count, v.h + v.top + v.bottom, v.w + v.left + v.right, v.c)
    padded = scratch("pool padded", shape, x.dtype)
    padded[...] = value
    padded[:, v.top : v.top + v.h, v.left : v.left + v.w] = x[chunk]
    return padded


def _along(x: Array, axis: int, v: Window) -> list[Array]:
    """For each position inside the window along axis 1 or 2, the rows or columns of x there."""
    k, stride, outputs = ((v.kh, v.stride_h, v.oh), (v.kw, v.stride_w, v.ow))[axis - 1]
    before = (slice(None),) * axis
    return [x[(*before, slice(i, i + (outputs - 1) * stride + 1, stride))] for i in range(k)]


def _largest(candidates: list[Array], best: Array, winner: Array | None) -> None:
    """The largest candidate and, if asked for, the position of the first that is as large."""
    if winner is None:
        np.maximum(candidates[0], candidates[-1], out=best)
        for candidate in candidates[1:-1]:
            np.maximum(best, candidate, out=best)
        return
    if len(candidates) == 1:
        np.copyto(best, candidates[0])
        winner[...] = 0
        return
    np.greater(candidates[1], candidates[0], out=winner.view(bool))  # 1 where it wins: position 1
    np.maximum(candidates[0], candidates[1], out=best)
    wins = scratch("pool wins", best.shape, np.uint8)
    for i, candidate in enumerate(candidates[2:], 2):
        np.greater(candidate, best, out=wins.view(bool))
        np.maximum(candidate, best, out=best)
        np.multiply(wins, i, out=wins)
        np.maximum(winner, wins, out=winner)  # a later winner has a larger number


def _to_winner(d: Array, winner: Array, parts: list[Array], stride: int) -> None:
    """The adjoint of _largest: d to the part that won.

    Parts from `stride` on overlap those before them, which were set: they are added to.
    """
    mine = scratch("pool wins", d.shape, bool)
    product = scratch("pool product", d.shape, d.dtype)  # contiguous: ufuncs cast slowly in runs
    if len(parts) == 2 <= stride:
        np.multiply(d, winner.view(bool), out=product)
        np.copyto(parts[1], product)
        np.subtract(d, product, out=parts[0])
        return
    for i, part in enumerate(parts):
        np.equal(winner, i, out=mine)
        np.multiply(d, mine, out=product)
        if i < stride:
            np.copyto(part, product)
        else:
            part += product


def _max_forward_numpy(x: Array, v: Window, keep: bool) -> tuple[Array, tuple[Array, ...]]:
    if max(v.kh, v.kw) > 255:  # winners are counted in bytes
        y, (winner,) = _pool2d_array.max_forward(x, v, True)
        return y, (winner,)
    height = v.h + v.top + v.bottom
    y = np.empty((v.n, v.oh, v.ow, v.c), x.dtype)
    if keep:
        columns, rows = np.empty((v.n, height, v.ow, v.c), np.uint8), np.empty(y.shape, np.uint8)

    def pool(chunk: slice) -> None:
        shape = (chunk.stop - chunk.start, height, v.ow, v.c)
        best = scratch("pool rows", shape, x.dtype)
        padded = _padded_chunk(x, v, chunk, -np.inf)
        _largest(_along(padded, 2, v), best, columns[chunk] if keep else None)
        _largest(_along(best, 1, v), y[chunk], rows[chunk] if keep else None)

    parallel(pool, _chunks(x, v))
    return y, (columns, rows) if keep else ()


def _max_backward_numpy(dy: Array, kept: tuple[Array, ...], v: Window) -> Array:
    if len(kept) == 1:
        return _pool2d_array.max_backward(dy, kept, v)
    columns, rows = kept

    def spread(d: Array, chunk: slice, axis: int, parts: list[Array], stride: int) -> None:
        _to_winner(d, (rows, columns)[axis - 1][chunk], parts, stride)

    return _spread_numpy(dy, v, spread)


def _spread_numpy(
    dy: Array, v: Window, spread: Callable[[Array, slice, int, list[Array], int], None]
) -> Array:
    """dx from dy, along rows and then along columns by spread(d, chunk, axis, parts, stride).

    spread sets the parts before `stride`, which are apart, and adds to the others.
    """
    height, width = v.h + v.top + v.bottom, v.w + v.left + v.right
    dx = np.empty((v.n, v.h, v.w, v.c), dy.dtype)

    def unpool(chunk: slice) -> None:
        count = chunk.stop - chunk.start
        by_row = scratch("pool rows", (count, height, v.ow, v.c), dy.dtype)
        _clear_unset(by_row, 1, v)
        spread(dy[chunk], chunk, 1, _along(by_row, 1, v), v.stride_h)
        shape = (count, height, width, v.c)
        into = scratch("pool padded", shape, dy.dtype) if v.padded else dx[chunk]
        _clear_unset(into, 2, v)
        spread(by_row, chunk, 2, _along(into, 2, v), v.stride_w)
        if v.padded:
            dx[chunk] = into[:, v.top : v.top + v.h, v.left : v.left + v.w]

    parallel(unpool, _chunks(dy, v))
    return dx


def _clear_unset(into: Array, axis: int, v: Window) -> None:
    """Zero the rows or columns that no position before the stride sets."""
    k, stride, outputs = ((v.kh, v.stride_h, v.oh), (v.kw, v.stride_w, v.ow))[axis - 1]
    before = (slice(None),) * axis
    into[(*before, slice((outputs - 1) * stride + min(k, stride), None))] = 0
    for i in range(k, stride):
        into[(*before, slice(i, (outputs - 1) * stride, stride))] = 0


def _avg_forward_numpy(x: Array, v: Window, area: tuple[bool, int, int]) -> Array:
    y = np.empty((v.n, v.oh, v.ow, v.c), x.dtype)
    pixels = _pool2d_array.pixels(x, v, area)

    def total(parts: list[Array], into: Array) -> None:
        np.copyto(into, parts[0])
        for part in parts[1:]:
            into += part

    def pool(chunk: slice) -> None:
        shape = (chunk.stop - chunk.start, v.h + v.top + v.bottom, v.ow, v.c)
        by_row = scratch("pool rows", shape, x.dtype)
        total(_along(_padded_chunk(x, v, chunk, 0), 2, v), by_row)
        total(_along(by_row, 1, v), y[chunk])
        y[chunk] /= pixels

    parallel(pool, _chunks(x, v))
    return y


def _avg_backward_numpy(dy: Array, v: Window, area: tuple[bool, int, int]) -> Array:
    pixels = _pool2d_array.pixels(dy, v, area)

    def spread(d: Array, chunk: slice, axis: int, parts: list[Array], stride: int) -> None:
        share = d / pixels if axis == 1 else d
        for i, part in enumerate(parts):
            if i < stride:
                np.copyto(part, share)
            else:
                part += share

    return _spread_numpy(dy, v, spread)


_max_forward: Any = by_device(cpu=_max_forward_numpy, cuda=_pool2d_cuda.max_forward)
_max_backward: Any = by_device(cpu=_max_backward_numpy, cuda=_pool2d_cuda.max_backward)
_avg_forward: Any = by_device(cpu=_avg_forward_numpy, cuda=_pool2d_cuda.avg_forward)
_avg_backward: Any = by_device(cpu=_avg_backward_numpy, cuda=_pool2d_cuda.avg_backward)
_global_forward: Any = by_device(cpu=_pool2d_array.global_forward, cuda=_pool2d_cuda.global_forward)
_global_backward: Any = by_device(
    cpu=_pool2d_array.global_backward, cuda=_pool2d_cuda.global_backward
)
