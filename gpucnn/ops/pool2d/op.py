"""Pooling: one number for each window of an image, channel by channel."""

from typing import Any

from gpucnn.autograd import Function
from gpucnn.device import Array, by_device
from gpucnn.errors import ShapeError
from gpucnn.ops._exact import narrowed, widened
from gpucnn.ops.geometry import Geometry, Padding, Size
from gpucnn.ops.pool2d import cpu as _pool2d_numpy
from gpucnn.ops.pool2d import cuda as _pool2d_cuda
from gpucnn.ops.pool2d import portable as _pool2d_array
from gpucnn.tensor import Tensor


def max_pool2d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
) -> Tensor:
    """Keep the largest value of each window.

    x is (N, H, W, C); the result is (N, OH, OW, C) with
    OH = (H + top + bottom - kernel_size) // stride + 1.  Sizes are in pixels; stride None means
    kernel_size.  Padding is -infinity: it never wins.  With ceil_mode the last window may hang over
    the edge.  On a tie the first element in row order takes the gradient; where all is -infinity
    that is the first pixel of the image.  A NaN wins over every number, and of several the last in
    row order takes the gradient, as in PyTorch.

    Raises ShapeError if a window is larger than the padded image, or sees padding alone.
    Source: Krizhevsky et al. 2012, section 3.4 (overlapping pooling).
    """
    return _MaxPool2d(max_window(x.shape, kernel_size, stride, padding, ceil_mode))(x)


def max_window(
    shape: tuple[int, ...],
    kernel_size: Size,
    stride: Size | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
) -> Geometry:
    """The geometry of max_pool2d over images of `shape`; raises its errors."""
    return _geometry("max_pool2d", shape, kernel_size, stride, padding, ceil_mode)


def avg_pool2d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """The mean of each window.

    Shapes are max_pool2d's.  Padding is zero; with count_include_pad it counts as pixels of the
    mean, without it the mean is over pixels of the image alone.  What ceil_mode adds beyond the
    padding never counts.  Sums of float16 are float32's.

    Raises ShapeError if a window is larger than the padded image, or sees padding alone.
    """
    geometry = _geometry("avg_pool2d", x.shape, kernel_size, stride, padding, ceil_mode)
    bottom = right = 0
    if count_include_pad:  # what was asked for, without what ceil_mode added
        asked = Geometry.of("avg_pool2d", x.shape, kernel_size, stride or kernel_size, padding)
        bottom, right = asked.bottom, asked.right
    return _AvgPool2d(geometry, count_include_pad, bottom, right)(x)


def global_avg_pool2d(x: Tensor) -> Tensor:
    """The mean of each channel over the whole image: (N, H, W, C) -> (N, C)."""
    if x.ndim != 4 or x.shape[1] * x.shape[2] == 0:
        raise ShapeError(f"global_avg_pool2d: expected images (N, H, W, C), got shape {x.shape}")
    return _GlobalAvgPool2d()(x)


def _geometry(
    op: str,
    shape: tuple[int, ...],
    kernel_size: Size,
    stride: Size | None,
    padding: Padding,
    ceil_mode: bool,
) -> Geometry:
    v = Geometry.of(
        op,
        shape,
        kernel_size,
        kernel_size if stride is None else stride,
        padding,
        ceil_mode=ceil_mode,
    )
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

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry

    def forward(self, x: Array) -> Array:
        y, kept = _max_forward(x, self.geometry, self.needs[0])
        self.saved = kept
        return y

    def backward(self, dy: Array) -> Array:
        assert self.saved is not None
        return _max_backward(dy, self.saved, self.geometry)


class _AvgPool2d(Function):
    name = "avg_pool2d"

    def __init__(
        self, geometry: Geometry, count_include_pad: bool, bottom: int, right: int
    ) -> None:
        self.geometry = geometry
        self.area = (count_include_pad, bottom, right)

    def forward(self, x: Array) -> Array:
        return narrowed(_avg_forward(widened(x), self.geometry, self.area), x.dtype)

    def backward(self, dy: Array) -> Array:
        return narrowed(_avg_backward(widened(dy), self.geometry, self.area), dy.dtype)


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
