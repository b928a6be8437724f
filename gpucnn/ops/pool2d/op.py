"""Pooling: one number for each window of an image, channel by channel."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpucnn.autograd import Function, may_be_masked
from gpucnn.device import Array, by_device
from gpucnn.errors import ShapeError
from gpucnn.ops._exact import narrowed, widened
from gpucnn.ops._promotion import float_operand
from gpucnn.ops.elementwise import float_tensor
from gpucnn.ops.geometry import Geometry, Padding, Size
from gpucnn.ops.pool2d import cpu, cuda, portable
from gpucnn.ops.pool2d.portable import SavedMax
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
    x: Any,
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
    order takes the gradient, as in PyTorch.  float16 gradients of overlapping windows are summed in
    float32.

    Raises ShapeError if a window is larger than the padded image, or sees only padding; DtypeError
    unless x is floating-point.
    Source: Krizhevsky et al. 2012, section 3.4 (overlapping pooling).
    """
    x = float_tensor("max_pool2d", x)
    g = MaxPool(kernel_size, stride, padding, ceil_mode).geometry(x.shape)
    return _MaxPool2d(g, may_be_masked(x))(x)


def avg_pool2d(
    x: Any,
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

    Raises ShapeError if a window is larger than the padded image, or sees only padding; DtypeError
    unless x is floating-point.
    """
    x = float_tensor("avg_pool2d", x)
    g = _geometry("avg_pool2d", x.shape, kernel_size, stride, padding, ceil_mode)
    bottom = right = 0
    if count_include_pad:  # the padding asked for, without what ceil_mode added
        asked = Geometry.of("avg_pool2d", x.shape, kernel_size, stride or kernel_size, padding)
        bottom, right = asked.bottom, asked.right
    return _AvgPool2d(g, count_include_pad, bottom, right)(x)


def global_avg_pool2d(x: Any) -> Tensor:
    """The mean of each channel over the whole image: (N, H, W, C) -> (N, C).

    float16 is summed in float32.  Raises ShapeError unless x is images of at least one pixel,
    DtypeError unless they are floating-point.
    """
    x = float_tensor("global_avg_pool2d", x)
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

    def __init__(self, geometry: Geometry, after_relu: bool) -> None:
        self.geometry, self.keeps_zeros = geometry, after_relu

    def forward(self, x: Array) -> Array:
        y, winners = max_forward(x, self.geometry, self.needs[0])
        self.saved = (winners, y if self.keeps_zeros else None)
        return y

    def backward(self, dy: Array) -> Array:
        winners, y = self.saved
        factor = self.mask(0) if self.keeps_zeros else None
        if factor is None or self.masked:  # masked: by this pooling's y, which is 0 where x is
            return max_backward(dy, winners, None, 1.0)
        return max_backward(dy, winners, y, factor)


class _AvgPool2d(Function):
    name = "avg_pool2d"

    def __init__(
        self, geometry: Geometry, count_include_pad: bool, bottom: int, right: int
    ) -> None:
        self.geometry = geometry
        self.area = (count_include_pad, bottom, right)  # which padding counts: see portable.pixels

    def forward(self, x: Array) -> Array:
        return avg_forward(x, self.geometry, self.area)

    def backward(self, dy: Array) -> Array:
        return avg_backward(dy, self.geometry, self.area)


class _GlobalAvgPool2d(Function):
    name = "global_avg_pool2d"

    def forward(self, x: Array) -> Array:
        self.shape = x.shape
        return _global_forward(x)

    def backward(self, dy: Array) -> Array:
        return _global_backward(dy, self.shape)


# --- NumPy: half precision is summed in float32 ---


def _in_float32(function: Callable[..., Array]) -> Callable[..., Array]:
    """function(x, ...), computed in float32 and rounded to x's dtype if that is half precision."""

    @functools.wraps(function)
    def rounded(x: Array, *rest: Any) -> Array:
        return narrowed(function(widened(x), *rest), x.dtype)

    return rounded


def _max_forward_numpy(x: Array, g: Geometry, keep: bool) -> tuple[Array, SavedMax | None]:
    y, saved = cpu.max_forward(float_operand(x), g, keep)
    return narrowed(y, x.dtype), saved


def _max_backward_numpy(dy: Array, saved: SavedMax, y: Array | None, scale: float) -> Array:
    """dx; on the CPU nothing is masked, so y is None and scale is 1."""
    return narrowed(saved.backward(widened(dy)), dy.dtype)


max_forward: Any = by_device(cpu=_max_forward_numpy, cuda=cuda.max_forward)
max_backward: Any = by_device(cpu=_max_backward_numpy, cuda=cuda.max_backward)
avg_forward: Any = by_device(cpu=_in_float32(cpu.avg_forward), cuda=cuda.avg_forward)
avg_backward: Any = by_device(cpu=_in_float32(cpu.avg_backward), cuda=cuda.avg_backward)
_global_forward: Any = by_device(cpu=_in_float32(cpu.global_forward), cuda=cuda.global_forward)
_global_backward: Any = by_device(
    cpu=_in_float32(portable.global_backward), cuda=cuda.global_backward
)
