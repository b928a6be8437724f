"""A simulated CUDA device: the part of CuPy that gpucnn uses, and kernels compiled by g++.

    gpucnn.tensor(x, device="cudasim")

Everything here has CuPy's name and meaning, except `require_compiler` and `kernel_headers`.
README.md explains how to use it.
"""

from types import SimpleNamespace as _SimpleNamespace
from typing import Any as _Any

import numpy as _np

from gpucnn.cudasim import compiler as _compiler
from gpucnn.cudasim import driver as cuda
from gpucnn.cudasim import memory as _memory
from gpucnn.cudasim import signatures as _signatures
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

for _name, _signature in (_signatures.ufuncs() | _signatures.table(_signatures.FUNCTIONS)).items():
    globals()[_name] = _lift(_name, _signature)

_NAMES = """
    bool_ dtype e finfo float16 float32 float64 floating generic iinfo inf int8 int16 int32 int64
    integer nan newaxis pi promote_types uint8 uint16 uint32 uint64
"""
for _name in _NAMES.split():
    globals()[_name] = getattr(_np, _name)


def _namespace(module: _Any, signatures: str) -> _SimpleNamespace:
    table = _signatures.table(signatures)
    return _SimpleNamespace(**{name: _lift(name, table[name], module) for name in table})


linalg = _namespace(_np.linalg, _signatures.LINALG)
lib = _SimpleNamespace(stride_tricks=_namespace(_np.lib.stride_tricks, _signatures.STRIDE_TRICKS))


def get_default_memory_pool() -> _memory.MemoryPool:
    """The memory pool that all arrays are allocated from."""
    return _memory.pool


def require_compiler() -> None:
    """Raise DeviceError, with the way out, if this machine has no C++ compiler."""
    _compiler.compiler()


def kernel_headers() -> dict[str, str]:
    """Replacements for headers of kernels/, by name: instructions that only a GPU has."""
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
    "kernel_headers",
    "lib",
    "linalg",
    "may_share_memory",
    "ndarray",
    "ones",
    "ones_like",
    "require_compiler",
    "zeros",
    "zeros_like",
]
__all__ += [*_signatures.ufuncs(), *_signatures.table(_signatures.FUNCTIONS), *_NAMES.split()]
