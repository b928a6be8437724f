"""The device's memory, and the pool that gives it out: a model of cupy's.

Freed memory goes to a list of its size, and an allocation looks there before it asks the device.
Every allocation is full of poison, so that what a kernel does not write cannot pass for zero.
"""

import math
import weakref
from collections import Counter
from typing import Any

import numpy as np

Host = np.ndarray[Any, Any]

# As cupy's: allocations start at, and are counted in, multiples of this.
GRAIN = 512
# Every 16 bits are a NaN as float16 and bfloat16, every 32 as float32, every 64 as float64; as an
# integer it is far out of bounds.  native/scheduler.cpp fills shared memory with the same.
POISON = 0x7FFF
_FENCE = 4096  # bytes of poison around an array: a small step outside harms no other


class OutOfMemoryError(MemoryError):
    """cupy.cuda.memory.OutOfMemoryError: the pool's limit is reached."""


class MemoryPool:
    """cupy.cuda.MemoryPool, as far as gpucnn asks it."""

    def __init__(self) -> None:
        self.device_allocations = 0  # how often the pool had to ask the device
        self._used = 0
        self._free: Counter[int] = Counter()  # bytes of a block -> how many of them
        self._limit = 0  # 0: none

    def used_bytes(self) -> int:
        """What arrays hold."""
        return self._used

    def free_bytes(self) -> int:
        """What the pool holds for later."""
        return sum(size * count for size, count in self._free.items())

    def total_bytes(self) -> int:
        return self._used + self.free_bytes()

    def free_all_blocks(self) -> None:
        """Give unused memory back to the device."""
        self._free.clear()

    def set_limit(self, size: int = 0) -> None:
        """Let total_bytes never pass `size` bytes; 0 is no limit."""
        self._limit = size

    def get_limit(self) -> int:
        return self._limit

    def take(self, owner: Host, size: int) -> None:
        """Count `size` bytes until `owner` is collected; OutOfMemoryError past the limit."""
        block = -(-size // GRAIN) * GRAIN
        if block == 0:
            return
        if self._free[block] > 0:
            self._free[block] -= 1
        else:
            if self._limit and self.total_bytes() + block > self._limit:
                raise OutOfMemoryError(
                    f"Out of memory allocating {block:,} bytes (allocated so far: "
                    f"{self.total_bytes():,} bytes, limit set to: {self._limit:,} bytes)"
                )
            self.device_allocations += 1
        self._used += block
        weakref.finalize(owner, self._release, block).atexit = False

    def _release(self, block: int) -> None:
        self._used -= block
        self._free[block] += 1


pool = MemoryPool()


def allocate(shape: Any, dtype: Any) -> Host:
    """Fresh memory of the device, as the host sees it."""
    dtype = np.dtype(dtype)
    shape = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(_FENCE + size + GRAIN + _FENCE, np.uint8)
    pool.take(memory, size)
    memory[: memory.size // 2 * 2].view(np.uint16).fill(POISON)
    start = _FENCE + -(memory.ctypes.data + _FENCE) % GRAIN
    array: Host = memory[start : start + size].view(dtype).reshape(shape)
    return array


def adopt(result: Host) -> Host:
    """An array that NumPy made for the device: its memory, if it is its own, is the device's."""
    if result.base is None:
        pool.take(result, result.nbytes)
    return result
