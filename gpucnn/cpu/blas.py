"""Products of stacks of matrices on NumPy, cut into blocks that BLAS multiplies where they lie.

For a large product OpenBLAS first copies both matrices into the order in which it reads them.  On
processors with AVX-512 it spares that where both are small and neither is transposed.  A large
product cut into such blocks took 0.87 to 0.91 of the time, of matrices that the cache does not
hold.  It is so only if rows start on cache lines: see memory.empty.
"""

import os
import threading
from functools import cache
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController, threadpool_info

from gpucnn.device import Array

# OpenBLAS's names of the processors that it has such kernels for, and the most multiplications
# that it calls small: its interface/gemm.c and kernel/x86_64/sgemm_small_kernel_permit_skylakex.c.
_IN_PLACE = {"SkylakeX", "Cooperlake", "SapphireRapids"}
_MOST = 100**3

# Rows of a block and columns of a panel, the best first: multiples of what a kernel makes.
_ROWS, _COLUMNS = (64, 32, 16), (64, 32)


def panel_width(depth: int, columns: int) -> int:
    """How many columns a panel of the right matrix should have; they divide its columns."""
    if _blas_multiplies_in_place():
        for width in _COLUMNS:
            if columns % width == 0 and _block_rows(depth, width):
                return width
    return columns


def multiply(a: Array, b: Array, out: Array) -> None:
    """Set out[i] (rows, columns) to a[i] (rows, depth) times b[i] (depth, columns), for every i.

    b comes in panels of `panel_width` columns each: (i, panels, depth, width).
    """
    stack, panels, depth, width = b.shape
    small = _block_rows(depth, width) if _blas_multiplies_in_place() else 0
    for rows, height in _cut(a.shape[1], small or a.shape[1]):
        left = a[:, rows].reshape(stack, -1, 1, height, depth)
        into = out[:, rows].reshape(stack, -1, height, panels, width)
        np.matmul(left, b[:, None], out=into.transpose(0, 1, 3, 2, 4))


def multiply_transposed(a: Array, b: Array, out: Array) -> None:
    """Set out[i] (rows, columns) to a[i] (depth, rows) transposed times b[i] (depth, columns).

    Cut into blocks likewise, where rows and columns are whole blocks: of matrices that the cache
    holds it took 0.8 of the time, of others as much as a large product or more.
    """
    stack, depth, columns = b.shape
    width = panel_width(depth, columns)
    small = _block_rows(depth, width) if _blas_multiplies_in_place() else 0
    height = next((h for h in range(small, 15, -8) if a.shape[2] % h == 0), a.shape[2])
    left = a.reshape(stack, depth, -1, 1, height).transpose(0, 2, 3, 4, 1)
    right = b.reshape(stack, depth, 1, -1, width).transpose(0, 2, 3, 1, 4)
    into = out.reshape(stack, -1, height, columns // width, width)
    np.matmul(left, right, out=into.transpose(0, 1, 3, 2, 4))


def _block_rows(depth: int, width: int) -> int:
    """Rows of a small block of so many columns; 0 if there is none."""
    if width > max(_COLUMNS):
        return 0
    return next((rows for rows in _ROWS if rows * width * depth <= _MOST), 0)


def _cut(size: int, step: int) -> list[tuple[slice, int]]:
    """range(size) as whole blocks of `step` together, and as a smaller one; and their sizes."""
    whole = size // step * step
    parts = [(slice(0, whole), step), (slice(whole, size), size - whole)]
    return [(part, height) for part, height in parts if part.start < part.stop]


@cache
def _blas_multiplies_in_place() -> bool:
    return any(library.get("architecture") in _IN_PLACE for library in threadpool_info())


# --- threads ---


class _Blas:
    """Holds every BLAS in this process to one thread while anybody needs it to be.

    threadpoolctl's own limit costs a search of all loaded libraries; here they are found once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._found: list[Any] | None = None
        self._before: list[int] = []

    def acquire(self) -> None:
        with self._lock:
            self._users += 1
            if self._users > 1:
                return
            if self._found is None:
                self._found = ThreadpoolController().select(user_api="blas").lib_controllers
            self._before = [library.get_num_threads() or 1 for library in self._found]
            for library, count in zip(self._found, self._before, strict=True):
                if count != 1:
                    library.set_num_threads(1)

    def release(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users or self._found is None:
                return
            for library, count in zip(self._found, self._before, strict=True):
                if count != 1:
                    library.set_num_threads(count)


class _SingleThreadedBlas:
    def __enter__(self) -> None:
        _blas.acquire()

    def __exit__(self, *exc: object) -> None:
        _blas.release()


def single_threaded_blas() -> _SingleThreadedBlas:
    """A block in which BLAS has one thread: its own splitting may change the last bits."""
    return _SingleThreadedBlas()


def _after_fork() -> None:
    """The child may have inherited a lock that a thread which it lacks had taken."""
    global _blas
    _blas = _Blas()


_blas = _Blas()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
