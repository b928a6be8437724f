"""What the ops share to keep infinities apart from zeros, and float16 from its limits."""

from typing import Any

import numpy as np

from gpucnn.device import Array

_INTEGERS = {2: np.int16, 4: np.int32, 8: np.int64}  # by the size of an element in bytes


def select(values: Array, kept: Array, out: Array) -> None:
    """Set out to `values` where `kept` (bool) is true, and to 0 elsewhere, on NumPy.

    A product with 1 and 0, as fast as one of floats, but of the bits: an infinity or a NaN that is
    not kept leaves 0, where inf * 0 would be NaN.
    """
    np.multiply(bits(values), kept, out=bits(out))


def bits(x: Array) -> Array:
    """The same memory as integers, on NumPy."""
    return x.view(_INTEGERS[x.dtype.itemsize])


def wide(dtype: Any) -> Any:
    """The dtype to add up in: float32 for float16, whose sums overflow beyond 65504."""
    return np.dtype(np.float32) if dtype == np.float16 else dtype


def widened(x: Array) -> Array:
    """x in the dtype to compute in: a float32 copy of float16, else x itself."""
    return x.astype(np.float32) if x.dtype == np.float16 else x


def narrowed(y: Array, dtype: Any) -> Array:
    """y in `dtype` again, itself if it is so already; what is too large for it is infinite."""
    if y.dtype == dtype:
        return y
    with np.errstate(over="ignore"):
        return y.astype(dtype)


def total(x: Array, axes: int | tuple[int, ...]) -> Array:
    """The sum over these axes, of float16 added up in float32."""
    return narrowed(x.sum(axis=axes, dtype=wide(x.dtype)), x.dtype)
