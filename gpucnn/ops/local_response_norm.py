"""Local response normalisation: strong responses damp neighbouring channels."""

import math
from typing import Any

import numpy as np

from gpucnn import cuda
from gpucnn.autograd import Function
from gpucnn.cpu import empty, parallel, scratch, spans
from gpucnn.device import Array, array_module, by_device
from gpucnn.errors import ArgumentError, ShapeError
from gpucnn.integers import ceil_div, is_int
from gpucnn.ops._exact import narrowed, widened
from gpucnn.ops._kernels import Divisor, defines, takes
from gpucnn.ops.elementwise import float_tensor
from gpucnn.tensor import Tensor


def local_response_norm(
    x: Any, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0
) -> Tensor:
    """y = x / (k + alpha * sum of squares over `size` neighbouring channels) ** beta.

    x is (..., C) and y has its shape.  The window of channel c is the existing channels among
    c - size // 2 ... c - size // 2 + size - 1, centred on c if size is odd.  alpha is not divided
    by size, as in the source.  PyTorch divides it (pass alpha * size there); TensorFlow and Caffe
    differ again.

    Raises ArgumentError unless size is an int >= 1 and k > 0, ShapeError for a scalar, DtypeError
    unless x is floating-point.
    Source: Krizhevsky et al. 2012, section 3.3.
    """
    x = float_tensor("local_response_norm", x)
    if not is_int(size) or size < 1 or not k > 0:
        raise ArgumentError(
            f"local_response_norm: expected an int size >= 1 and k > 0, got {size}, {k}"
        )
    if x.ndim == 0:
        raise ShapeError("local_response_norm: expected channels (..., C), got a scalar")
    return _LocalResponseNorm(size, alpha, beta, k)(x)


class _LocalResponseNorm(Function):
    name = "local_response_norm"

    def __init__(self, size: int, alpha: float, beta: float, k: float) -> None:
        self.constants = (size, alpha, beta, k)

    def forward(self, x: Array) -> Array:
        self.saved = (x,)
        return _forward(x, *self.constants)

    def backward(self, dy: Array) -> Array:
        return _backward(dy, *self.saved, *self.constants)


# --- any array module ---


def _neighbours(x: Array, before: int, after: int) -> Array:
    """Sum each channel with the `before` channels before it and the `after` channels after it."""
    total, channels = x.copy(), x.shape[-1]
    for i in range(1, min(before, channels - 1) + 1):
        total[..., i:] += x[..., :-i]
    for i in range(1, min(after, channels - 1) + 1):
        total[..., :-i] += x[..., i:]
    return total


def _damping(x: Array, size: int, alpha: float, beta: float, k: float) -> tuple[Array, Array]:
    """The base k + alpha * sum of squares, and base ** -beta."""
    total = _neighbours(x * x, size // 2, size - 1 - size // 2)
    total *= alpha
    total += k
    return total, total ** x.dtype.type(-beta)


def _forward_array(x: Array, size: int, alpha: float, beta: float, k: float) -> Array:
    dtype, x = x.dtype, widened(x)
    return narrowed(x * _damping(x, size, alpha, beta, k)[1], dtype)


def _backward_array(dy: Array, x: Array, size: int, alpha: float, beta: float, k: float) -> Array:
    dtype, dy, x = dy.dtype, widened(dy), widened(x)
    total, damping = _damping(x, size, alpha, beta, k)
    inner = dy * x
    inner *= damping
    inner /= total
    spread = _neighbours(inner, size - 1 - size // 2, size // 2)
    spread *= x
    spread *= -2 * alpha * beta
    spread += dy * damping
    return narrowed(spread, dtype)


# --- NumPy, in blocks of rows that stay in the cache ---


def _rows(x: Array) -> Array:
    return np.ascontiguousarray(x).reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _row_spans(rows: Array) -> list[slice]:
    return list(spans(len(rows), max(1, (1 << 16) // max(rows.shape[1], 1))))


def _banded(name: str, shape: tuple[int, ...], size: int, dtype: Any) -> tuple[Array, Array]:
    """Zeroed scratch memory, and a view of it as rows padded by size - 1 elements each."""
    rows, channels = shape
    memory = scratch(name, (rows * (channels + size - 1) + size - 1,), dtype)
    memory[...] = 0
    return memory, memory[: rows * (channels + size - 1)].reshape(rows, -1)


def _add_neighbours(memory: Array, size: int, shape: tuple[int, ...]) -> Array:
    """Sum each element of the padded rows with the size - 1 that follow it.

    The rows are summed as one long run; the zeros between keep them apart.
    """
    length = shape[0] * (shape[1] + size - 1)
    total = scratch("lrn total", (length,), memory.dtype)
    np.copyto(total, memory[:length])
    for i in range(1, size):
        total += memory[i : i + length]
    return total.reshape(shape[0], -1)[:, : shape[1]]


def _power(base: Array, beta: float, out: Array) -> None:
    """Set out to base ** -beta."""
    if beta == 0.75:  # two square roots are faster than np.power
        np.sqrt(base, out=out)
        out *= np.sqrt(out)
        np.divide(1, out, out=out)
    else:
        np.power(base, -beta, out=out)


def _base(x: Array, size: int, alpha: float, k: float) -> Array:
    """k + alpha * sum of squares for rows x, in scratch memory."""
    before = size // 2
    memory, padded = _banded("lrn squares", x.shape, size, x.dtype)
    np.multiply(x, x, out=padded[:, before : before + x.shape[1]])
    total = _add_neighbours(memory, size, x.shape)
    result = scratch("lrn base", x.shape, x.dtype)
    np.multiply(total, alpha, out=result)
    result += k
    return result


def _forward_numpy(x: Array, size: int, alpha: float, beta: float, k: float) -> Array:
    rows = _rows(widened(x))
    y = empty(rows.shape, rows.dtype)

    def normalize(block: slice) -> None:
        base = _base(rows[block], size, alpha, k)
        _power(base, beta, y[block])
        y[block] *= rows[block]

    parallel(normalize, _row_spans(rows))
    return narrowed(y, x.dtype).reshape(x.shape)


def _backward_numpy(dy: Array, x: Array, size: int, alpha: float, beta: float, k: float) -> Array:
    rows, dy_rows = _rows(widened(x)), _rows(widened(dy))
    dx = empty(rows.shape, rows.dtype)
    after = size - 1 - size // 2  # the backward window is mirrored

    def spread(block: slice) -> None:
        xs, out = rows[block], dx[block]
        base = _base(xs, size, alpha, k)
        _power(base, beta, out)
        out *= dy_rows[block]  # dy * base ** -beta
        memory, padded = _banded("lrn squares", xs.shape, size, xs.dtype)
        inner = padded[:, after : after + xs.shape[1]]
        np.multiply(out, xs, out=inner)
        inner /= base
        total = _add_neighbours(memory, size, xs.shape)
        np.multiply(total, xs, out=base)
        base *= 2 * alpha * beta
        out -= base

    parallel(spread, _row_spans(rows))
    return narrowed(dx, dy.dtype).reshape(x.shape)


# --- CUDA ---

_THREADS, _TILE = 256, 1024  # as in kernels/local_response_norm.cu: numbers of a block
_SHARED = 48 * 1024  # bytes for a block without an opt-in


def _neighbourhood(x: Array, size: int) -> tuple[int, int]:
    """How many channels before and after its own a total covers at most."""
    channels = x.shape[-1]
    return min(size // 2, channels - 1), min(size - 1 - size // 2, channels - 1)


def _shared(x: Array, size: int) -> int:
    """Bytes of shared memory for the tile of a block and the channels around it."""
    return 4 * (_TILE + 2 * sum(_neighbourhood(x, size)))


def _fits(x: Array, size: int) -> bool:
    """Whether the kernels take x; a channel number times a tile has 31 bits."""
    return takes(x) and 0 < x.shape[-1] < 2**21 and 2 * _shared(x, size) <= _SHARED


def _forward_cuda(x: Array, size: int, alpha: float, beta: float, k: float) -> Array:
    if not _fits(x, size):
        return _forward_array(x, size, alpha, beta, k)
    xp = array_module(x)
    x, y = xp.ascontiguousarray(x), xp.empty(x.shape, x.dtype)
    cuda.launch(
        "lrn_forward",
        ceil_div(x.size, _TILE),
        _THREADS,
        x,  # (..., C)
        y,  # (..., C)
        x.size,
        *_neighbourhood(x, size),
        alpha,
        beta,
        k,
        Divisor.of(x.shape[-1]),
        shared=_shared(x, size),
        defines=defines(x.dtype),
    )
    return y


def _backward_cuda(dy: Array, x: Array, size: int, alpha: float, beta: float, k: float) -> Array:
    if not _fits(dy, size):
        return _backward_array(dy, x, size, alpha, beta, k)
    xp = array_module(dy)
    dy, x, dx = xp.ascontiguousarray(dy), xp.ascontiguousarray(x), xp.empty(x.shape, x.dtype)
    cuda.launch(
        "lrn_backward",
        ceil_div(x.size, _TILE),
        _THREADS,
        dy,  # (..., C)
        x,  # (..., C)
        dx,  # (..., C)
        x.size,
        *_neighbourhood(x, size),
        alpha,
        beta,
        k,
        Divisor.of(x.shape[-1]),
        shared=2 * _shared(x, size),
        defines=defines(x.dtype),
    )
    return dx


_forward: Any = by_device(cpu=_forward_numpy, cuda=_forward_cuda)
_backward: Any = by_device(cpu=_backward_numpy, cuda=_backward_cuda)
