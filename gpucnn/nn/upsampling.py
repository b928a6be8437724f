"""Layers that enlarge images: transposed convolution and resizing."""

import math
from typing import Any

import numpy as np

from gpucnn import ops
from gpucnn.errors import ArgumentError
from gpucnn.nn import init
from gpucnn.nn.layers import check_positive
from gpucnn.nn.module import Module
from gpucnn.nn.parameter import Parameter
from gpucnn.ops.geometry import Padding, Size
from gpucnn.ops.interpolate import check_settings
from gpucnn.random import default_generator
from gpucnn.tensor import Tensor


class ConvTranspose2d(Module):
    """Transposed convolution of images: ops.conv_transpose2d.

    (N, H, W, in_channels) to (N, OH, OW, out_channels), with
    OH = (H - 1) * stride - top - bottom + dilation * (KH - 1) + output_padding + 1, and OW
    likewise.  kernel_size, stride, output_padding and dilation are an int or a pair (vertical,
    horizontal), in pixels; padding also ((top, bottom), (left, right)), and cuts off that much.

    weight is (in_channels, KH, KW, out_channels / groups).  bias is (out_channels,), or None with
    bias=False.  weight_init and bias_init are called with a shape and a generator; as in PyTorch,
    fan-in is that of the weight's shape.  generator None means the default one.

    Raises ArgumentError for sizes below 1, or if groups does not divide both channel counts; when
    called, for output_padding that is neither smaller than stride nor than dilation, and ShapeError
    for images with another number of channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Padding = 0,
        output_padding: Size = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Size = 1,
        weight_init: init.Initializer = init.kaiming_normal,
        bias_init: init.Initializer = init.zeros,
        generator: np.random.Generator | None = None,
    ) -> None:
        check_positive(
            "ConvTranspose2d", in_channels=in_channels, out_channels=out_channels, groups=groups
        )
        if in_channels % groups or out_channels % groups:
            raise ArgumentError(
                f"ConvTranspose2d: groups={groups} must divide in_channels={in_channels} "
                f"and out_channels={out_channels}"
            )
        kh, kw = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        check_positive("ConvTranspose2d", kernel_height=kh, kernel_width=kw)
        generator = generator or default_generator()
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, (kh, kw)
        self.stride, self.padding, self.output_padding = stride, padding, output_padding
        self.groups, self.dilation = groups, dilation
        self.weight = Parameter(
            weight_init((in_channels, kh, kw, out_channels // groups), generator)
        )
        self.bias = Parameter(bias_init((out_channels,), generator)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return ops.conv_transpose2d(
            x, self.weight, self.bias, self.stride, self.padding, self.output_padding, self.groups,
            self.dilation,
        )  # fmt: skip

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        text += f", stride={self.stride}"
        for name, default in (
            ("padding", 0),
            ("dilation", 1),
            ("output_padding", 0),
            ("groups", 1),
        ):
            value = getattr(self, name)
            if value != default:
                text += f", {name}={value!r}"
        return text if self.bias is not None else text + ", bias=False"

    def multiply_adds(self, inputs: tuple[Any, ...], output: Any) -> int:
        return int(inputs[0].size) * math.prod(self.weight.shape[1:])


class Upsample(Module):
    """Images resized: ops.interpolate.  (N, H, W, C) to (N, OH, OW, C).

    Either size, (OH, OW) in pixels, or scale_factor: OH = floor(H * scale_factor); one number
    serves for both axes.  mode is "nearest" or "bilinear"; align_corners puts the corner pixels of
    a bilinear result on those of the image.

    Raises ArgumentError unless exactly one of size and scale_factor is given and positive, for an
    unknown mode, or for align_corners with "nearest".
    """

    def __init__(
        self,
        size: Size | None = None,
        scale_factor: float | tuple[float, float] | None = None,
        mode: str = "nearest",
        align_corners: bool | None = None,
    ) -> None:
        check_settings("Upsample", size, scale_factor, mode, align_corners)
        self.size, self.scale_factor = size, scale_factor
        self.mode, self.align_corners = mode, align_corners

    def forward(self, x: Tensor) -> Tensor:
        return ops.interpolate(x, self.size, self.scale_factor, self.mode, self.align_corners)

    def extra_repr(self) -> str:
        name = "size" if self.scale_factor is None else "scale_factor"
        text = f"{name}={getattr(self, name)}, mode={self.mode!r}"
        aligned = self.align_corners
        return text if aligned is None else f"{text}, align_corners={aligned}"
