"""A layer for each op: it holds the op's parameters and settings, and calls it."""

import math
from typing import Any

import numpy as np

from gpucnn import ops
from gpucnn.creation import tensor
from gpucnn.errors import ArgumentError
from gpucnn.nn import init
from gpucnn.nn.module import Module, Parameter
from gpucnn.ops.geometry import Geometry, Padding, Size
from gpucnn.random import default_generator
from gpucnn.tensor import Tensor


def _positive(layer: str, **sizes: Any) -> None:
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ArgumentError(f"{layer}: {name} must be a positive int, got {value!r}")


class Conv2d(Module):
    """ops.conv2d with its filters w (OC, KH, KW, C / groups) and bias b (OC,)."""

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
        _positive("Conv2d", in_channels=in_channels, out_channels=out_channels, groups=groups)
        if in_channels % groups or out_channels % groups:
            raise ArgumentError(
                f"Conv2d: groups={groups} must divide in_channels={in_channels} "
                f"and out_channels={out_channels}"
            )
        kh, kw = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        _positive("Conv2d", kernel_height=kh, kernel_width=kw)
        generator = generator or default_generator()
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.weight = Parameter(
            weight_init((out_channels, kh, kw, in_channels // groups), generator)
        )
        self.bias = Parameter(bias_init((out_channels,), generator)) if bias else None

    def forward(self, x: Tensor, relu: bool = False, pool: "MaxPool2d | None" = None) -> Tensor:
        """relu and pool: also do what a ReLU and a MaxPool2d next would do."""
        return ops.conv2d(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups, relu,
            None if pool is None
            else ops.MaxPool(pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode),
        )  # fmt: skip

    def extra_repr(self) -> str:
        oc, kh, kw, c = self.weight.shape
        text = f"{c * self.groups} -> {oc}, window {kh}x{kw}"
        for name, usual in (("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1)):
            value = getattr(self, name)
            if value != usual:
                text += f", {name}={value!r}"
        return text if self.bias is not None else text + ", bias=False"

    def multiply_adds(self, inputs: tuple[Any, ...], output: Any) -> int:
        return int(output.size) * math.prod(self.weight.shape[1:])


class Linear(Module):
    """ops.linear with its weights w (OUT, IN) and bias b (OUT,)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        weight_init: init.Initializer = init.kaiming_normal,
        bias_init: init.Initializer = init.zeros,
        generator: np.random.Generator | None = None,
    ) -> None:
        _positive("Linear", in_features=in_features, out_features=out_features)
        generator = generator or default_generator()
        self.weight = Parameter(weight_init((out_features, in_features), generator))
        self.bias = Parameter(bias_init((out_features,), generator)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        text = f"{self.weight.shape[1]} -> {self.weight.shape[0]}"
        return text if self.bias is not None else text + ", bias=False"

    def multiply_adds(self, inputs: tuple[Any, ...], output: Any) -> int:
        return int(output.size) * self.weight.shape[1]


class BatchNorm2d(Module):
    """ops.batch_norm over all axes but the last, with its scale, shift and running statistics."""

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        _positive("BatchNorm2d", num_features=num_features)
        self.momentum, self.eps = momentum, eps
        self.weight = Parameter(np.ones(num_features, dtype=np.float32))
        self.bias = Parameter(np.zeros(num_features, dtype=np.float32))
        self.running_mean = tensor(np.zeros(num_features, dtype=np.float32))
        self.running_var = tensor(np.ones(num_features, dtype=np.float32))

    def forward(self, x: Tensor) -> Tensor:
        return ops.batch_norm(
            x,
            self.weight,
            self.bias,
            self.running_mean.data,
            self.running_var.data,
            self.training,
            self.momentum,
            self.eps,
        )

    def extra_repr(self) -> str:
        return f"{self.weight.size}, momentum={self.momentum}, eps={self.eps}"


class LocalResponseNorm(Module):
    """ops.local_response_norm: Krizhevsky's, alpha not divided by size."""

    def __init__(
        self, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0
    ) -> None:
        _positive("LocalResponseNorm", size=size)
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, x: Tensor) -> Tensor:
        return ops.local_response_norm(x, self.size, self.alpha, self.beta, self.k)

    def extra_repr(self) -> str:
        return f"size={self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"


class MaxPool2d(Module):
    """ops.max_pool2d."""

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Padding = 0,
        ceil_mode: bool = False,
    ) -> None:
        self.kernel_size, self.stride, self.padding, self.ceil_mode = (
            kernel_size,
            stride,
            padding,
            ceil_mode,
        )

    def forward(self, x: Tensor) -> Tensor:
        return ops.max_pool2d(x, self.kernel_size, self.stride, self.padding, self.ceil_mode)

    def extra_repr(self) -> str:
        text = f"window {self.kernel_size}, stride {self.stride or self.kernel_size}"
        text += f", padding={self.padding!r}" if self.padding != 0 else ""
        return text + ", ceil_mode=True" if self.ceil_mode else text


class AvgPool2d(MaxPool2d):
    """ops.avg_pool2d."""

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


class AdaptiveAvgPool2d(Module):
    """ops.adaptive_avg_pool2d to size (OH, OW), or a square of one int."""

    def __init__(self, size: Size) -> None:
        self.size = (size, size) if isinstance(size, int) else size
        _positive("AdaptiveAvgPool2d", height=self.size[0], width=self.size[1])

    def forward(self, x: Tensor) -> Tensor:
        return ops.adaptive_avg_pool2d(x, self.size)

    def extra_repr(self) -> str:
        return f"{self.size[0]}x{self.size[1]}"


class GlobalAvgPool2d(Module):
    """ops.global_avg_pool2d: (N, H, W, C) to (N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.global_avg_pool2d(x)


class Dropout(Module):
    """ops.dropout while training, nothing in evaluation.  generator None is the default one."""

    def __init__(self, p: float = 0.5, generator: np.random.Generator | None = None) -> None:
        if not 0 <= p < 1:
            raise ArgumentError(f"Dropout: p must be in [0, 1), got {p}")
        self.p = p
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        return ops.dropout(x, self.p, self.training, self.generator)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class ReLU(Module):
    """ops.relu."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.relu(x)


class LeakyReLU(Module):
    """ops.leaky_relu."""

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.negative_slope = negative_slope

    def forward(self, x: Tensor) -> Tensor:
        return ops.leaky_relu(x, self.negative_slope)

    def extra_repr(self) -> str:
        return f"negative_slope={self.negative_slope}"


class Sigmoid(Module):
    """ops.sigmoid."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.sigmoid(x)


class Tanh(Module):
    """ops.tanh."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.tanh(x)


class GELU(Module):
    """ops.gelu."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.gelu(x)


class Softmax(Module):
    """ops.softmax along `axis`."""

    def __init__(self, axis: int = -1) -> None:
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        return ops.softmax(x, self.axis)

    def extra_repr(self) -> str:
        return f"axis={self.axis}"


class LogSoftmax(Softmax):
    """ops.log_softmax along `axis`."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.log_softmax(x, self.axis)


class Flatten(Module):
    """ops.flatten: (N, ...) to (N, everything else)."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.flatten(x)


class Reshape(Module):
    """(N, ...) to (N, *shape)."""

    def __init__(self, *shape: int) -> None:
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return ops.reshape(x, (len(x), *self.shape))

    def extra_repr(self) -> str:
        return ", ".join(map(str, self.shape))


class ZeroPad2d(Module):
    """Zeros around images: padding is an int, a pair or a pair of pairs, as for ops.conv2d."""

    def __init__(self, padding: Padding) -> None:
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        g = Geometry.of("ZeroPad2d", x.shape, 1, 1, self.padding)
        return ops.pad(x, ((0, 0), (g.top, g.bottom), (g.left, g.right), (0, 0)))

    def extra_repr(self) -> str:
        return repr(self.padding)


class CrossEntropyLoss(Module):
    """ops.cross_entropy as a module: called with logits and labels."""

    def __init__(self, weight: Any = None, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing
        self.weight = weight

    def forward(self, logits: Tensor, labels: Any) -> Tensor:
        return ops.cross_entropy(logits, labels, self.weight, self.label_smoothing)


class MSELoss(Module):
    """ops.mse_loss as a module: called with y and target."""

    def forward(self, y: Tensor, target: Any) -> Tensor:
        return ops.mse_loss(y, target)
