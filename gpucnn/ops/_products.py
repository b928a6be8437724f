"""Products of stacks of matrices on NumPy, cut into blocks that BLAS multiplies where they lie.

For a large product OpenBLAS first copies both matrices into the order in which it reads them.  On
processors with AVX-512 it spares that where both are small and neither is transposed.  A large
product cut into such blocks took 0.87 to 0.91 of the time, of matrices that the cache does not
hold.  It is so only if rows start on cache lines: see threads.empty.
"""

from functools import cache

import numpy as np
from threadpoolctl import threadpool_info

from gpucnn.device import Array

# OpenBLAS's names of the processors that it has such kernels for, and the most multiplications
# that it calls small: its interface/gemm.c and kernel/x86_64/sgemm_small_kernel_permit_skylakex.c.
_IN_PLACE = {"SkylakeX", "Cooperlake", "SapphireRapids"}
_MOST = 100**3

# Columns of a block, and rows at most: multiples of what a kernel makes at a time.
_COLUMNS, _ROWS = 64, 64


def multiply(a: Array, b: Array, out: Array) -> None:
    """Set out[i] (rows, columns) to a[i] (rows, depth) times b[i] (depth, columns), for every i."""
    depth, columns = b.shape[1:]
    n = min(_COLUMNS, columns)
    m = min(_ROWS, _MOST // (n * depth) // 16 * 16)
    if m == 0 or not _blas_multiplies_in_place():
        np.matmul(a, b, out=out)
        return
    for rows, height in _cut(a.shape[1], m):
        left = a[:, rows].reshape(len(a), -1, 1, height, depth)
        for across, width in _cut(columns, n):
            right = b[:, :, across].reshape(len(b), 1, depth, -1, width).transpose(0, 1, 3, 2, 4)
            into = out[:, rows, across].reshape(len(a), -1, height, right.shape[2], width)
            np.matmul(left, right, out=into.transpose(0, 1, 3, 2, 4))


def _cut(size: int, step: int) -> list[tuple[slice, int]]:
    """range(size) as whole blocks of `step` together, and as a smaller one; and their sizes."""
    whole = size // step * step
    parts = [(slice(0, whole), step), (slice(whole, size), size - whole)]
    return [(part, width) for part, width in parts if part.start < part.stop]


@cache
def _blas_multiplies_in_place() -> bool:
    return any(library.get("architecture") in _IN_PLACE for library in threadpool_info())
