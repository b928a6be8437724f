"""Counters by which the blocks of a launch find out which of them finishes last.

They are zero between launches: the last block resets its counter (kernels/splits.cuh).  So they
need no memset, and one array serves all launches on a stream, which run one after another.
"""

import threading
from typing import Any

import numpy as np

from gpucnn.device import Array, Device

_FEWEST = 1 << 14  # 64 KiB: larger than any layer's grid, so that the array is rarely replaced

_lock = threading.RLock()  # collecting garbage during an allocation may call `forget`
_arrays: dict[tuple[Device, int, int], Any] = {}  # by device, stream and perhaps thread
_PER_THREAD = 2  # the address of CUDA's per-thread default stream, one in each thread


def forget_counters() -> None:
    """Drop all counters: a launch that did not run to its end may have left some above zero."""
    with _lock:
        _arrays.clear()


def counters(device: Device, count: int) -> Array:
    """At least `count` zeros, uint32, for kernels on `device`'s current stream.

    Call it with `device` current.  Before a stream is captured into a graph, call it once on that
    stream: the array must exist outside the graph's memory.
    """
    pointer = int(device.xp.cuda.get_current_stream().ptr)
    key = device, pointer, threading.get_ident() if pointer == _PER_THREAD else 0
    with _lock:
        found = _arrays.get(key)
        if found is None or found.size < count:
            size = max(_FEWEST, 1 << (count - 1).bit_length())
            found = _arrays[key] = device.xp.zeros(size, np.uint32)
        return found


def forget(device: Device, pointer: int) -> None:
    """Free the counters of the stream with this address, which is about to end."""
    with _lock:
        _arrays.pop((device, pointer, 0), None)
