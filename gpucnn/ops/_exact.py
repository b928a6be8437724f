"""Exact zeros next to infinities, and float16 values computed in float32."""

from typing import Any

import numpy as np

from gpucnn.device import Array

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


def wide(dtype: Any) -> Any:
    """The dtype to accumulate in: float32 for float16, whose sums overflow beyond 65504."""
    return np.dtype(np.float32) if dtype == np.float16 else dtype


def widened(x: Array) -> Array:
    """x in the dtype to compute in: a float32 copy for float16, else x itself."""
    return x.astype(np.float32) if x.dtype == np.float16 else x


def narrowed(y: Array, dtype: Any) -> Array:
    """y rounded to `dtype`, or y itself if it has it; values out of range become infinite."""
    if y.dtype == dtype:
        return y
    with np.errstate(over="ignore"):
        return y.astype(dtype)


def total(x: Array, axes: int | tuple[int, ...]) -> Array:
    """The sum over `axes`, accumulated in float32 for float16."""
    return narrowed(x.sum(axis=axes, dtype=wide(x.dtype)), x.dtype)
