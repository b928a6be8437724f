"""Pooling: one number for each window of an image, channel by channel."""

from typing import Any

from gpucnn.autograd import Function
from gpucnn.device import Array, by_device
from gpucnn.errors import ShapeError
from gpucnn.ops._exact import narrowed, widened
from gpucnn.ops.geometry import Padding, Size, Window
from gpucnn.ops.pool2d import cpu as _pool2d_numpy
from gpucnn.ops.pool2d import cuda as _pool2d_cuda
from gpucnn.ops.pool2d import portable as _pool2d_array
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
    edge.  On a tie the first element in row order takes the gradient; where all is -infinity that
    is the first pixel of the image.  A NaN wins over every number, and of several the last in row
    order takes the gradient, as in PyTorch.

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
    never counts.  Sums of float16 are float32's.

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
        return narrowed(_avg_forward(widened(x), self.window, self.area), x.dtype)

    def backward(self, dy: Array) -> Array:
        return narrowed(_avg_backward(widened(dy), self.window, self.area), dy.dtype)


class _GlobalAvgPool2d(Function):
    name = "global_avg_pool2d"

    def forward(self, x: Array) -> Array:
        self.shape = x.shape
        return narrowed(_global_forward(widened(x)), x.dtype)

    def backward(self, dy: Array) -> Array:
        return narrowed(_global_backward(widened(dy), self.shape), dy.dtype)


_max_forward: Any = by_device(cpu=_pool2d_numpy.max_forward, cuda=_pool2d_cuda.max_forward)
_max_backward: Any = by_device(cpu=_pool2d_numpy.max_backward, cuda=_pool2d_cuda.max_backward)
_avg_forward: Any = by_device(cpu=_pool2d_numpy.avg_forward, cuda=_pool2d_cuda.avg_forward)
_avg_backward: Any = by_device(cpu=_pool2d_numpy.avg_backward, cuda=_pool2d_cuda.avg_backward)
_global_forward: Any = by_device(cpu=_pool2d_numpy.global_forward, cuda=_pool2d_cuda.global_forward)
_global_backward: Any = by_device(
    cpu=_pool2d_array.global_backward, cuda=_pool2d_cuda.global_backward
)
