"""Memory on the CPU: arrays that start on a cache line, buffers kept for reuse, and glibc.

glibc gives every array of more than 128 KiB back to the system when it is freed, and the next
one of that size costs a page fault for each 4 KiB and the system's zeroing of it.  A training
step frees and asks for the same sizes over and over: that was up to a tenth of its time.
"""

import ctypes
import math
import os
import sys
import threading
from typing import Any

import numpy as np

_CACHE_LINE = 64  # bytes
_NOTHING = np.empty(0, np.uint8)
_MOST_VIEWS = 1000  # of buffers: made again when images of ever new sizes have made so many
_local = threading.local()  # .owned: this thread's buffers


def flat(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The elements of x in row order: x's own memory if it is contiguous."""
    return np.ascontiguousarray(x).reshape(-1)


def empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    """np.empty that starts on a cache line of its own.

    NumPy's own arrays start 16 bytes into one where they are large.  Then every vector of 64 bytes
    lies across two, and the products of small matrices, which BLAS reads where they lie, took 1.25
    to 1.4 times as long.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + _CACHE_LINE, np.uint8)
    return np.ndarray(shape, dtype, memory, -memory.ctypes.data % _CACHE_LINE)


def scratch(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    """Uninitialised memory of this thread's own under `name`, the same at every call.

    A fresh large array costs a page fault for every 4 KiB; this one is faulted in once.  It starts
    on a cache line of its own, as those of `empty` do.
    """
    owned = _owned()
    key = name, shape, dtype
    view = owned.views.get(key)
    if view is None:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if owned.memory.get(name, _NOTHING).size < size:
            owned.drop(name)  # first, so that its place may be part of the new one's
            owned.memory[name] = empty((size,), np.uint8)
        if len(owned.views) >= _MOST_VIEWS:
            owned.views.clear()
        view = owned.views[key] = owned.memory[name][:size].view(dtype).reshape(shape)
    return view


def scratch_bytes() -> int:
    """The memory that `scratch` keeps for this thread."""
    return sum(memory.nbytes for memory in _owned().memory.values())


class _Owned:
    """The buffers of a thread by name, and the views that were asked for: making one costs more
    than some of the operations on it."""

    def __init__(self) -> None:
        self.memory: dict[str, np.ndarray[Any, Any]] = {}
        self.views: dict[tuple[str, tuple[int, ...], Any], np.ndarray[Any, Any]] = {}

    def drop(self, name: str) -> None:
        self.views = {key: view for key, view in self.views.items() if key[0] != name}
        self.memory.pop(name, None)


def _owned() -> _Owned:
    owned: _Owned | None = getattr(_local, "owned", None)
    if owned is None:
        owned = _local.owned = _Owned()
    return owned


# --- glibc ---

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST = 2**31 - 1  # mallopt takes an int


def keep_freed_memory() -> bool:
    """Ask glibc to keep what is freed; False if it is another C library or refuses.

    Whoever has set MALLOC_MMAP_THRESHOLD_ or MALLOC_TRIM_THRESHOLD_ in the environment has
    chosen already, and keeps the choice.
    """
    chosen = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & os.environ.keys()
    libc = None if chosen else _glibc()
    return libc is not None and all(
        libc.mallopt(option, _LARGEST) == 1 for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD)
    )


def give_back_freed_memory() -> bool:
    """Give all that is free to the system; False if there was nothing, or libc is another.

    For the end of setting up.  What is kept from there has holes of sizes that a training step
    does not ask for: for alexnet_keras in batches of 8 they were 126 MiB of 1,176.
    """
    libc = _glibc()
    return libc is not None and libc.malloc_trim(0) == 1


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  musl has a mallopt that does nothing
    except (OSError, AttributeError):
        return None
    return libc
