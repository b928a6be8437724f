"""Matrix products."""

import itertools
import math
from typing import Any

import numpy as np

from gpucnn.autograd import Function
from gpucnn.cpu import empty, parallel, single_threaded_blas, spans
from gpucnn.device import Array, by_device, device_of
from gpucnn.errors import DtypeError, ShapeError
from gpucnn.ops._broadcast import unbroadcast
from gpucnn.ops._checks import product_dtype
from gpucnn.ops._exact import narrowed, widened
from gpucnn.ops._kernels import takes
from gpucnn.ops.elementwise import number_tensor
from gpucnn.ops.gemm import multiply
from gpucnn.ops.shape import reshape
from gpucnn.precision import is_half, uses_tf32
from gpucnn.tensor import Tensor


def matmul(a: Any, b: Any) -> Tensor:
    """a @ b: (..., M, K) times (..., K, N) is (..., M, N); leading axes broadcast.

    A vector is a row on the left and a column on the right, as in NumPy.  On the CPU the result
    and both gradients have the same bits for any number of threads, gpucnn's or BLAS's.
    Under autocast float32 operands are rounded to half precision, sums are float32, and the result
    has half precision.  On a GPU, tensor cores multiply half precision, and two matrices of float32
    as set_float32_precision says.
    Raises ShapeError if the inner sizes differ or the leading axes do not broadcast; DtypeError if
    the dtypes differ or are bool.
    """
    a, b = number_tensor("matmul", a), number_tensor("matmul", b)
    if a.ndim == 0 or b.ndim == 0:
        raise ShapeError(f"matmul: expected matrices, got shapes {a.shape} and {b.shape}")
    dtype = product_dtype(a, b)
    if a.dtype != b.dtype and dtype is None:
        raise DtypeError(f"matmul: dtypes {a.dtype} and {b.dtype} differ; convert one with astype")
    if a.shape[-1] != b.shape[-2 if b.ndim > 1 else 0]:
        raise ShapeError(
            f"matmul: a has {a.shape[-1]} columns, b has {b.shape[-2 if b.ndim > 1 else 0]} rows\n"
            f"  a {a.shape}, b {b.shape}"
        )
    row, column = a.ndim == 1, b.ndim == 1
    y = _Matmul(dtype or a.dtype)(
        reshape(a, (1, -1)) if row else a, reshape(b, (-1, 1)) if column else b
    )
    if row:
        y = reshape(y, y.shape[:-2] + y.shape[-1:])
    return reshape(y, y.shape[:-1]) if column else y


class _Matmul(Function):
    name = "matmul"

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype

    def forward(self, a: Array, b: Array) -> Array:
        self.dtypes = a.dtype, b.dtype
        a, b = narrowed(a, self.dtype), narrowed(b, self.dtype)
        self.saved = (a, b)
        try:
            return product(a, b)
        except ValueError:
            raise ShapeError(f"matmul: {a.shape} and {b.shape} do not broadcast") from None

    def backward(self, dy: Array) -> tuple[Array | None, Array | None]:
        (a, b), (a_dtype, b_dtype) = self.saved, self.dtypes
        da = db = None
        if self.needs[0]:
            da = narrowed(unbroadcast(product(dy, b.swapaxes(-1, -2)), a.shape), a_dtype)
        if self.needs[1]:
            if b.ndim == 2:  # one product over all rows, not one for each matrix of the stack
                a, dy = _rows(a), _rows(dy)
            db = narrowed(unbroadcast(product(a.swapaxes(-1, -2), dy), b.shape), b_dtype)
        return da, db


def _rows(x: Array) -> Array:
    """A stack of matrices (..., M, K) as one matrix (rows, K)."""
    return x if x.ndim == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


# --- any array module ---


def _product_array(a: Array, b: Array) -> Array:
    return narrowed(widened(a) @ widened(b), a.dtype)


# --- CUDA ---


def _product_cuda(a: Array, b: Array) -> Array:
    if b.ndim == 2 and a.ndim > 2:  # the stack is one tall matrix
        return _product_cuda(_rows(a), b).reshape(*a.shape[:-1], b.shape[1])
    if not takes(a) or a.ndim != 2 or b.ndim != 2:
        return _product_array(a, b)
    tf32 = uses_tf32(device_of(a))
    if b.T.flags.c_contiguous and not b.flags.c_contiguous:
        return multiply("NT", a, b.T, a.dtype, tf32=tf32)[0]
    if a.T.flags.c_contiguous and not a.flags.c_contiguous:
        return multiply("TN", a.T, b, a.dtype, tf32=tf32)[0]
    return multiply("NN", a, b, a.dtype, tf32=tf32)[0]


# --- NumPy: products split only by shape, so that any number of threads gives the same bits; how
# BLAS splits one depends on its number of threads ---

_PIECE = (512, 512)  # rows and columns of a piece: enough for BLAS to run at full speed
_WORK = 1 << 20  # multiplications in a piece of a stack: enough to occupy a thread


def _product_numpy(a: Array, b: Array) -> Array:
    if is_half(a.dtype):  # computed in float32, as on tensor cores
        return narrowed(_product_numpy(widened(a), widened(b)), a.dtype)
    (*_, m, k), n = a.shape, b.shape[-1]
    if b.ndim == 2 and a.ndim > 2:  # the stack is one tall matrix
        return _product_numpy(_rows(a), b).reshape(*a.shape[:-1], n)
    if a.ndim == b.ndim == 2 and m <= _PIECE[0] and n <= _PIECE[1]:  # one piece
        with single_threaded_blas():
            return a @ b
    stack = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    y = empty((*stack, m, n), a.dtype)
    a, b = np.broadcast_to(a, (*stack, m, k)), np.broadcast_to(b, (*stack, k, n))

    def multiply(piece: tuple[tuple[slice, ...], slice, slice]) -> None:
        part, rows, columns = piece
        out = y[part][..., rows, columns]
        np.matmul(a[part][..., rows, :], b[part][..., columns], out=out)

    parallel(
        multiply,
        itertools.product(_parts(stack, m * k * n), spans(m, _PIECE[0]), spans(n, _PIECE[1])),
    )
    return y


def _parts(stack: tuple[int, ...], work: int) -> list[tuple[slice, ...]]:
    """Split a stack along its longest axis into parts of about _WORK multiplications.

    work is the number of multiplications in one product.
    """
    if not stack:
        return [()]
    longest = max(stack)
    axis = stack.index(longest)
    per_index = work * math.prod(stack) // max(longest, 1)
    return [
        (slice(None),) * axis + (part,)
        for part in spans(longest, max(1, _WORK // max(per_index, 1)))
    ]


# The product of two arrays
product: Any = by_device(cpu=_product_numpy, cuda=_product_cuda)
