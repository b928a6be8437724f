"""The dense layer: every output is a weighted sum of all inputs."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn.autograd import Function
from gpucnn.cpu import empty, parallel, spans
from gpucnn.device import Array, by_device, device_of
from gpucnn.errors import ShapeError
from gpucnn.ops._checks import check_bias_and_dtypes
from gpucnn.ops._exact import narrowed, sum_rows, total, widened
from gpucnn.ops._half import half_copy, rounded
from gpucnn.ops._kernels import takes
from gpucnn.ops.gemm import Epilogue, multiply
from gpucnn.ops.relu import _relu, _relu_backward
from gpucnn.precision import is_half, uses_tf32
from gpucnn.tensor import Tensor

Gradients = tuple[Array | None, Array | None, Array | None]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    """y = x @ weight.T + bias.

    x is (..., IN), weight (OUT, IN), bias (OUT,); the result is (..., OUT).  relu fuses the ReLU
    that often follows: negative results become 0.

    Under autocast the operands are rounded to half precision, sums and bias are float32, and the
    result has half precision.  On a GPU, tensor cores multiply half precision, and float32 as
    set_float32_precision says.

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
    dtype = check_bias_and_dtypes("linear", x, weight, bias) or x.dtype
    return _Linear(relu, dtype, weight.cache() if weight.is_leaf else None)(x, weight, bias)


class _Linear(Function):
    """A dense layer with the ReLU fused into it, computed in `dtype`."""

    name = "linear"

    def __init__(self, relu: bool, dtype: np.dtype[Any], cache: dict[Any, Any] | None) -> None:
        self.relu, self.dtype, self.cache = relu, dtype, cache

    def forward(self, x: Array, weight: Array, bias: Array | None) -> Array:
        y, self.saved = _forward(_rows(x), weight, bias, self.relu, self.dtype, self.cache)
        self.positive = self.relu and isinstance(self.saved, _CudaSaved)
        return y.reshape(*x.shape[:-1], weight.shape[0])

    def backward(self, dy: Array) -> Gradients:
        assert self.saved is not None
        mask = self.mask(0) if self.needs[0] and isinstance(self.saved, _CudaSaved) else None
        dx, dweight, dbias = self.saved.backward(_rows(dy), self.needs, mask, self.masked)
        shape = (*dy.shape[:-1], self.saved.weight.shape[1])
        return (None if dx is None else dx.reshape(shape)), dweight, dbias


def _rows(x: Array) -> Array:
    """x (..., F) as (rows, F)."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


@dataclass(eq=False)
class _Saved:
    """The state of a dense layer: what it multiplied, and the dtypes of the gradients."""

    x: Array  # (rows, IN)
    weight: Array  # (OUT, IN)
    y: Array | None  # the result, if a ReLU was fused
    dtypes: tuple[Any, Any, Any]  # of x, weight and bias

    def backward(
        self, dy: Array, needs: tuple[bool, ...], mask: float | None, masked: bool
    ) -> Gradients:
        if self.y is not None and not masked:
            dy = _relu_backward(dy, self.y)
        gradients = _backward(widened(dy), self.x, self.weight, needs)
        dx, dweight, dbias = (
            None if gradient is None else narrowed(gradient, dtype)
            for gradient, dtype in zip(gradients, self.dtypes, strict=True)
        )
        return dx, dweight, dbias


def _gradient_dtypes(x: Array, weight: Array, bias: Array | None) -> tuple[Any, Any, Any]:
    return x.dtype, weight.dtype, weight.dtype if bias is None else bias.dtype


# --- any array module ---


def _forward_array(
    x: Array,
    weight: Array,
    bias: Array | None,
    relu: bool,
    dtype: np.dtype[Any],
    cache: dict[Any, Any] | None,
) -> tuple[Array, _Saved]:
    y = x @ weight.T
    if bias is not None:
        y += bias
    if relu:
        y = _relu(y)
    return y, _Saved(x, weight, y if relu else None, _gradient_dtypes(x, weight, bias))


def _backward_array(dy: Array, x: Array, weight: Array, needs: tuple[bool, ...]) -> Gradients:
    dx = dy @ weight if needs[0] else None
    dweight = dy.T @ x if needs[1] else None
    dbias = total(dy, 0) if needs[2] else None
    return dx, dweight, dbias


# --- CUDA ---


@dataclass(eq=False)
class _CudaSaved(_Saved):
    given: Array  # x, of which `x` may be a rounded copy: it masks its own gradient

    def backward(
        self, dy: Array, needs: tuple[bool, ...], mask: float | None, masked: bool
    ) -> Gradients:
        if self.y is not None and not masked:
            dy = _relu_backward(dy, self.y)
        tf32 = uses_tf32(device_of(dy))
        dx = dweight = dbias = None
        if needs[0]:
            epilogue = Epilogue() if mask is None else Epilogue(mask=self.given, scale=mask)
            dx, _ = multiply("NN", dy, self.weight, self.dtypes[0], epilogue, tf32)
        if needs[1]:
            epilogue = Epilogue(column_sum=needs[2])
            dweight, dbias = multiply("TN", dy, self.x, self.dtypes[1], epilogue, tf32)
        elif needs[2]:
            dbias = total(dy, 0)
        return dx, dweight, None if dbias is None else narrowed(dbias, self.dtypes[2])


def _forward_cuda(
    x: Array,
    weight: Array,
    bias: Array | None,
    relu: bool,
    dtype: np.dtype[Any],
    cache: dict[Any, Any] | None,
) -> tuple[Array, _Saved]:
    if not takes(x):
        return _forward_array(x, weight, bias, relu, dtype, cache)
    dtypes = _gradient_dtypes(x, weight, bias)
    image, copy = narrowed(x, dtype), half_copy(weight, dtype, cache)
    epilogue = Epilogue(bias=bias, relu=relu)
    y, _ = multiply("NT", image, copy, dtype, epilogue, uses_tf32(device_of(x)))
    return y, _CudaSaved(image, copy, y if relu else None, dtypes, x)


# --- NumPy: products split only by shape, so that any number of threads gives the same bits; how
# BLAS splits one depends on its number of threads ---

# Rows and columns of one piece: enough for BLAS to run at full speed.  The weight's gradient, a
# product over few images, is faster in long rows.
_PIECE, _GRADIENT_PIECE = (1024, 512), (256, 4096)


def _pieces(array: Array, piece: tuple[int, int]) -> list[tuple[slice, slice]]:
    rows, columns = array.shape
    return [(r, c) for r in spans(rows, piece[0]) for c in spans(columns, piece[1])]


def _forward_numpy(
    x: Array,
    weight: Array,
    bias: Array | None,
    relu: bool,
    dtype: np.dtype[Any],
    cache: dict[Any, Any] | None,
) -> tuple[Array, _Saved]:
    dtypes = _gradient_dtypes(x, weight, bias)
    if is_half(dtype):  # computed in float32, as on tensor cores
        x, weight = rounded(x, dtype), rounded(weight, dtype)
        bias = None if bias is None else widened(bias)
    y = empty((len(x), len(weight)), x.dtype)

    def multiply(piece: tuple[slice, slice]) -> None:
        rows, outputs = piece
        np.matmul(x[rows], weight[outputs].T, out=y[piece])
        if bias is not None:
            y[piece] += bias[outputs]

    parallel(multiply, _pieces(y, _PIECE))
    y = narrowed(_relu(y) if relu else y, dtype)
    return y, _Saved(x, weight, y if relu else None, dtypes)


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


_forward: Any = by_device(cpu=_forward_numpy, cuda=_forward_cuda)
_backward: Any = by_device(cpu=_backward_numpy, cuda=_backward_array)
