"""Functions that make arrays of the device, under CuPy's names."""

from typing import Any

import numpy as np

from gpucnn.cudasim import memory
from gpucnn.cudasim.arrays import ndarray, unwrap, wrap


def empty(shape: Any, dtype: Any = float) -> ndarray:
    """Fresh memory of the device, full of poison."""
    return ndarray(shape, dtype)


def empty_like(x: Any, dtype: Any = None) -> ndarray:
    """Fresh memory of x's shape."""
    return ndarray(x.shape, x.dtype if dtype is None else dtype)


def full(shape: Any, value: Any, dtype: Any = None) -> Any:
    """An array of `value`."""
    value = unwrap(value)
    result = memory.allocate(shape, np.asarray(value).dtype if dtype is None else dtype)
    result[...] = value
    return wrap(result)


def full_like(x: Any, value: Any, dtype: Any = None) -> Any:
    """An array of `value`, of x's shape."""
    return full(x.shape, value, x.dtype if dtype is None else dtype)


def zeros(shape: Any, dtype: Any = float) -> Any:
    """An array of zeros."""
    return full(shape, 0, dtype)


def zeros_like(x: Any, dtype: Any = None) -> Any:
    """An array of zeros, of x's shape."""
    return full_like(x, 0, dtype)


def ones(shape: Any, dtype: Any = float) -> Any:
    """An array of ones."""
    return full(shape, 1, dtype)


def ones_like(x: Any, dtype: Any = None) -> Any:
    """An array of ones, of x's shape."""
    return full_like(x, 1, dtype)


def array(source: Any, dtype: Any = None, copy: bool = True) -> Any:
    """A copy on the device of the host's arrays, lists and numbers, or of the device's arrays."""
    host = np.asarray(source._host if isinstance(source, ndarray) else source, dtype)
    if not copy and isinstance(source, ndarray) and host is source._host:
        return source
    result = memory.allocate(host.shape, host.dtype)
    result[...] = host
    return wrap(result)


def asarray(source: Any, dtype: Any = None) -> Any:
    """`source` itself if it is an array of the device and of this dtype, else a copy there."""
    return array(source, dtype, copy=False)


def ascontiguousarray(x: Any, dtype: Any = None) -> Any:
    """x itself if its rows follow each other without gaps, else a copy."""
    x = asarray(x, dtype)
    return x if x.flags.c_contiguous else array(x)


def arange(*bounds: Any, dtype: Any = None) -> Any:
    """Evenly spaced numbers: numpy.arange."""
    return array(np.arange(*bounds, dtype=dtype))


def asnumpy(x: Any) -> memory.Host:
    """A copy on the host."""
    return x.get() if isinstance(x, ndarray) else np.asarray(x)
