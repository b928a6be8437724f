"""The dense layer: every output is a weighted sum of all inputs."""

from typing import Any

import numpy as np

from gpucnn.autograd import Function
from gpucnn.cpu import empty, parallel, spans
from gpucnn.device import Array, by_device
from gpucnn.errors import ShapeError
from gpucnn.ops._checks import check_bias_and_dtypes
from gpucnn.ops._exact import sum_rows, total
from gpucnn.tensor import Tensor

Gradients = tuple[Array | None, Array | None, Array | None]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x @ weight.T + bias.

    x is (..., IN), weight (OUT, IN), bias (OUT,); the result is (..., OUT).

    Raises ShapeError if IN or OUT differ, DtypeError if dtypes differ.
    """
    if weight.ndim != 2 or x.ndim < 1:
        raise ShapeError(
            f"linear: expected x (..., IN) and weight (OUT, IN), got {x.shape}, {weight.shape}"
        )
    features = weight.shape[1]
    if x.shape[-1] != features:
        raise ShapeError(
            f"linear: x has {x.shape[-1]} features, weight expects {features}\n"
            f"  x {x.shape}, weight {weight.shape}; "
            f"build the layer with in_features={x.shape[-1]}"
        )
    check_bias_and_dtypes("linear", x, weight, bias)
    return _Linear()(x, weight, bias)


class _Linear(Function):
    name = "linear"

    def forward(self, x: Array, weight: Array, bias: Array | None) -> Array:
        self.saved = (x, weight)
        y = _forward(x.reshape(-1, x.shape[-1]), weight, bias)
        return y.reshape(*x.shape[:-1], weight.shape[0])

    def backward(self, dy: Array) -> Gradients:
        assert self.saved is not None
        x, weight = self.saved
        dy2, x2 = dy.reshape(-1, weight.shape[0]), x.reshape(-1, weight.shape[1])
        dx, dweight, dbias = _backward(dy2, x2, weight, self.needs)
        return (None if dx is None else dx.reshape(x.shape)), dweight, dbias


# --- any array module ---


def _forward_array(x: Array, weight: Array, bias: Array | None) -> Array:
    y = x @ weight.T
    if bias is not None:
        y += bias
    return y


def _backward_array(dy: Array, x: Array, weight: Array, needs: tuple[bool, ...]) -> Gradients:
    dx = dy @ weight if needs[0] else None
    dweight = dy.T @ x if needs[1] else None
    dbias = total(dy, 0) if needs[2] else None
    return dx, dweight, dbias


# --- NumPy: products split only by shape, so that any number of threads gives the same bits; how
# BLAS splits one depends on its number of threads ---

# Rows and columns of one piece: enough for BLAS to run at full speed.  The weight's gradient, a
# product over few images, is faster in long rows.
_PIECE, _GRADIENT_PIECE = (1024, 512), (256, 4096)


def _pieces(array: Array, piece: tuple[int, int]) -> list[tuple[slice, slice]]:
    rows, columns = array.shape
    return [(r, c) for r in spans(rows, piece[0]) for c in spans(columns, piece[1])]


def _forward_numpy(x: Array, weight: Array, bias: Array | None) -> Array:
    y = empty((len(x), len(weight)), x.dtype)

    def multiply(piece: tuple[slice, slice]) -> None:
        rows, outputs = piece
        np.matmul(x[rows], weight[outputs].T, out=y[piece])
        if bias is not None:
            y[piece] += bias[outputs]

    parallel(multiply, _pieces(y, _PIECE))
    return y


def _backward_numpy(dy: Array, x: Array, weight: Array, needs: tuple[bool, ...]) -> Gradients:
    dx = empty(x.shape, x.dtype) if needs[0] else None
    dweight = empty(weight.shape, weight.dtype) if needs[1] else None

    def to_input(piece: tuple[slice, slice]) -> None:
        assert dx is not None
        np.matmul(dy[piece[0]], weight[:, piece[1]], out=dx[piece])

    def to_weight(piece: tuple[slice, slice]) -> None:
        assert dweight is not None
        np.matmul(dy[:, piece[0]].T, x[:, piece[1]], out=dweight[piece])

    if needs[0]:
        parallel(to_input, _pieces(x, _PIECE))
    if needs[1]:
        parallel(to_weight, _pieces(weight, _GRADIENT_PIECE))
    return dx, dweight, sum_rows(dy) if needs[2] else None


_forward: Any = by_device(cpu=_forward_numpy, cuda=_forward_array)
_backward: Any = by_device(cpu=_backward_numpy, cuda=_backward_array)
