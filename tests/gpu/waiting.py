"""Detects that the host waited for the device, or that the device allocated memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from gpucnn.device import Device

# One busy thread: later work on the stream cannot run before it ends.
_SPIN = """
extern "C" __global__ void spin(long long cycles) {
    long long start = clock64();
    while (clock64() - start < cycles) { }
}
"""
_CYCLES = 1_000_000_000  # half a second


class Waited(AssertionError):
    """The host waited for the device."""


@contextmanager
def host_never_waits(device: Device) -> Iterator[None]:
    """Raise Waited if the host waits for the device inside the block.

    The simulator counts waits.  A real device is kept busy: if it is idle when the block ends,
    something in the block waited for it.
    """
    cuda: Any = device.xp.cuda
    if device.kind == "cudasim":
        before = cuda.counters.host_syncs
        yield
        if cuda.counters.host_syncs != before:
            raise Waited(f"{cuda.counters.host_syncs - before} times")
        return
    with cuda.Device(device.index) as it:
        spin = device.xp.RawModule(code=_SPIN).get_function("spin")
        it.synchronize()
        spin((1,), (1,), (np.int64(_CYCLES),))
        busy = cuda.Event()
        busy.record()
    yield
    if busy.done:
        raise Waited("the device was idle")
    with cuda.Device(device.index) as it:
        it.synchronize()


def memory_asked_for(device: Device) -> int:
    """A number that grows when the pool allocates memory from the device."""
    pool = device.xp.get_default_memory_pool()
    return int(pool.device_allocations if device.kind == "cudasim" else pool.total_bytes())
