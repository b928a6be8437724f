"""Pooling: one number for each window of an image, channel by channel."""

from dataclasses import dataclass
from typing import Any

from gpucnn.autograd import Function
from gpucnn.device import Array, by_device
from gpucnn.errors import ShapeError
from gpucnn.ops._exact import narrowed, widened
from gpucnn.ops.geometry import Geometry, Padding, Size
from gpucnn.ops.pool2d import cpu, cuda, portable
from gpucnn.tensor import Tensor


@dataclass(frozen=True)
class MaxPool:
    """The arguments of max_pool2d, for an op that pools its own result."""

    kernel_size: Size
    stride: Size | None = None
    padding: Padding = 0
    ceil_mode: bool = False

    def geometry(self, shape: tuple[int, ...]) -> Geometry:
        """The windows over images of `shape`; raises max_pool2d's errors."""
        return _geometry(
            "max_pool2d", shape, self.kernel_size, self.stride, self.padding, self.ceil_mode
        )


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
    kernel_size.  Padding is -infinity, so it never wins.  With ceil_mode the last window may extend
    past the edge.

    On a tie the first element in row order takes the gradient.  In a window of only -infinity that
    is the first pixel on the image.  A NaN wins over every number; of several, the last in row
    order takes the gradient, as in PyTorch.

    Raises ShapeError if a window is larger than the padded image, or sees only padding.
    Source: Krizhevsky et al. 2012, section 3.4 (overlapping pooling).
    """
    return _MaxPool2d(MaxPool(kernel_size, stride, padding, ceil_mode).geometry(x.shape))(x)


def avg_pool2d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """The mean of each window.

    x is (N, H, W, C); the result is (N, OH, OW, C) with OH and OW as in max_pool2d.  Padding is
    zero; with count_include_pad it counts as pixels of the mean, without it the mean is only over
    pixels of the image.  What ceil_mode adds beyond the padding never counts.  float16 is summed in
    float32.

    Raises ShapeError if a window is larger than the padded image, or sees only padding.
    """
    g = _geometry("avg_pool2d", x.shape, kernel_size, stride, padding, ceil_mode)
    bottom = right = 0
    if count_include_pad:  # the padding asked for, without what ceil_mode added
        asked = Geometry.of("avg_pool2d", x.shape, kernel_size, stride or kernel_size, padding)
        bottom, right = asked.bottom, asked.right
    return _AvgPool2d(g, count_include_pad, bottom, right)(x)


def global_avg_pool2d(x: Tensor) -> Tensor:
    """The mean of each channel over the whole image: (N, H, W, C) -> (N, C).

    float16 is summed in float32.  Raises ShapeError unless x is images of at least one pixel.
    """
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
    g = Geometry.of(
        op,
        shape,
        kernel_size,
        kernel_size if stride is None else stride,
        padding,
        ceil_mode=ceil_mode,
    )
    last_row, last_column = (g.oh - 1) * g.stride_h - g.top, (g.ow - 1) * g.stride_w - g.left
    if g.top >= g.kh or g.left >= g.kw or last_row >= g.h or last_column >= g.w:
        raise ShapeError(
            f"{op}: a window of {g.kh} x {g.kw} pixels sees only padding\n"
            f"  x {shape}, padding {((g.top, g.bottom), (g.left, g.right))}; "
            "pad by less than the window"
        )
    return g


class _MaxPool2d(Function):
    name = "max_pool2d"

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry

    def forward(self, x: Array) -> Array:
        y, self.saved = max_forward(x, self.geometry, self.needs[0])
        return y

    def backward(self, dy: Array) -> Array:
        return self.saved.backward(dy)


class _AvgPool2d(Function):
    name = "avg_pool2d"

    def __init__(
        self, geometry: Geometry, count_include_pad: bool, bottom: int, right: int
    ) -> None:
        self.geometry = geometry
        self.area = (count_include_pad, bottom, right)  # which padding counts: see portable.pixels

    def forward(self, x: Array) -> Array:
        return narrowed(avg_forward(widened(x), self.geometry, self.area), x.dtype)

    def backward(self, dy: Array) -> Array:
        return narrowed(avg_backward(widened(dy), self.geometry, self.area), dy.dtype)


class _GlobalAvgPool2d(Function):
    name = "global_avg_pool2d"

    def forward(self, x: Array) -> Array:
        self.shape = x.shape
        return narrowed(_global_forward(widened(x)), x.dtype)

    def backward(self, dy: Array) -> Array:
        return narrowed(_global_backward(widened(dy), self.shape), dy.dtype)


max_forward: Any = by_device(cpu=cpu.max_forward, cuda=cuda.max_forward)
avg_forward: Any = by_device(cpu=cpu.avg_forward, cuda=cuda.avg_forward)
avg_backward: Any = by_device(cpu=cpu.avg_backward, cuda=cuda.avg_backward)
_global_forward: Any = by_device(cpu=cpu.global_forward, cuda=cuda.global_forward)
_global_backward: Any = by_device(cpu=portable.global_backward, cuda=cuda.global_backward)
