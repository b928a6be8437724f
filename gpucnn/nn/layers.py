"""A layer for each op: it holds the op's parameters and settings, and calls it."""

import math
from typing import Any

import numpy as np

from gpucnn import ops
from gpucnn.errors import ArgumentError
from gpucnn.nn import init
from gpucnn.nn.module import Module, Parameter
from gpucnn.ops.geometry import Padding, Size, Window
from gpucnn.random import default_generator
from gpucnn.tensor import Tensor, tensor


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
        window: Size,
        stride: Size = 1,
        padding: Padding = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        weight_init: init.Initializer = init.he_normal,
        bias_init: init.Initializer = init.zeros,
        generator: np.random.Generator | None = None,
    ) -> None:
        _positive("Conv2d", in_channels=in_channels, out_channels=out_channels, groups=groups)
        if in_channels % groups or out_channels % groups:
            raise ArgumentError(
                f"Conv2d: groups={groups} must divide in_channels={in_channels} "
                f"and out_channels={out_channels}"
            )
        kh, kw = (window, window) if isinstance(window, int) else window
        _positive("Conv2d", window_height=kh, window_width=kw)
        generator = generator or default_generator()
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.w = Parameter(weight_init((out_channels, kh, kw, in_channels // groups), generator))
        self.b = Parameter(bias_init((out_channels,), generator)) if bias else None

    def forward(self, x: Tensor, relu: bool = False, pool: "MaxPool2d | None" = None) -> Tensor:
        """relu and pool: also do what a ReLU and a MaxPool2d next would do."""
        return ops.conv2d(
            x, self.w, self.b, self.stride, self.padding, self.dilation, self.groups, relu,
            None if pool is None else (pool.window, pool.stride, pool.padding, pool.ceil),
        )  # fmt: skip

    def extra(self) -> str:
        oc, kh, kw, c = self.w.shape
        text = f"{c * self.groups} -> {oc}, window {kh}x{kw}"
        for name, usual in (("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1)):
            value = getattr(self, name)
            if value != usual:
                text += f", {name}={value!r}"
        return text if self.b is not None else text + ", bias=False"

    def multiply_adds(self, inputs: tuple[Any, ...], output: Any) -> int:
        return int(output.size) * math.prod(self.w.shape[1:])


class Linear(Module):
    """ops.linear with its weights w (OUT, IN) and bias b (OUT,)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        weight_init: init.Initializer = init.he_normal,
        bias_init: init.Initializer = init.zeros,
        generator: np.random.Generator | None = None,
    ) -> None:
        _positive("Linear", in_features=in_features, out_features=out_features)
        generator = generator or default_generator()
        self.w = Parameter(weight_init((out_features, in_features), generator))
        self.b = Parameter(bias_init((out_features,), generator)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.w, self.b)

    def extra(self) -> str:
        text = f"{self.w.shape[1]} -> {self.w.shape[0]}"
        return text if self.b is not None else text + ", bias=False"

    def multiply_adds(self, inputs: tuple[Any, ...], output: Any) -> int:
        return int(output.size) * self.w.shape[1]


class BatchNorm(Module):
    """ops.batch_norm over all axes but the last, with its scale, shift and running statistics."""

    def __init__(self, features: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        _positive("BatchNorm", features=features)
        self.momentum, self.eps = momentum, eps
        self.gamma = Parameter(np.ones(features, dtype=np.float32))
        self.beta = Parameter(np.zeros(features, dtype=np.float32))
        self.running_mean = tensor(np.zeros(features, dtype=np.float32))
        self.running_var = tensor(np.ones(features, dtype=np.float32))

    def forward(self, x: Tensor) -> Tensor:
        return ops.batch_norm(
            x,
            self.gamma,
            self.beta,
            self.running_mean.data,
            self.running_var.data,
            self.training,
            self.momentum,
            self.eps,
        )

    def extra(self) -> str:
        return f"{self.gamma.size}, momentum={self.momentum}, eps={self.eps}"


class LocalResponseNorm(Module):
    """ops.local_response_norm: Krizhevsky's, alpha not divided by size."""

    def __init__(
        self, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0
    ) -> None:
        _positive("LocalResponseNorm", size=size)
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, x: Tensor) -> Tensor:
        return ops.local_response_norm(x, self.size, self.alpha, self.beta, self.k)

    def extra(self) -> str:
        return f"size={self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"


class MaxPool2d(Module):
    """ops.max_pool2d."""

    def __init__(
        self, window: Size, stride: Size | None = None, padding: Padding = 0, ceil: bool = False
    ) -> None:
        self.window, self.stride, self.padding, self.ceil = window, stride, padding, ceil

    def forward(self, x: Tensor) -> Tensor:
        return ops.max_pool2d(x, self.window, self.stride, self.padding, self.ceil)

    def extra(self) -> str:
        text = f"window {self.window}, stride {self.stride or self.window}"
        text += f", padding={self.padding!r}" if self.padding != 0 else ""
        return text + ", ceil" if self.ceil else text


class AvgPool2d(MaxPool2d):
    """ops.avg_pool2d."""

    def __init__(
        self,
        window: Size,
        stride: Size | None = None,
        padding: Padding = 0,
        ceil: bool = False,
        count_padding: bool = True,
    ) -> None:
        super().__init__(window, stride, padding, ceil)
        self.count_padding = count_padding

    def forward(self, x: Tensor) -> Tensor:
        return ops.avg_pool2d(
            x, self.window, self.stride, self.padding, self.ceil, self.count_padding
        )


class AdaptiveAvgPool2d(Module):
    """ops.adaptive_avg_pool2d to size (OH, OW), or a square of one int."""

    def __init__(self, size: Size) -> None:
        self.size = (size, size) if isinstance(size, int) else size
        _positive("AdaptiveAvgPool2d", height=self.size[0], width=self.size[1])

    def forward(self, x: Tensor) -> Tensor:
        return ops.adaptive_avg_pool2d(x, self.size)

    def extra(self) -> str:
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

    def extra(self) -> str:
        return f"p={self.p}"


class ReLU(Module):
    """ops.relu."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.relu(x)


class LeakyReLU(Module):
    """ops.leaky_relu."""

    def __init__(self, slope: float = 0.01) -> None:
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        return ops.leaky_relu(x, self.slope)

    def extra(self) -> str:
        return f"slope={self.slope}"


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

    def extra(self) -> str:
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

    def extra(self) -> str:
        return ", ".join(map(str, self.shape))


class Pad2d(Module):
    """Zeros around images: padding is an int, a pair or a pair of pairs, as for ops.conv2d."""

    def __init__(self, padding: Padding) -> None:
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        window = Window.of("Pad2d", x.shape, 1, 1, self.padding)
        return ops.pad(
            x, ((0, 0), (window.top, window.bottom), (window.left, window.right), (0, 0))
        )

    def extra(self) -> str:
        return repr(self.padding)


class SoftmaxCrossEntropy(Module):
    """ops.softmax_cross_entropy as a module: called with logits and labels."""

    def __init__(self, label_smoothing: float = 0.0, class_weights: Any = None) -> None:
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights

    def forward(self, logits: Tensor, labels: Any) -> Tensor:
        return ops.softmax_cross_entropy(logits, labels, self.label_smoothing, self.class_weights)


class MeanSquaredError(Module):
    """ops.mean_squared_error as a module: called with y and target."""

    def forward(self, y: Tensor, target: Any) -> Tensor:
        return ops.mean_squared_error(y, target)
