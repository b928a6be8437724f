"""Functions that create arrays, under CuPy's names."""

from typing import Any

import numpy as np

from gpucnn.cudasim import memory
from gpucnn.cudasim.arrays import ndarray, run, unwrap, wrap
from gpucnn.cudasim.capture import refused_transfer
from gpucnn.cudasim.streams import current_capture


def empty(shape: Any, dtype: Any = float) -> ndarray:
    """An array of uninitialised memory, filled with poison."""
    return ndarray(shape, dtype)


def empty_like(prototype: Any, dtype: Any = None) -> ndarray:
    """An uninitialised array of prototype's shape."""
    return ndarray(prototype.shape, prototype.dtype if dtype is None else dtype)


def full(shape: Any, fill_value: Any, dtype: Any = None) -> Any:
    """An array of `fill_value`."""
    dtype = np.asarray(unwrap(fill_value)).dtype if dtype is None else dtype
    result = wrap(memory.result(shape, dtype))
    result[...] = fill_value
    return result


def full_like(a: Any, fill_value: Any, dtype: Any = None) -> Any:
    """An array of `fill_value` with a's shape."""
    return full(a.shape, fill_value, a.dtype if dtype is None else dtype)


def zeros(shape: Any, dtype: Any = float) -> Any:
    """An array of zeros."""
    return full(shape, 0, dtype)


def zeros_like(a: Any, dtype: Any = None) -> Any:
    """An array of zeros with a's shape."""
    return full_like(a, 0, dtype)


def ones(shape: Any, dtype: Any = float) -> Any:
    """An array of ones."""
    return full(shape, 1, dtype)


def ones_like(a: Any, dtype: Any = None) -> Any:
    """An array of ones with a's shape."""
    return full_like(a, 1, dtype)


def array(obj: Any, dtype: Any = None, copy: bool = True) -> Any:
    """A copy on the device of an array on either device, a list or a number."""
    if isinstance(obj, ndarray):
        dtype = obj.dtype if dtype is None else np.dtype(dtype)
        return obj if not copy and dtype == obj.dtype else run(np.array, (obj, dtype), {})
    if current_capture() is not None and not np.isscalar(obj):
        raise refused_transfer("H2D")
    return wrap(memory.constant(np.asarray(obj, dtype)))


def asarray(a: Any, dtype: Any = None) -> Any:
    """`a` itself if it is an array on the device with this dtype, else a copy there."""
    return array(a, dtype, copy=False)


def ascontiguousarray(a: Any, dtype: Any = None) -> Any:
    """`a` itself if it is C-contiguous, else a copy."""
    a = asarray(a, dtype)
    return a if a.flags.c_contiguous else array(a)


def arange(start: Any, stop: Any = None, step: Any = 1, dtype: Any = None) -> Any:
    """numpy.arange on the device."""
    begin, end = (0, start) if stop is None else (start, stop)
    return wrap(memory.constant(np.arange(begin, end, step, dtype=dtype)))


def asnumpy(a: Any) -> memory.Host:
    """A copy on the host; a NumPy array is returned unchanged."""
    return a.get() if isinstance(a, ndarray) else np.asarray(a)
