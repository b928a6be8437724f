"""BLAS: batched products in blocks small enough to skip packing, and thread control.

For a large product OpenBLAS first packs both matrices: it copies them into the order in which its
kernels read them.  On processors with AVX-512 it skips packing for small matrices that are not
transposed.  Splitting a large product into such blocks took 0.87 to 0.91 of the time for matrices
that exceed the cache, provided that rows start on cache lines: see memory.empty.
"""

import ctypes
import threading
from functools import cache
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController, threadpool_info

from gpucnn.device import Array

# OpenBLAS's names of the processors for which it has small-matrix kernels, which do not pack, and
# the largest product, in multiplications, that those compute: see OpenBLAS's interface/gemm.c and
# kernel/x86_64/sgemm_small_kernel_permit_skylakex.c.
_SMALL_KERNEL_CPUS = {"SkylakeX", "Cooperlake", "SapphireRapids"}
_MAX_SMALL_PRODUCT = 100**3

# Rows of a block and columns of a panel, best first: multiples of the kernels' register tiles.
_ROWS, _COLUMNS = (64, 32, 16), (64, 32)


def panel_width(depth: int, columns: int) -> int:
    """The number of columns for a panel of the right matrix, a divisor of `columns`."""
    if _blas_has_small_kernels():
        for width in _COLUMNS:
            if columns % width == 0 and _block_rows(depth, width):
                return width
    return columns


def multiply(a: Array, b: Array, out: Array) -> None:
    """Set out[i] (rows, columns) to a[i] (rows, depth) times b[i] (depth, columns) for every i.

    b is stored in panels of `panel_width` columns: (stack, panels, depth, width).
    """
    stack, panels, depth, width = b.shape
    small = _block_rows(depth, width) if _blas_has_small_kernels() else 0
    for rows, height in _split(a.shape[1], small or a.shape[1]):
        left = a[:, rows].reshape(stack, -1, 1, height, depth)
        target = out[:, rows].reshape(stack, -1, height, panels, width)
        np.matmul(left, b[:, None], out=target.transpose(0, 1, 3, 2, 4))


def multiply_transposed(a: Array, b: Array, out: Array) -> None:
    """Set out[i] (rows, columns) to a[i] (depth, rows) transposed times b[i] (depth, columns).

    Also splits into blocks if they divide rows and columns.  That took 0.8 of the time for matrices
    that fit in the cache, and gained nothing or lost for larger ones.
    """
    stack, depth, columns = b.shape
    width = panel_width(depth, columns)
    small = _block_rows(depth, width) if _blas_has_small_kernels() else 0
    height = next((h for h in range(small, 15, -8) if a.shape[2] % h == 0), a.shape[2])
    left = a.reshape(stack, depth, -1, 1, height).transpose(0, 2, 3, 4, 1)
    right = b.reshape(stack, depth, 1, -1, width).transpose(0, 2, 3, 1, 4)
    target = out.reshape(stack, -1, height, columns // width, width)
    np.matmul(left, right, out=target.transpose(0, 1, 3, 2, 4))


def _block_rows(depth: int, width: int) -> int:
    """The largest number of rows that makes a small block of `width` columns, or 0."""
    if width > max(_COLUMNS):
        return 0
    return next((rows for rows in _ROWS if rows * width * depth <= _MAX_SMALL_PRODUCT), 0)


def _split(size: int, step: int) -> list[tuple[slice, int]]:
    """range(size) as a slice of whole blocks and a slice of the rest, each with its block size."""
    whole = size // step * step
    parts = [(slice(0, whole), step), (slice(whole, size), size - whole)]
    return [(part, height) for part, height in parts if part.start < part.stop]


@cache
def _blas_has_small_kernels() -> bool:
    return any(library.get("architecture") in _SMALL_KERNEL_CPUS for library in threadpool_info())


# --- threads ---

BLAS_BUFFER = 48 << 20  # bytes; OpenBLAS maps 32 MiB for each thread that multiplies


class _Blas:
    """Limits every BLAS library of the process to one thread while a caller needs it.

    threadpoolctl's own limit searches all loaded libraries at each call; this finds them once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._found: list[Any] | None = None
        self._before: list[int] = []

    def libraries(self) -> list[Any]:
        if self._found is None:
            self._found = ThreadpoolController().select(user_api="blas").lib_controllers
        return self._found

    def acquire(self) -> None:
        with self._lock:
            self._users += 1
            if self._users > 1:
                return
            self._before = [library.get_num_threads() or 1 for library in self.libraries()]
            for library, count in zip(self.libraries(), self._before, strict=True):
                if count != 1:
                    _set_num_threads(library, 1)

    def release(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users:
                return
            for library, count in zip(self.libraries(), self._before, strict=True):
                if count != 1:
                    _set_num_threads(library, count)


def _set_num_threads(library: Any, count: int) -> None:
    # threadpoolctl >= 3.8 ignores all threads but the first that called it, until that one ends.
    if hasattr(library, "clear_controlling_thread"):
        library.clear_controlling_thread(force=True)
    library.set_num_threads(count)


class _SingleThreadedBlas:
    def __enter__(self) -> None:
        _blas.acquire()

    def __exit__(self, *exc: object) -> None:
        _blas.release()


def single_threaded_blas() -> _SingleThreadedBlas:
    """Limit BLAS to one thread inside the block: its way of splitting can change the last bits."""
    return _SingleThreadedBlas()


def allocate_buffers(count: int) -> None:
    """Make OpenBLAS map memory for `count` products at a time, which it keeps until the end.

    Otherwise it maps a buffer when a product finds all others in use.  The functions that do it
    are exported but not documented: without them nothing happens.
    """
    for library in _blas.libraries():
        of_numpy = "scipy.libs" not in library.filepath  # SciPy's wheels bring one for themselves
        if of_numpy and hasattr(library.dynlib, "blas_memory_alloc"):
            allocate, free = library.dynlib.blas_memory_alloc, library.dynlib.blas_memory_free
            allocate.restype, free.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
            for buffer in [allocate(0) for _ in range(count)]:
                free(buffer)


def reset() -> None:
    """Reset the state in a forked child, where the threads that hold it do not exist."""
    global _blas
    _blas = _Blas()


_blas = _Blas()
