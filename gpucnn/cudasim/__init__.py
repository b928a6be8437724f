"""A CUDA device made of CPU cores: the part of CuPy that gpucnn uses, and kernels through g++.

    gpucnn.tensor(x, device="cudasim")

Everything in this module has CuPy's name and meaning; README.md tells how to use it.
"""

from importlib import resources as _resources

import numpy as _np

from gpucnn.cudasim import compiler as _compiler
from gpucnn.cudasim import driver as cuda
from gpucnn.cudasim.array import allocate as _allocate
from gpucnn.cudasim.array import lift as _lift
from gpucnn.cudasim.array import ndarray, unwrap, wrap
from gpucnn.cudasim.module import RawModule

_ELEMENTWISE = """
    abs absolute add bitwise_and bitwise_or bitwise_xor ceil cos divide equal exp expm1 floor
    floor_divide greater greater_equal invert isfinite isinf isnan less less_equal log log1p log2
    logical_and logical_not logical_or logical_xor maximum minimum mod multiply negative not_equal
    power reciprocal remainder rint sign sin sqrt square subtract tanh true_divide
"""
_OTHERS = """
    all any argmax argmin argsort array_equal broadcast_to clip concatenate copyto count_nonzero
    cumsum diff dot einsum expand_dims flip matmul max mean min moveaxis nonzero ones_like pad prod
    ravel repeat reshape roll rollaxis sort split squeeze stack std sum swapaxes take tensordot tile
    transpose trace tril triu unique var where zeros_like take_along_axis bincount allclose isclose
    nan_to_num broadcast_arrays full_like ascontiguousarray
"""
for _name in (_ELEMENTWISE + _OTHERS).split():
    globals()[_name] = _lift(_name)

for _name in (
    "float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool_ dtype newaxis "
    "inf nan pi e integer floating generic finfo iinfo result_type promote_types can_cast"
).split():
    globals()[_name] = getattr(_np, _name)


def empty(shape, dtype=float, order="C"):  # type: ignore[no-untyped-def]
    """Fresh memory of the device, full of poison."""
    return wrap(_allocate(shape, dtype))


def empty_like(x, dtype=None):  # type: ignore[no-untyped-def]
    """Fresh memory of x's shape."""
    return wrap(_allocate(x.shape, x.dtype if dtype is None else dtype))


def full(shape, value, dtype=None):  # type: ignore[no-untyped-def]
    """An array of `value`."""
    dtype = _np.asarray(unwrap(value)).dtype if dtype is None else dtype
    result = _allocate(shape, dtype)
    result[...] = unwrap(value)
    return wrap(result)


def zeros(shape, dtype=float, order="C"):  # type: ignore[no-untyped-def]
    """An array of zeros."""
    return full(shape, 0, dtype)


def ones(shape, dtype=float, order="C"):  # type: ignore[no-untyped-def]
    """An array of ones."""
    return full(shape, 1, dtype)


def array(source, dtype=None, copy=True):  # type: ignore[no-untyped-def]
    """A copy of `source` on the device: of the host's arrays, lists and numbers, or of the device's."""
    host = _np.asarray(source._host if isinstance(source, ndarray) else source, dtype)
    if not copy and isinstance(source, ndarray) and host is source._host:
        return source
    result = _allocate(host.shape, host.dtype)
    result[...] = host
    return wrap(result)


def asarray(source, dtype=None):  # type: ignore[no-untyped-def]
    """`source` itself if it is an array of the device and of this dtype, else a copy there."""
    return array(source, dtype, copy=False)


def ascontiguousarray(x):  # type: ignore[no-untyped-def]
    """x itself if its rows follow each other without gaps, else a copy."""
    return x if x.flags.c_contiguous else array(x)


def arange(*args, dtype=None):  # type: ignore[no-untyped-def]
    return array(_np.arange(*args, dtype=dtype))


def asnumpy(x):  # type: ignore[no-untyped-def]
    """A copy on the host."""
    return x.get() if isinstance(x, ndarray) else _np.asarray(x)


def get_array_module(*arrays):  # type: ignore[no-untyped-def]
    """This module if one of the arrays is the device's, else NumPy."""
    import gpucnn.cudasim

    return gpucnn.cudasim if any(isinstance(x, ndarray) for x in arrays) else _np


def require_compiler():  # type: ignore[no-untyped-def]
    """DeviceError, with the remedy, if this machine has no C++ compiler."""
    _compiler.compiler()


def kernel_headers():  # type: ignore[no-untyped-def]
    """Headers of kernels/ that have another text here: instructions that only a GPU has."""
    return {"ptx.cuh": '#include "ptx.h"\n'}


def kernel_folder():  # type: ignore[no-untyped-def]
    """Where the kernels' sources are, for debuggers."""
    return f"{_resources.files('gpucnn.kernels')}/"


class lib:  # a namespace, named as numpy.lib
    """Views that slide over an array."""

    class stride_tricks:
        as_strided = staticmethod(_lift("as_strided", _np.lib.stride_tricks))
        sliding_window_view = staticmethod(_lift("sliding_window_view", _np.lib.stride_tricks))


__all__ = ["RawModule", "cuda", "ndarray"]
