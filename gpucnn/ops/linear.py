"""The dense layer: every output is a weighted sum of every input."""

from typing import Any

import numpy as np

from gpucnn.autograd import Function
from gpucnn.cpu import empty, parallel, spans
from gpucnn.device import Array, by_device
from gpucnn.errors import DtypeError, ShapeError
from gpucnn.ops._exact import total
from gpucnn.ops.conv2d.im2col import sum_rows
from gpucnn.tensor import Tensor

Gradients = tuple[Array | None, Array | None, Array | None]


def linear(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """y = x @ w.T + b.

    x is (..., IN), w is (OUT, IN), b is (OUT,); the result is (..., OUT).

    Raises ShapeError if IN or OUT differ, DtypeError if dtypes differ.
    """
    if w.ndim != 2 or x.ndim < 1:
        raise ShapeError(f"linear: expected x (..., IN) and w (OUT, IN), got {x.shape}, {w.shape}")
    out, features = w.shape
    if x.shape[-1] != features:
        raise ShapeError(
            f"linear: x has {x.shape[-1]} features, w expects {features}\n"
            f"  x {x.shape}, w {w.shape}; build the layer with in_features={x.shape[-1]}"
        )
    if b is not None and b.shape != (out,):
        raise ShapeError(f"linear: expected a bias of shape ({out},), got {b.shape}")
    if x.dtype != w.dtype or (b is not None and b.dtype != x.dtype) or x.dtype.kind != "f":
        raise DtypeError(
            f"linear: x is {x.dtype}, w is {w.dtype}, b is {None if b is None else b.dtype}\n"
            "  expected one floating-point dtype for all; convert with .astype"
        )
    return _Linear()(x, w, b)


class _Linear(Function):
    name = "linear"

    def forward(self, x: Array, w: Array, b: Array | None) -> Array:
        self.saved = (x, w)
        y = _forward(x.reshape(-1, x.shape[-1]), w, b)
        return y.reshape(*x.shape[:-1], w.shape[0])

    def backward(self, dy: Array) -> Gradients:
        assert self.saved is not None
        x, w = self.saved
        dy2, x2 = dy.reshape(-1, w.shape[0]), x.reshape(-1, w.shape[1])
        dx, dw, db = _backward(dy2, x2, w, self.needs)
        return (None if dx is None else dx.reshape(x.shape)), dw, db


# --- any array module ---


def _forward_array(x: Array, w: Array, b: Array | None) -> Array:
    y = x @ w.T
    if b is not None:
        y += b
    return y


def _backward_array(dy: Array, x: Array, w: Array, needs: tuple[bool, ...]) -> Gradients:
    dx = dy @ w if needs[0] else None
    dw = dy.T @ x if needs[1] else None
    db = total(dy, 0) if needs[2] else None
    return dx, dw, db


# --- NumPy: the products cut into pieces by shape, so that every number of threads gives the
# same bits; BLAS's own cutting depends on the number of its threads ---

# Rows and columns of one piece: enough for BLAS to multiply at full speed.  It multiplies the
# weight's gradient, a product over few images, faster in long rows.
_PIECE, _GRADIENT_PIECE = (1024, 512), (256, 4096)


def _pieces(array: Array, piece: tuple[int, int]) -> list[tuple[slice, slice]]:
    rows, columns = array.shape
    return [(r, c) for r in spans(rows, piece[0]) for c in spans(columns, piece[1])]


def _forward_numpy(x: Array, w: Array, b: Array | None) -> Array:
    y = empty((len(x), len(w)), x.dtype)

    def multiply(piece: tuple[slice, slice]) -> None:
        rows, outputs = piece
        np.matmul(x[rows], w[outputs].T, out=y[piece])
        if b is not None:
            y[piece] += b[outputs]

    parallel(multiply, _pieces(y, _PIECE))
    return y


def _backward_numpy(dy: Array, x: Array, w: Array, needs: tuple[bool, ...]) -> Gradients:
    dx = empty(x.shape, x.dtype) if needs[0] else None
    dw = empty(w.shape, w.dtype) if needs[1] else None

    def to_input(piece: tuple[slice, slice]) -> None:
        assert dx is not None
        np.matmul(dy[piece[0]], w[:, piece[1]], out=dx[piece])

    def to_weight(piece: tuple[slice, slice]) -> None:
        assert dw is not None
        np.matmul(dy[:, piece[0]].T, x[:, piece[1]], out=dw[piece])

    if needs[0]:
        parallel(to_input, _pieces(x, _PIECE))
    if needs[1]:
        parallel(to_weight, _pieces(w, _GRADIENT_PIECE))
    return dx, dw, sum_rows(dy) if needs[2] else None


_forward: Any = by_device(cpu=_forward_numpy, cuda=_forward_array)
_backward: Any = by_device(cpu=_backward_numpy, cuda=_backward_array)
