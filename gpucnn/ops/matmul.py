"""Matrix products."""

import itertools
import math
from typing import Any

import numpy as np

from gpucnn.autograd import Function, unbroadcast
from gpucnn.cpu import empty, parallel, single_threaded_blas, spans
from gpucnn.device import Array, by_device
from gpucnn.errors import DtypeError, ShapeError
from gpucnn.ops.elementwise import as_tensor
from gpucnn.ops.shape import reshape
from gpucnn.tensor import Tensor


def matmul(a: Any, b: Any) -> Tensor:
    """a @ b: (..., M, K) times (..., K, N) is (..., M, N); leading axes broadcast.

    A vector is a row on the left and a column on the right, as in NumPy.  On the CPU the result
    and both gradients have the same bits for any number of threads, gpucnn's or BLAS's.
    Raises ShapeError if the inner sizes differ or the leading axes do not broadcast; DtypeError if
    the dtypes differ.
    """
    a, b = as_tensor(a), as_tensor(b)
    if a.ndim == 0 or b.ndim == 0:
        raise ShapeError(f"matmul: expected matrices, got shapes {a.shape} and {b.shape}")
    if a.dtype != b.dtype:
        raise DtypeError(f"matmul: dtypes {a.dtype} and {b.dtype} differ; convert one with astype")
    if a.shape[-1] != b.shape[-2 if b.ndim > 1 else 0]:
        raise ShapeError(
            f"matmul: a has {a.shape[-1]} columns, b has {b.shape[-2 if b.ndim > 1 else 0]} rows\n"
            f"  a {a.shape}, b {b.shape}"
        )
    row, column = a.ndim == 1, b.ndim == 1
    y = _Matmul()(reshape(a, (1, -1)) if row else a, reshape(b, (-1, 1)) if column else b)
    if row:
        y = reshape(y, y.shape[:-2] + y.shape[-1:])
    return reshape(y, y.shape[:-1]) if column else y


class _Matmul(Function):
    name = "matmul"

    def forward(self, a: Array, b: Array) -> Array:
        self.saved = (a, b)
        try:
            return _product(a, b)
        except ValueError:
            raise ShapeError(f"matmul: {a.shape} and {b.shape} do not broadcast") from None

    def backward(self, dy: Array) -> tuple[Array | None, Array | None]:
        a, b = self.saved
        da = unbroadcast(_product(dy, b.swapaxes(-1, -2)), a.shape) if self.needs[0] else None
        if not self.needs[1]:
            return da, None
        if b.ndim == 2:  # one product over all rows, not one for each matrix of the stack
            a, dy = _rows(a), _rows(dy)
        return da, unbroadcast(_product(a.swapaxes(-1, -2), dy), b.shape)


def _rows(x: Array) -> Array:
    """A stack of matrices (..., M, K) as one matrix (rows, K)."""
    return x if x.ndim == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


# --- any array module ---


def _product_array(a: Array, b: Array) -> Array:
    return a @ b


# --- NumPy: products split only by shape, so that any number of threads gives the same bits; how
# BLAS splits one depends on its number of threads ---

_PIECE = (512, 512)  # rows and columns of a piece: enough for BLAS to run at full speed
_WORK = 1 << 20  # multiplications in a piece of a stack: enough to occupy a thread


def _product_numpy(a: Array, b: Array) -> Array:
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


_product: Any = by_device(cpu=_product_numpy, cuda=_product_array)
