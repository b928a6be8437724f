"""Matrix products."""

from typing import Any

from gpucnn.autograd import Function, unbroadcast
from gpucnn.device import Array
from gpucnn.errors import DtypeError, ShapeError
from gpucnn.ops.elementwise import as_tensor
from gpucnn.ops.shape import reshape
from gpucnn.tensor import Tensor


def matmul(a: Any, b: Any) -> Tensor:
    """a @ b: (..., M, K) times (..., K, N) is (..., M, N); leading axes broadcast.

    A vector stands for one row on the left, one column on the right, as in NumPy.
    Raises ShapeError if the inner sizes differ, DtypeError if the dtypes do.
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
            return a @ b
        except ValueError:
            raise ShapeError(f"matmul: {a.shape} and {b.shape} do not broadcast") from None

    def backward(self, dy: Array) -> tuple[Array | None, Array | None]:
        a, b = self.saved or ()
        return (
            unbroadcast(dy @ b.swapaxes(-1, -2), a.shape) if self.needs[0] else None,
            unbroadcast(a.swapaxes(-1, -2) @ dy, b.shape) if self.needs[1] else None,
        )
