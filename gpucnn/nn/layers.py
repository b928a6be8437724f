"""Convolution, linear, pooling, dropout and shape layers.

Each holds the parameters and settings of one op in gpucnn.ops and calls it; the op's docstring has
the formula and the edge cases.
"""

import math
from typing import Any

import numpy as np

from gpucnn import ops
from gpucnn.errors import ArgumentError
from gpucnn.nn import init
from gpucnn.nn.module import Module
from gpucnn.nn.parameter import Parameter
from gpucnn.ops.geometry import Geometry, Padding, Size
from gpucnn.random import default_generator
from gpucnn.tensor import Tensor


def check_positive(layer: str, **sizes: Any) -> None:
    """Raise ArgumentError unless each of the named sizes is an int of at least 1."""
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ArgumentError(f"{layer}: {name} must be a positive int, got {value!r}")


class Conv2d(Module):
    """Convolution (cross-correlation) of images: ops.conv2d.

    (N, H, W, in_channels) to (N, OH, OW, out_channels), with
    OH = (H + top + bottom - dilation * (KH - 1) - 1) // stride + 1, and OW likewise.  kernel_size,
    stride and dilation are an int or a pair (vertical, horizontal), in pixels.  padding is an int,
    a pair, ((top, bottom), (left, right)), "valid" (none), or "same": OH is H / stride, rounded up.

    weight is (out_channels, KH, KW, in_channels / groups).  bias is (out_channels,), or None with
    bias=False.  weight_init and bias_init are called with a shape and a generator; generator None
    means the default one.

    Raises ArgumentError for sizes below 1, or if groups does not divide both channel counts; when
    called, ShapeError for images with another number of channels or too small for the kernel.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Padding = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        weight_init: init.Initializer = init.kaiming_normal,
        bias_init: init.Initializer = init.zeros,
        generator: np.random.Generator | None = None,
    ) -> None:
        check_positive("Conv2d", in_channels=in_channels, out_channels=out_channels, groups=groups)
        if in_channels % groups or out_channels % groups:
            raise ArgumentError(
                f"Conv2d: groups={groups} must divide in_channels={in_channels} "
                f"and out_channels={out_channels}"
            )
        kh, kw = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        check_positive("Conv2d", kernel_height=kh, kernel_width=kw)
        generator = generator or default_generator()
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, (kh, kw)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.weight = Parameter(
            weight_init((out_channels, kh, kw, in_channels // groups), generator)
        )
        self.bias = Parameter(bias_init((out_channels,), generator)) if bias else None

    def forward(self, x: Tensor, relu: bool = False, pool: "MaxPool2d | None" = None) -> Tensor:
        """relu and pool fuse the ReLU and the MaxPool2d that follow."""
        return ops.conv2d(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups, relu,
            None if pool is None
            else ops.MaxPool(pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode),
        )  # fmt: skip

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        text += f", stride={self.stride}"
        for name, default in (("padding", 0), ("dilation", 1), ("groups", 1)):
            value = getattr(self, name)
            if value != default:
                text += f", {name}={value!r}"
        return text if self.bias is not None else text + ", bias=False"

    def multiply_adds(self, inputs: tuple[Any, ...], output: Any) -> int:
        return int(output.size) * math.prod(self.weight.shape[1:])


class Linear(Module):
    """y = x weight^T + bias: ops.linear.

    (..., in_features) to (..., out_features).  weight is (out_features, in_features).  bias is
    (out_features,), or None with bias=False.  weight_init and bias_init are called with a shape and
    a generator; generator None means the default one.

    Raises ArgumentError for sizes below 1; when called, ShapeError for another number of features.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        weight_init: init.Initializer = init.kaiming_normal,
        bias_init: init.Initializer = init.zeros,
        generator: np.random.Generator | None = None,
    ) -> None:
        check_positive("Linear", in_features=in_features, out_features=out_features)
        generator = generator or default_generator()
        self.in_features, self.out_features = in_features, out_features
        self.weight = Parameter(weight_init((out_features, in_features), generator))
        self.bias = Parameter(bias_init((out_features,), generator)) if bias else None

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        """relu fuses the ReLU that follows."""
        return ops.linear(x, self.weight, self.bias, relu)

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, bias={self.bias is not None}"

    def multiply_adds(self, inputs: tuple[Any, ...], output: Any) -> int:
        return int(output.size) * self.weight.shape[1]


class _Pool2d(Module):
    """What MaxPool2d and AvgPool2d share: the settings of their windows."""

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Padding = 0,
        ceil_mode: bool = False,
    ) -> None:
        self.kernel_size, self.stride = kernel_size, kernel_size if stride is None else stride
        self.padding, self.ceil_mode = padding, ceil_mode

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding!r}, "
            f"ceil_mode={self.ceil_mode}"
        )


class MaxPool2d(_Pool2d):
    """The largest value of each window: ops.max_pool2d.

    (N, H, W, C) to (N, OH, OW, C), with OH = (H + top + bottom - KH) // stride + 1, rounded up
    instead with ceil_mode.  kernel_size and stride are an int or a pair (vertical, horizontal), in
    pixels; stride None means kernel_size.  padding is as for Conv2d and never wins.

    Raises ShapeError, when called, if a window is larger than the padded image or sees only
    padding.
    """

    def forward(self, x: Tensor) -> Tensor:
        return ops.max_pool2d(x, self.kernel_size, self.stride, self.padding, self.ceil_mode)


class AvgPool2d(_Pool2d):
    """The mean of each window: ops.avg_pool2d.

    Shapes, sizes and errors are those of MaxPool2d.  Padding counts as zeros; with
    count_include_pad=False the mean is only over pixels of the image.
    """

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Padding = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode)
        self.count_include_pad = count_include_pad

    def forward(self, x: Tensor) -> Tensor:
        return ops.avg_pool2d(
            x, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, count_include_pad={self.count_include_pad}"


class AdaptiveAvgPool2d(Module):
    """Means over a fixed number of windows: ops.adaptive_avg_pool2d.

    (N, H, W, C) to (N, OH, OW, C).  output_size is (OH, OW), or an int for both.  Windows overlap
    where OH does not divide H, or OW does not divide W.

    Raises ArgumentError for a size below 1; when called, ShapeError for anything but images.
    """

    def __init__(self, output_size: Size) -> None:
        self.output_size = (
            (output_size, output_size) if isinstance(output_size, int) else output_size
        )
        check_positive("AdaptiveAvgPool2d", height=self.output_size[0], width=self.output_size[1])

    def forward(self, x: Tensor) -> Tensor:
        return ops.adaptive_avg_pool2d(x, self.output_size)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


class GlobalAvgPool2d(Module):
    """The mean of each channel over the image: ops.global_avg_pool2d.  (N, H, W, C) to (N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.global_avg_pool2d(x)


class Dropout(Module):
    """Set elements to 0 with probability p and divide the others by 1 - p: ops.dropout.

    Any shape to the same shape; in evaluation mode the input itself.  generator None means the
    default one.  Raises ArgumentError unless 0 <= p < 1.
    """

    def __init__(self, p: float = 0.5, generator: np.random.Generator | None = None) -> None:
        if not 0 <= p < 1:
            raise ArgumentError(f"Dropout: p must be in [0, 1), got {p}")
        self.p = p
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        return ops.dropout(x, self.p, self.training, self.generator)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Identity(Module):
    """The input itself, unchanged: a place for another layer.  Arguments are ignored."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        return x


class Flatten(Module):
    """All axes but the first in one, in row order: ops.flatten.  (N, H, W, C) to (N, H * W * C)."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.flatten(x)


class Reshape(Module):
    """All axes but the first in the given shape, in row order.  (N, ...) to (N, *shape).

    One size may be -1 and follows from the others.  Raises ShapeError, when called, if the number
    of elements differs.
    """

    def __init__(self, *shape: int) -> None:
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return ops.reshape(x, (len(x), *self.shape))

    def extra_repr(self) -> str:
        return ", ".join(map(str, self.shape))


class ZeroPad2d(Module):
    """Images with a border of zeros: ops.pad.

    (N, H, W, C) to (N, top + H + bottom, left + W + right, C).  padding is an int for every side, a
    pair (vertical, horizontal), or ((top, bottom), (left, right)), in pixels.
    """

    def __init__(self, padding: Padding) -> None:
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        g = Geometry.of("ZeroPad2d", x.shape, 1, 1, self.padding)
        return ops.pad(x, ((0, 0), (g.top, g.bottom), (g.left, g.right), (0, 0)))

    def extra_repr(self) -> str:
        return repr(self.padding)
