"""The device's memory, and the pool that allocates it, modelled on CuPy's.

Each array lies between two unmapped guards, so that a kernel that writes outside its arrays damages
neither another array nor the Python process.  Freed blocks are cached by size, and allocations
reuse them before they ask the device.  New arrays are filled with poison.
"""

import ctypes
import functools
import math
import mmap
import os
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from gpucnn.cudasim import settings
from gpucnn.cudasim.streams import Allocation, current_capture, mapped
from gpucnn.integers import ceil_div

Host = np.ndarray[Any, Any]
_Array = TypeVar("_Array")

GRAIN = 512  # CuPy rounds allocations up to a multiple of this many bytes
# Reads as NaN in float16, bfloat16, float32 and float64; as an integer index it is far out of
# bounds.  native/scheduler.cpp fills shared memory with the same.
POISON = 0x7FFF
_GUARD = 16 * mmap.PAGESIZE  # unmapped bytes on both sides of an array
_NO_ACCESS = 0  # PROT_NONE


class OutOfMemoryError(MemoryError):
    """cupy.cuda.memory.OutOfMemoryError: the device is full, or the pool's limit is reached."""

    def __init__(self, size: int, total: int, limit: int = 0) -> None:
        text = f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes"
        super().__init__(text + (f", limit set to: {limit:,} bytes)." if limit else ")."))


class _Block:
    """A block of device memory that NumPy accesses in place; returned to the pool when deleted."""

    __slots__ = ("address", "allocation", "first", "pool", "size")

    def __init__(self, pool: "MemoryPool", address: int, size: int) -> None:
        self.pool = pool
        self.address = address
        self.size = size
        self.allocation = Allocation.now()
        self.first: Any = None  # a weak reference to the first array here

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {
            "data": (self.address, False),
            "shape": (self.size,),
            "typestr": "|u1",
            "version": 3,
        }

    def __del__(self) -> None:
        self.pool._release(self.address, self.size)


class MemoryPool:
    """cupy.cuda.MemoryPool, as far as gpucnn uses it; threads may share it."""

    def __init__(self) -> None:
        self.device_allocations = 0  # number of allocations from the device
        self._used = self._held = 0
        self._free: dict[int, list[int]] = defaultdict(list)  # size -> addresses of free blocks
        self._limit = 0  # 0: no limit
        self._lock = threading.RLock()  # a block may be released during an allocation
        weakref.finalize(self, _unmap, self._free).atexit = False

    def used_bytes(self) -> int:
        """Bytes in use by arrays."""
        return self._used

    def free_bytes(self) -> int:
        """Bytes of cached free blocks."""
        return self._held

    def total_bytes(self) -> int:
        return self._used + self._held

    def free_all_blocks(self) -> None:
        """Return cached free blocks to the device."""
        with self._lock:
            self._held -= _unmap(self._free)

    def set_limit(self, size: int = 0) -> None:
        """Limit total_bytes to `size`; 0 means no limit."""
        self._limit = size

    def get_limit(self) -> int:
        return self._limit

    def malloc(self, size: int) -> Host:
        """Allocate `size` bytes, rounded up to GRAIN; OutOfMemoryError if that is not possible.

        Like CuPy's, the pool frees its cached blocks and retries if the device is full, but not
        if the limit would be exceeded.
        """
        size = max(ceil_div(size, GRAIN), 1) * GRAIN
        with self._lock:
            if self._free[size]:
                address = self._free[size].pop()
                self._held -= size
            else:
                total = self.total_bytes()
                if self._limit and total + size > self._limit:
                    raise OutOfMemoryError(size, total, self._limit)
                if size > free_memory():
                    self.free_all_blocks()
                    total = self.total_bytes()
                    if size > free_memory():
                        raise OutOfMemoryError(size, total)
                address = _map(size, total)
                self.device_allocations += 1
            self._used += size
            return np.asarray(_Block(self, address, size))

    def _release(self, address: int, size: int) -> None:
        with self._lock:
            self._free[size].append(address)
            self._used -= size
            self._held += size


def _unmap(blocks: dict[int, list[int]]) -> int:
    """Return free blocks, by size, to the device; their bytes."""
    freed = 0
    for size in list(blocks):
        while blocks[size]:
            address = blocks[size].pop()
            del mapped[address]
            _libc().munmap(address - _GUARD, _pages(size) + 2 * _GUARD)
            freed += size
    return freed


def _pages(size: int) -> int:
    return ceil_div(size, mmap.PAGESIZE) * mmap.PAGESIZE


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc


def device_memory() -> int:
    """The device's memory in bytes: memory= in GPUCNN_CUDASIM, or all of the host's."""
    return settings.current().memory or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_memory() -> int:
    """The device's memory that no pool has, in bytes."""
    return max(device_memory() - sum(list(mapped.values())), 0)  # another thread may add to it


def _map(size: int, total: int) -> int:
    """Map `size` bytes between two guards; return their address.  The error shows `total`."""
    libc, whole = _libc(), _pages(size) + 2 * _GUARD
    base = libc.mmap(None, whole, _NO_ACCESS, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    usable = mmap.PROT_READ | mmap.PROT_WRITE
    if base in (None, 2 ** (8 * ctypes.sizeof(ctypes.c_void_p)) - 1) or libc.mprotect(
        base + _GUARD, _pages(size), usable
    ):
        raise OutOfMemoryError(size, total)
    mapped[int(base) + _GUARD] = size
    return int(base) + _GUARD


pool = MemoryPool()
Allocator = Callable[[int], Host]
_state = threading.local()


def get_allocator() -> Allocator:
    """This thread's allocator: the pool's, unless using_allocator set another."""
    return getattr(_state, "allocator", pool.malloc)


@contextmanager
def using_allocator(allocator: Allocator) -> Iterator[None]:
    """Allocate this thread's arrays with `allocator(bytes)` inside the block."""
    outer = get_allocator()
    _state.allocator = allocator
    try:
        yield
    finally:
        _state.allocator = outer


def allocate(shape: Any, dtype: Any, poison: bool = True) -> Host:
    """Allocate device memory; return it as a NumPy array.

    While the current stream captures, each launch of the graph fills it with poison too.
    """
    dtype = np.dtype(dtype)
    shape = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
    size = math.prod(shape) * dtype.itemsize
    memory = get_allocator()(size)
    capture = current_capture()
    if _poisons and (poison or capture is not None):
        memory.view(np.uint16).fill(POISON)
    if _poisons and poison and capture is not None:
        capture.copy(memory.view(np.uint16), lambda: POISON)
    array: Host = memory[:size].view(dtype).reshape(shape)
    return array


def _owner(array: Host) -> Any:
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    return owner


def allocation_of(array: Host) -> Allocation:
    """When, and on which stream, the memory of `array` was allocated."""
    allocation: Allocation = _owner(array).allocation
    return allocation


def first_array(host: Host, array: _Array) -> _Array | None:
    """The array that owns the memory of `host`; None if `array` is the first one there.

    Later arrays are views, and keep the returned array alive.
    """
    block = _owner(host)
    first: _Array | None = block.first and block.first()
    if first is None:
        block.first = weakref.ref(array)
    return first


def on_device(result: Host) -> Host:
    """NumPy's `result` itself if it is a view of device memory, else a copy there."""
    if isinstance(_owner(result), _Block):
        return result
    return constant(result)


def constant(values: Host, dtype: Any = None) -> Host:
    """Device memory with these values."""
    copy = allocate(values.shape, values.dtype if dtype is None else dtype, poison=False)
    capture = current_capture()
    if capture is None:
        copy[...] = values
    else:
        capture.copy(copy, lambda: values)
    return copy


def result(shape: Any, dtype: Any) -> Host:
    """Device memory that will be written as a whole."""
    return allocate(shape, dtype, poison=False)


_poisons = True


@contextmanager
def unpoisoned() -> Iterator[None]:
    """Skip poisoning new arrays inside the block, to save time where they are never read."""
    global _poisons
    before, _poisons = _poisons, False
    try:
        yield
    finally:
        _poisons = before
