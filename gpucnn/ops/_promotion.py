"""The dtype of a result: bfloat16 beside numbers, and half precision beside float32."""

from collections.abc import Callable
from typing import Any

import numpy as np

from gpucnn.autograd import Function
from gpucnn.device import Array
from gpucnn.ops._exact import narrowed, widened
from gpucnn.precision import autocast_dtype, is_half
from gpucnn.tensor import Tensor


def promoted(*tensors: Tensor) -> list[Tensor]:
    """The tensors, with half precision converted to float32 if autocast made several dtypes."""
    if autocast_dtype() is None or all(x.dtype != np.float32 for x in tensors):
        return list(tensors)
    return [_Widen()(x) if is_half(x.dtype) else x for x in tensors]


def apply(function: Callable[[Any, Any], Array], a: Any, b: Any) -> Array:
    """function(a, b) in the dtype of the operands, of which one may be a number.

    NumPy and CuPy promote bfloat16 beside a number.
    """
    dtype = a.dtype if hasattr(a, "dtype") else b.dtype
    if dtype.kind != "V":
        return function(a, b)
    if hasattr(a, "dtype") and hasattr(b, "dtype"):
        return narrowed(function(a, b), dtype)
    wide_a, wide_b = (widened(x) if hasattr(x, "dtype") else x for x in (a, b))
    return narrowed(function(wide_a, wide_b), dtype)


class _Widen(Function):
    name = "astype"

    def forward(self, x: Array) -> Array:
        self.old = x.dtype
        return widened(x)

    def backward(self, dy: Array) -> Array:
        return narrowed(dy, self.old)


def float_operand(x: Array) -> Array:
    """A float32 copy of bfloat16, which NumPy and CuPy promote beside a number; else x itself."""
    return widened(x) if x.dtype.kind == "V" else x
