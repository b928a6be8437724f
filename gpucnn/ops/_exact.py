"""Exact zeros next to infinities, half precision computed in float32, and sums of rows."""

from typing import Any

import numpy as np

from gpucnn.cpu import parallel, spans
from gpucnn.device import Array
from gpucnn.integers import ceil_div
from gpucnn.precision import is_half

_INTEGERS = {2: np.int16, 4: np.int32, 8: np.int64}  # by the size of an element in bytes


def select(values: Array, kept: Array, out: Array) -> None:
    """Set out to `values` where `kept` (bool) is true, else to 0; NumPy arrays only.

    Multiplies the bits, as integers, by 1 or 0.  That is as fast as a product of floats, and gives
    0 for a masked infinity, where inf * 0 would be NaN.
    """
    np.multiply(bits(values), kept, out=bits(out))


def bits(x: Array) -> Array:
    """x's memory as integers; NumPy arrays only."""
    return x.view(_INTEGERS[x.dtype.itemsize])


def forward_strides(x: Array) -> Array:
    """x, or a copy of it if a stride is negative.

    With negative strides, the last bits of NumPy 2.0's exp, log and power of float64 depend on the
    addresses of operand and result.
    """
    return x.copy() if any(stride < 0 for stride in x.strides) else x


def wide(dtype: Any) -> Any:
    """The dtype to accumulate in: float32 for float16, whose sums overflow beyond 65504, and for
    bfloat16, whose sums have two digits."""
    return np.dtype(np.float32) if is_half(dtype) else dtype


def widened(x: Array) -> Array:
    """x in the dtype to compute in: a float32 copy for half precision, else x itself."""
    return x.astype(np.float32) if is_half(x.dtype) else x


def narrowed(y: Array, dtype: Any) -> Array:
    """y rounded to `dtype`, or y itself if it has it; values out of range become infinite."""
    if y.dtype == dtype:
        return y
    with np.errstate(over="ignore"):
        return y.astype(dtype)


def total(x: Array, axes: int | tuple[int, ...]) -> Array:
    """The sum over `axes`, accumulated in float32 for half precision."""
    return narrowed(x.sum(axis=axes, dtype=wide(x.dtype)), x.dtype)


def add_rows(rows: Array) -> Array:
    """The sum (C,) of rows (M, C) that are in cache; float32 for half precision.

    BLAS sums 5 times faster than sum() does.
    """
    return np.ones(len(rows), wide(rows.dtype)) @ rows


def sum_rows(rows: Array) -> Array:
    """The sum (C,) of rows (M, C): the gradient of a bias."""
    step = 4096
    parts = np.zeros((max(1, ceil_div(len(rows), step)), rows.shape[1]), wide(rows.dtype))

    def add(span: slice) -> None:
        parts[span.start // step] = add_rows(rows[span])

    parallel(add, list(spans(len(rows), step)))
    return narrowed(parts[0] if len(parts) == 1 else parts.sum(axis=0), rows.dtype)
