"""Normalisation layers."""

from typing import ClassVar

import numpy as np

from gpucnn import ops
from gpucnn.creation import tensor
from gpucnn.errors import ShapeError
from gpucnn.nn.layers import check_positive
from gpucnn.nn.module import Module, Parameter
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

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim not in self._shapes:
            raise ShapeError(
                f"{type(self).__name__}: expected {' or '.join(self._shapes.values())}, "
                f"got shape {x.shape}\n  {self._other}"
            )
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
