"""What ops that launch kernels share: which arrays kernels take, and how they divide.

Kernels load and store float32, float16 and bfloat16, and compute in float32.  float64, meant for
gradient checks, uses an op's implementation for any array module.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn.cuda import c_type
from gpucnn.device import Array
from gpucnn.precision import is_half

_BYTES = 16  # of one access


def takes(x: Array) -> bool:
    """Whether the kernels support x, an array on a GPU."""
    return bool(x.dtype == np.float32 or is_half(x.dtype))


@functools.cache
def defines(dtype: np.dtype[Any]) -> Mapping[str, str]:
    """The `defines` of a kernel whose activations, of type X, have this dtype."""
    return {"X": c_type(dtype)}


def lanes(dtype: np.dtype[Any]) -> int:
    """How many numbers of this dtype a thread moves in one access."""
    return _BYTES // dtype.itemsize


def vector_width(channels: int, *arrays: Array) -> int:
    """How many adjacent channels a thread owns: lanes(dtype) if that divides them, else 1.

    arrays, None apart, are those that the kernel accesses; all start at a multiple of 16 bytes,
    or the width is 1.  The first one's dtype counts.
    """
    width = lanes(arrays[0].dtype)
    whole = channels % width == 0 and channels > 0
    if whole and all(a is None or a.data.ptr % _BYTES == 0 for a in arrays):
        return width
    return 1


@dataclass(frozen=True)
class Divisor:
    """A number by which a kernel divides ints from 0 to 2**31 - 1: struct Divisor in vector.cuh.

    n // divisor == (n * (multiplier + 2**32) >> 32) >> shift, with multiplier taken as unsigned.
    """

    divisor: int
    multiplier: int
    shift: int

    @staticmethod
    @functools.lru_cache(maxsize=4096)
    def of(divisor: int) -> "Divisor":
        """The struct for a divisor from 1 to 2**31 - 1; for 0, which divides nothing, that of 1."""
        divisor = max(divisor, 1)
        shift = (divisor - 1).bit_length()
        multiplier = -(-(1 << (32 + shift)) // divisor) - (1 << 32)
        return Divisor(divisor, multiplier - (multiplier >> 31 << 32), shift)
