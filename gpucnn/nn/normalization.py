"""Normalisation layers."""

from typing import ClassVar

import numpy as np

from gpucnn import ops
from gpucnn.creation import tensor
from gpucnn.errors import ArgumentError, ShapeError
from gpucnn.nn.layers import check_positive
from gpucnn.nn.module import Module
from gpucnn.nn.parameter import Parameter
from gpucnn.tensor import Tensor


class _BatchNorm(Module):
    """ops.batch_norm with its parameters and running statistics."""

    _shapes: ClassVar[dict[int, str]]  # by number of axes: the inputs that the layer takes
    _other: ClassVar[str]  # which layer takes other inputs

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        check_positive(type(self).__name__, num_features=num_features)
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.weight = Parameter(np.ones(num_features, dtype=np.float32))
        self.bias = Parameter(np.zeros(num_features, dtype=np.float32))
        self.running_mean = tensor(np.zeros(num_features, dtype=np.float32))
        self.running_var = tensor(np.ones(num_features, dtype=np.float32))

    def forward(self, x: Tensor, relu: bool = False, gelu: bool = False) -> Tensor:
        """relu or gelu fuses the ReLU or the exact GELU that follows."""
        if x.ndim not in self._shapes:
            raise ShapeError(
                f"{type(self).__name__}: expected {' or '.join(self._shapes.values())}, "
                f"got shape {x.shape}\n  {self._other}"
            )
        return self._normalize(x, relu, gelu)

    def _normalize(self, x: Tensor, relu: bool, gelu: bool) -> Tensor:
        return ops.batch_norm(
            x,
            self.weight,
            self.bias,
            self.running_mean.data,
            self.running_var.data,
            self.training,
            self.momentum,
            self.eps,
            relu,
            gelu,
        )

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}"


class BatchNorm2d(_BatchNorm):
    """Batch normalisation of images, channel by channel: ops.batch_norm.

    (N, H, W, C) to the same shape, with C = num_features.  In training each channel gets mean 0 and
    variance 1 over the batch, and the running statistics are updated:
    running = (1 - momentum) * running + momentum * batch.  In evaluation mode the running
    statistics replace the batch's.  Then weight scales each channel and bias is added.

    weight, bias, running_mean and running_var are (C,); they start at 1, 0, 0 and 1.

    Raises ArgumentError for num_features below 1; when called, ShapeError for anything but images
    with that many channels, or in training for fewer than two values a channel.
    Source: Ioffe and Szegedy 2015.
    """

    _shapes: ClassVar[dict[int, str]] = {4: "images (N, H, W, C)"}
    _other = "use BatchNorm1d for (N, C) and (N, L, C)"


class BatchNorm1d(_BatchNorm):
    """Batch normalisation of vectors (N, C) or sequences (N, L, C), channel by channel.

    The same as BatchNorm2d except for the shape.
    """

    _shapes: ClassVar[dict[int, str]] = {2: "vectors (N, C)", 3: "sequences (N, L, C)"}
    _other = "use BatchNorm2d for images (N, H, W, C)"


class LayerNorm(Module):
    """Each example normalised over its last axes: ops.layer_norm.

    (..., *normalized_shape) to the same shape: mean 0 and variance 1, then scaled by weight and
    moved by bias.  normalized_shape is an int or the sizes of the last axes: LayerNorm(C) of images
    (N, H, W, C) normalises each pixel.

    weight and bias are normalized_shape; they start at 1 and 0.  With elementwise_affine=False both
    are None, with bias=False only bias is.

    Raises ArgumentError for sizes below 1; when called, ShapeError for other last axes.
    Source: Ba et al. 2016.
    """

    def __init__(
        self,
        normalized_shape: int | tuple[int, ...],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
    ) -> None:
        sizes = (
            tuple(normalized_shape)
            if isinstance(normalized_shape, tuple | list)
            else (normalized_shape,)
        )
        check_positive("LayerNorm", **{f"normalized_shape[{i}]": n for i, n in enumerate(sizes)})
        self.normalized_shape, self.eps, self.elementwise_affine = sizes, eps, elementwise_affine
        self.weight, self.bias = _scale_and_shift(sizes, elementwise_affine, bias)

    def forward(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        affine = f"elementwise_affine={self.elementwise_affine}, bias={self.bias is not None}"
        return f"{self.normalized_shape}, eps={self.eps}, {affine}"


class GroupNorm(Module):
    """Each image's groups of adjacent channels normalised: ops.group_norm.

    (N, ..., C) to the same shape, usually (N, H, W, C), with C = num_channels: each of num_groups
    groups gets mean 0 and variance 1 over its pixels and channels; then weight scales each channel
    and bias is added.  One group normalises whole images, C groups each channel by itself.

    weight and bias are (C,); they start at 1 and 0.  With affine=False both are None, with
    bias=False only bias is.

    Raises ArgumentError for sizes below 1, or if num_groups does not divide num_channels; when
    called, ShapeError for another number of channels.
    Source: Wu and He 2018.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        bias: bool = True,
    ) -> None:
        check_positive("GroupNorm", num_groups=num_groups, num_channels=num_channels)
        if num_channels % num_groups:
            raise ArgumentError(
                f"GroupNorm: num_groups={num_groups} must divide num_channels={num_channels}"
            )
        self.num_groups, self.num_channels, self.eps = num_groups, num_channels, eps
        self.affine = affine
        self.weight, self.bias = _scale_and_shift((num_channels,), affine, bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1:] != (self.num_channels,):
            raise ShapeError(
                f"GroupNorm: expected {self.num_channels} channels (N, ..., C), got shape {x.shape}"
            )
        return ops.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        sizes = f"{self.num_groups}, {self.num_channels}, eps={self.eps}"
        return f"{sizes}, affine={self.affine}, bias={self.bias is not None}"


def _scale_and_shift(
    shape: tuple[int, ...], affine: bool, bias: bool
) -> tuple[Parameter | None, Parameter | None]:
    """weight, ones, and bias, zeros; None where there is none."""
    weight = Parameter(np.ones(shape, dtype=np.float32)) if affine else None
    return weight, Parameter(np.zeros(shape, dtype=np.float32)) if affine and bias else None


class LocalResponseNorm(Module):
    """Each value damped by its neighbours in `size` channels: ops.local_response_norm.

    y = x / (k + alpha * sum of squares of the neighbours) ** beta, (..., C) to the same shape.
    Unlike PyTorch's, alpha is not divided by size: pass PyTorch's alpha / size.

    Raises ArgumentError for a size below 1; when called, for k <= 0.
    Source: Krizhevsky et al. 2012, section 3.3, whose constants are the defaults.
    """

    def __init__(
        self, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0
    ) -> None:
        check_positive("LocalResponseNorm", size=size)
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, x: Tensor) -> Tensor:
        return ops.local_response_norm(x, self.size, self.alpha, self.beta, self.k)

    def extra_repr(self) -> str:
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"
