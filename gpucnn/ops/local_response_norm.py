"""Local response normalisation: strong responses damp those of neighbouring channels."""

from typing import Any

import numpy as np

from gpucnn import cuda
from gpucnn.autograd import Function
from gpucnn.device import Array, array_module, by_device
from gpucnn.errors import ArgumentError
from gpucnn.tensor import Tensor


def local_response_norm(
    x: Tensor, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0
) -> Tensor:
    """y = x / (k + alpha * sum of squares of `size` neighbouring channels) ** beta.

    x is (..., C).  The neighbours of channel c are c - size // 2 ... c - size // 2 + size - 1, as
    far as they exist: itself in the middle if size is odd.  alpha is not divided by size, as in
    the source; PyTorch divides it (give it alpha * size), TensorFlow and Caffe differ again.

    Raises ArgumentError unless size >= 1 and k > 0.
    Source: Krizhevsky et al. 2012, section 3.3.
    """
    if size < 1 or k <= 0:
        raise ArgumentError(f"local_response_norm: expected size >= 1 and k > 0, got {size}, {k}")
    return _LocalResponseNorm(size, alpha, beta, k)(x)


class _LocalResponseNorm(Function):
    name = "local_response_norm"

    def __init__(self, size: int, alpha: float, beta: float, k: float) -> None:
        self.constants = (size, alpha, beta, k)

    def forward(self, x: Array) -> Array:
        self.saved = (x,)
        return _forward(x, *self.constants)

    def backward(self, dy: Array) -> Array:
        assert self.saved is not None
        return _backward(dy, *self.saved, *self.constants)


# --- any array module ---


def _neighbours(x: Array, before: int, after: int) -> Array:
    """For each channel the sum over itself, `before` channels before it and `after` after it."""
    total, channels = x.copy(), x.shape[-1]
    for i in range(1, min(before, channels - 1) + 1):
        total[..., i:] += x[..., :-i]
    for i in range(1, min(after, channels - 1) + 1):
        total[..., :-i] += x[..., i:]
    return total


def _damping(x: Array, size: int, alpha: float, beta: float, k: float) -> tuple[Array, Array]:
    """The sum in the denominator, and the denominator to the power of -beta."""
    total = _neighbours(x * x, size // 2, size - 1 - size // 2)
    total *= alpha
    total += k
    return total, total ** x.dtype.type(-beta)


def _forward_array(x: Array, size: int, alpha: float, beta: float, k: float) -> Array:
    return x * _damping(x, size, alpha, beta, k)[1]


def _backward_array(dy: Array, x: Array, size: int, alpha: float, beta: float, k: float) -> Array:
    total, damping = _damping(x, size, alpha, beta, k)
    inner = dy * x
    inner *= damping
    inner /= total
    spread = _neighbours(inner, size - 1 - size // 2, size // 2)
    spread *= x
    spread *= -2 * alpha * beta
    spread += dy * damping
    return spread


# --- CUDA ---

_BLOCK = 256


def _forward_cuda(x: Array, size: int, alpha: float, beta: float, k: float) -> Array:
    if x.dtype != np.float32:
        return _forward_array(x, size, alpha, beta, k)
    xp = array_module(x)
    x, y = xp.ascontiguousarray(x), xp.empty(x.shape, np.float32)
    cuda.launch(
        "lrn_forward",
        -(-x.size // _BLOCK),
        _BLOCK,
        x,  # (..., C)
        y,  # (..., C)
        x.size,
        x.shape[-1],
        size // 2,
        size - 1 - size // 2,
        alpha,
        beta,
        k,
    )
    return y


def _backward_cuda(dy: Array, x: Array, size: int, alpha: float, beta: float, k: float) -> Array:
    if dy.dtype != np.float32:
        return _backward_array(dy, x, size, alpha, beta, k)
    xp = array_module(dy)
    dy, x = xp.ascontiguousarray(dy), xp.ascontiguousarray(x)
    inner, dx = xp.empty(x.shape, np.float32), xp.empty(x.shape, np.float32)
    grid = -(-x.size // _BLOCK)
    neighbours = (size // 2, size - 1 - size // 2)
    cuda.launch(
        "lrn_inner",
        grid,
        _BLOCK,
        dy,  # (..., C)
        x,  # (..., C)
        inner,  # (..., C)
        x.size,
        x.shape[-1],
        *neighbours,
        alpha,
        beta,
        k,
    )
    cuda.launch(
        "lrn_backward",
        grid,
        _BLOCK,
        dy,
        x,
        inner,
        dx,  # (..., C)
        x.size,
        x.shape[-1],
        *neighbours,
        alpha,
        beta,
        k,
    )
    return dx


_forward: Any = by_device(cpu=_forward_array, cuda=_forward_cuda)
_backward: Any = by_device(cpu=_backward_array, cuda=_backward_cuda)
