"""CPU memory: aligned arrays, scratch buffers, and glibc's allocator.

By default glibc returns every freed array of more than 128 KiB to the system.  The next one of that
size then costs a page fault, with zeroing, for each 4 KiB.  A training step frees and allocates the
same sizes over and over, which took up to a tenth of its time.
"""

import ctypes
import math
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

_CACHE_LINE = 64  # bytes
_MAX_VIEWS = 1000  # cached views of buffers: images of many sizes would add views without limit
_local = threading.local()  # .buffers: this thread's scratch


def flat(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """x as one axis in row order: a view if x is contiguous, else a copy."""
    return np.ascontiguousarray(x).reshape(-1)


def empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    """np.empty aligned to a cache line.

    NumPy's large arrays start 16 bytes into a line, so every 64-byte vector straddles two.  On
    those, products of small matrices, which BLAS does not pack, took 1.25 to 1.4 times as long.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + _CACHE_LINE, np.uint8)
    return np.ndarray(shape, dtype, memory, -memory.ctypes.data % _CACHE_LINE)


def scratch(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    """This thread's uninitialised buffer `name`, the same memory at every call.

    A new large array costs a page fault for every 4 KiB; a buffer is faulted in once.  It is
    aligned to a cache line too.
    """
    buffers = _buffers()
    key = name, shape, dtype
    view = buffers.views.get(key)
    if view is None:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if name not in buffers.memory or buffers.memory[name].size < size:
            buffers.drop(name)  # first, so that the new buffer may reuse its memory
            buffers.memory[name] = empty((size,), np.uint8)
        if len(buffers.views) >= _MAX_VIEWS:
            buffers.views.clear()
        view = buffers.views[key] = buffers.memory[name][:size].view(dtype).reshape(shape)
    return view


def scratch_bytes() -> int:
    """The size of this thread's scratch buffers in bytes."""
    return sum(memory.nbytes for memory in _buffers().memory.values())


@contextmanager
def new_scratch() -> Iterator[None]:
    """Give this thread new scratch buffers inside the block, and its own ones afterwards."""
    before, _local.buffers = getattr(_local, "buffers", None), None
    try:
        yield
    finally:
        _local.buffers = before


class _Buffers:
    """A thread's buffers by name, and a cache of their views.

    Creating a view costs more than some operations on it.
    """

    def __init__(self) -> None:
        self.memory: dict[str, np.ndarray[Any, Any]] = {}
        self.views: dict[tuple[str, tuple[int, ...], Any], np.ndarray[Any, Any]] = {}

    def drop(self, name: str) -> None:
        self.views = {key: view for key, view in self.views.items() if key[0] != name}
        self.memory.pop(name, None)


def _buffers() -> _Buffers:
    buffers: _Buffers | None = getattr(_local, "buffers", None)
    if buffers is None:
        buffers = _local.buffers = _Buffers()
    return buffers


# --- glibc ---

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST = 2**31 - 1  # mallopt takes an int


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory; False if it refuses or libc is not glibc.

    MALLOC_MMAP_THRESHOLD_ or MALLOC_TRIM_THRESHOLD_ in the environment takes precedence.
    """
    chosen = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & os.environ.keys()
    libc = None if chosen else _glibc()
    return libc is not None and all(
        libc.mallopt(option, _LARGEST) == 1 for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD)
    )


def give_back_freed_memory() -> bool:
    """Return all free memory to the system; False if it had none or libc is not glibc.

    Called after setup, which frees blocks of sizes that a training step does not allocate.  For
    alexnet_keras in batches of 8 they were 126 MiB of 1,176.
    """
    libc = _glibc()
    return libc is not None and libc.malloc_trim(0) == 1


def heap_bytes() -> tuple[int, int]:
    """The bytes of glibc's heap: (in use, free for later allocations); zeros if unknown."""
    libc = _glibc()
    if libc is None or not hasattr(libc, "mallinfo2"):  # before glibc 2.33
        return 0, 0
    libc.mallinfo2.restype = _MallInfo
    found = libc.mallinfo2()
    return found.uordblks + found.hblkhd, found.fordblks


class _MallInfo(ctypes.Structure):  # struct mallinfo2 in malloc.h
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks "
        "keepcost".split()
    ]


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  musl lacks it: its mallopt does nothing
    except (OSError, AttributeError):
        return None
    return libc
