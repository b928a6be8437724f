"""A CUDA device made of CPU cores: the part of CuPy that gpucnn uses, and kernels through g++.

    gpucnn.tensor(x, device="cudasim")

Everything in this module has CuPy's name and meaning, but for the three functions at its end;
README.md tells how to use it.
"""

import numpy as _np

from gpucnn.cudasim import compiler as _compiler
from gpucnn.cudasim import driver as cuda
from gpucnn.cudasim import memory as _memory
from gpucnn.cudasim.arrays import lift as _lift
from gpucnn.cudasim.arrays import may_share_memory, ndarray
from gpucnn.cudasim.creation import (
    arange,
    array,
    asarray,
    ascontiguousarray,
    asnumpy,
    empty,
    empty_like,
    full,
    full_like,
    ones,
    ones_like,
    zeros,
    zeros_like,
)
from gpucnn.cudasim.module import RawModule

_FUNCTIONS = """
    abs absolute add all any argmax argmin argsort array_equal bincount broadcast_to ceil clip
    concatenate copyto cos cumsum divide dot einsum equal exp expand_dims expm1 flip floor
    floor_divide greater greater_equal isfinite isinf isnan less less_equal log log1p logical_and
    logical_not logical_or matmul max maximum mean min minimum moveaxis multiply negative not_equal
    pad power prod ravel repeat reshape roll rint sign sin sqrt square squeeze stack std subtract
    sum swapaxes take take_along_axis tanh tensordot tile transpose true_divide unique var where
"""
for _name in _FUNCTIONS.split():
    globals()[_name] = _lift(_name)

_NAMES = """
    bool_ dtype e finfo float16 float32 float64 floating generic iinfo inf int8 int16 int32 int64
    integer nan newaxis pi promote_types result_type uint8 uint16 uint32 uint64
"""
for _name in _NAMES.split():
    globals()[_name] = getattr(_np, _name)


class lib:  # a namespace, named as numpy.lib
    """Views that slide over an array."""

    class stride_tricks:
        as_strided = staticmethod(_lift("as_strided", _np.lib.stride_tricks))
        sliding_window_view = staticmethod(_lift("sliding_window_view", _np.lib.stride_tricks))


def get_default_memory_pool() -> _memory.MemoryPool:
    """The pool that every array's memory comes from."""
    return _memory.pool


def require_compiler() -> None:
    """DeviceError, with the remedy, if this machine has no C++ compiler."""
    _compiler.compiler()


def kernel_headers() -> dict[str, str]:
    """Headers of kernels/ that have another text here: instructions that only a GPU has."""
    return {"ptx.cuh": '#include "ptx.h"\n'}


__all__ = [
    "RawModule",
    "arange",
    "array",
    "asarray",
    "ascontiguousarray",
    "asnumpy",
    "cuda",
    "empty",
    "empty_like",
    "full",
    "full_like",
    "get_default_memory_pool",
    "lib",
    "may_share_memory",
    "ndarray",
    "ones",
    "ones_like",
    "zeros",
    "zeros_like",
]
