"""Pooling: one number for each window of an image, channel by channel."""

from typing import Any

import numpy as np

from gpucnn import cuda
from gpucnn.autograd import Function
from gpucnn.device import Array, array_module, by_device
from gpucnn.errors import ShapeError
from gpucnn.ops.window import Padding, Size, Window
from gpucnn.tensor import Tensor


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
    geometry = _geometry("max_pool2d", x, window, stride, padding, ceil)
    return _MaxPool2d(geometry)(x)


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
    geometry = _geometry("avg_pool2d", x, window, stride, padding, ceil)
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
    op: str, x: Tensor, window: Size, stride: Size | None, padding: Padding, ceil: bool
) -> Window:
    v = Window.of(op, x.shape, window, window if stride is None else stride, padding, ceil=ceil)
    last_row, last_column = (v.oh - 1) * v.stride_h - v.top, (v.ow - 1) * v.stride_w - v.left
    if v.top >= v.kh or v.left >= v.kw or last_row >= v.h or last_column >= v.w:
        raise ShapeError(
            f"{op}: a window of {v.kh} x {v.kw} pixels sees padding alone\n"
            f"  x {x.shape}, padding {((v.top, v.bottom), (v.left, v.right))}; "
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


# --- any array module: one pass over the image for each position inside the window ---


def _padded(x: Array, v: Window, value: float) -> Array:
    if not v.padded:
        return x
    xp = array_module(x)
    shape = (v.n, v.h + v.top + v.bottom, v.w + v.left + v.right, v.c)
    padded = xp.full(shape, value, x.dtype)
    padded[:, v.top : v.top + v.h, v.left : v.left + v.w] = x
    return padded


def _cropped(dx: Array, v: Window) -> Array:
    if not v.padded:
        return dx
    return array_module(dx).ascontiguousarray(dx[:, v.top : v.top + v.h, v.left : v.left + v.w])


def _positions(v: Window) -> list[tuple[slice, slice]]:
    """For each position inside the window, in row order, the pixels of all windows there."""
    return [
        (
            slice(r, r + (v.oh - 1) * v.stride_h + 1, v.stride_h),
            slice(s, s + (v.ow - 1) * v.stride_w + 1, v.stride_w),
        )
        for r in range(v.kh)
        for s in range(v.kw)
    ]


def _max_forward_array(x: Array, v: Window, keep: bool) -> tuple[Array, tuple[Array, ...]]:
    xp = array_module(x)
    padded = _padded(x, v, -xp.inf)
    y = xp.full((v.n, v.oh, v.ow, v.c), -xp.inf, x.dtype)
    winner = xp.zeros(y.shape, xp.int16 if v.kh * v.kw < 2**15 else xp.int32)
    for i, (rows, columns) in enumerate(_positions(v)):
        candidate = padded[:, rows, columns]
        winner[candidate > y] = i
        y = xp.maximum(y, candidate)
    return y, (winner,) if keep else ()


def _max_backward_array(dy: Array, kept: tuple[Array, ...], v: Window) -> Array:
    xp, (winner,) = array_module(dy), kept
    dx = xp.zeros((v.n, v.h + v.top + v.bottom, v.w + v.left + v.right, v.c), dy.dtype)
    for i, (rows, columns) in enumerate(_positions(v)):
        dx[:, rows, columns] += dy * (winner == i)
    return _cropped(dx, v)


def _pixels(x: Array, v: Window, area: tuple[bool, int, int]) -> Array:
    """How many pixels the mean of each window is over: (OH, OW, 1)."""
    xp = array_module(x)
    count_padding, bottom, right = area
    counts = []
    for size, k, stride, outputs, before, after in (
        (v.h, v.kh, v.stride_h, v.oh, v.top, bottom),
        (v.w, v.kw, v.stride_w, v.ow, v.left, right),
    ):
        starts = xp.arange(outputs) * stride - before
        first, last = (-before, size + after) if count_padding else (0, size)
        counts.append(xp.minimum(starts + k, last) - xp.maximum(starts, first))
    return (counts[0][:, None, None] * counts[1][:, None]).astype(x.dtype)


def _avg_forward_array(x: Array, v: Window, area: tuple[bool, int, int]) -> Array:
    xp = array_module(x)
    padded = _padded(x, v, 0)
    y = xp.zeros((v.n, v.oh, v.ow, v.c), x.dtype)
    for rows, columns in _positions(v):
        y += padded[:, rows, columns]
    y /= _pixels(x, v, area)
    return y


def _avg_backward_array(dy: Array, v: Window, area: tuple[bool, int, int]) -> Array:
    xp = array_module(dy)
    share = dy / _pixels(dy, v, area)
    dx = xp.zeros((v.n, v.h + v.top + v.bottom, v.w + v.left + v.right, v.c), dy.dtype)
    for rows, columns in _positions(v):
        dx[:, rows, columns] += share
    return _cropped(dx, v)


def _global_forward_array(x: Array) -> Array:
    return x.mean(axis=(1, 2), dtype=x.dtype)


def _global_backward_array(dy: Array, shape: tuple[int, ...]) -> Array:
    xp, (_, h, w, _) = array_module(dy), shape
    return xp.ascontiguousarray(
        xp.broadcast_to((dy / dy.dtype.type(h * w))[:, None, None, :], shape)
    )


# --- NumPy ---


def _max_forward_numpy(x: Array, v: Window, keep: bool) -> tuple[Array, tuple[Array, ...]]:
    return _max_forward_array(x, v, keep)


def _max_backward_numpy(dy: Array, kept: tuple[Array, ...], v: Window) -> Array:
    return _max_backward_array(dy, kept, v)


def _avg_forward_numpy(x: Array, v: Window, area: tuple[bool, int, int]) -> Array:
    return _avg_forward_array(x, v, area)


def _avg_backward_numpy(dy: Array, v: Window, area: tuple[bool, int, int]) -> Array:
    return _avg_backward_array(dy, v, area)


# --- CUDA ---

_BLOCK = 256
_ROWS = 65535  # of a grid: the kernels go round if there are more images


def _has_kernel(x: Array, v: Window) -> bool:
    """Whether the kernels take this: float32, and offsets inside an image have 31 bits."""
    return x.dtype == np.float32 and max(v.h * v.w, v.oh * v.ow) * v.c < 2**31


def _grid(pixels: int, v: Window) -> tuple[int, int]:
    return -(-pixels * v.c // _BLOCK), min(v.n, _ROWS)


def _max_forward_cuda(x: Array, v: Window, keep: bool) -> tuple[Array, tuple[Array, ...]]:
    if not _has_kernel(x, v):
        return _max_forward_array(x, v, keep)
    xp = array_module(x)
    y = xp.empty((v.n, v.oh, v.ow, v.c), np.float32)
    argmax = xp.empty(y.shape, np.int32) if keep else None
    cuda.launch(
        "max_pool2d_forward",
        _grid(v.oh * v.ow, v),
        _BLOCK,
        xp.ascontiguousarray(x),  # (N, H, W, C)
        y,  # (N, OH, OW, C)
        argmax,  # (N, OH, OW, C) int32: position of the winner inside its window, or None
        v,
    )
    return y, () if argmax is None else (argmax,)


def _max_backward_cuda(dy: Array, kept: tuple[Array, ...], v: Window) -> Array:
    (argmax,) = kept
    if not _has_kernel(dy, v):
        return _max_backward_array(dy, kept, v)
    xp = array_module(dy)
    dx = xp.empty((v.n, v.h, v.w, v.c), np.float32)
    cuda.launch(
        "max_pool2d_backward",
        _grid(v.h * v.w, v),
        _BLOCK,
        xp.ascontiguousarray(dy),  # (N, OH, OW, C)
        argmax,  # (N, OH, OW, C) int32
        dx,  # (N, H, W, C)
        v,
    )
    return dx


def _avg_forward_cuda(x: Array, v: Window, area: tuple[bool, int, int]) -> Array:
    if not _has_kernel(x, v):
        return _avg_forward_array(x, v, area)
    xp = array_module(x)
    y = xp.empty((v.n, v.oh, v.ow, v.c), np.float32)
    cuda.launch(
        "avg_pool2d_forward",
        _grid(v.oh * v.ow, v),
        _BLOCK,
        xp.ascontiguousarray(x),  # (N, H, W, C)
        y,  # (N, OH, OW, C)
        v,
        *area,
    )
    return y


def _avg_backward_cuda(dy: Array, v: Window, area: tuple[bool, int, int]) -> Array:
    if not _has_kernel(dy, v):
        return _avg_backward_array(dy, v, area)
    xp = array_module(dy)
    dx = xp.empty((v.n, v.h, v.w, v.c), np.float32)
    cuda.launch(
        "avg_pool2d_backward",
        _grid(v.h * v.w, v),
        _BLOCK,
        xp.ascontiguousarray(dy),  # (N, OH, OW, C)
        dx,  # (N, H, W, C)
        v,
        *area,
    )
    return dx


def _global_forward_cuda(x: Array) -> Array:
    """One window as large as the image."""
    v = Window.of("global_avg_pool2d", x.shape, x.shape[1:3], 1, 0)
    return _avg_forward_cuda(x, v, (False, 0, 0)).reshape(v.n, v.c)


def _global_backward_cuda(dy: Array, shape: tuple[int, ...]) -> Array:
    v = Window.of("global_avg_pool2d", shape, shape[1:3], 1, 0)
    return _avg_backward_cuda(dy.reshape(v.n, 1, 1, v.c), v, (False, 0, 0))


_max_forward: Any = by_device(cpu=_max_forward_numpy, cuda=_max_forward_cuda)
_max_backward: Any = by_device(cpu=_max_backward_numpy, cuda=_max_backward_cuda)
_avg_forward: Any = by_device(cpu=_avg_forward_numpy, cuda=_avg_forward_cuda)
_avg_backward: Any = by_device(cpu=_avg_backward_numpy, cuda=_avg_backward_cuda)
_global_forward: Any = by_device(cpu=_global_forward_array, cuda=_global_forward_cuda)
_global_backward: Any = by_device(cpu=_global_backward_array, cuda=_global_backward_cuda)
