"""The part of cupy.cuda that gpucnn uses: devices, streams, events, what memory was asked for.

The simulator finishes each operation before the call returns, so streams order nothing and events
measure the host's clock.
"""

import time
from typing import Any, Literal

from gpucnn.cudasim.memory import MemoryPool, OutOfMemoryError
from gpucnn.errors import DeviceError

__all__ = ["Device", "Event", "MemoryPointer", "MemoryPool", "Stream", "memory", "runtime"]


class _Counters:
    """What a test may want to count: how often the host waited for the device."""

    host_syncs = 0


counters = _Counters()


class Device:
    """The one simulated device; usable in a `with` block, as CuPy's."""

    def __init__(self, device: "int | Device" = 0) -> None:
        self.id: int = int(device)
        if self.id != 0:
            raise DeviceError(f"device cudasim:{self.id} does not exist\n  there is one: cudasim")

    # The limits of compute capability 8.0.
    attributes = {
        "MaxThreadsPerBlock": 1024,
        "MaxBlockDimX": 1024,
        "MaxBlockDimY": 1024,
        "MaxBlockDimZ": 64,
        "MaxGridDimX": 2**31 - 1,
        "MaxGridDimY": 65535,
        "MaxGridDimZ": 65535,
        "MaxSharedMemoryPerBlock": 48 * 1024,
        "MaxSharedMemoryPerBlockOptin": 163 * 1024,
        "MultiProcessorCount": 108,
        "WarpSize": 32,
    }
    compute_capability = "80"

    def synchronize(self) -> None:
        counters.host_syncs += 1

    def use(self) -> None:
        pass

    def __enter__(self) -> "Device":
        return self

    def __exit__(self, *exc: object) -> Literal[False]:
        return False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __int__(self) -> int:
        return self.id

    def __repr__(self) -> str:
        return f"<cudasim.Device {self.id}>"


class MemoryPointer:
    """Where an array starts: `array.data.ptr`."""

    def __init__(self, ptr: int) -> None:
        self.ptr = ptr


class Stream:
    """An order of work; here all work is done in the order of the calls."""

    null: "Stream"

    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        self.ptr = 0 if null else id(self)
        self._outer: list[Stream] = []

    def synchronize(self) -> None:
        counters.host_syncs += 1

    def wait_event(self, event: "Event") -> None:
        pass

    def record(self, event: "Event | None" = None) -> "Event":
        event = Event() if event is None else event
        event.record(self)
        return event

    def __enter__(self) -> "Stream":
        global _current
        self._outer.append(_current)
        _current = self
        return self

    def __exit__(self, *exc: object) -> Literal[False]:
        global _current
        _current = self._outer.pop()
        return False


Stream.null = Stream(null=True)
_current = Stream.null


def get_current_stream() -> Stream:
    return _current


class Event:
    """A moment of the host's clock."""

    def __init__(self, block: bool = False, disable_timing: bool = False) -> None:
        self.seconds: float | None = None

    def record(self, stream: Stream | None = None) -> None:
        self.seconds = time.perf_counter()

    def synchronize(self) -> None:
        counters.host_syncs += 1

    @property
    def done(self) -> bool:
        return True


def get_elapsed_time(start: Event, end: Event) -> float:
    """Milliseconds between two recorded events."""
    if start.seconds is None or end.seconds is None:
        raise ValueError("get_elapsed_time: both events must have been recorded")
    return (end.seconds - start.seconds) * 1e3


class memory:  # a namespace, named as cupy.cuda.memory
    OutOfMemoryError = OutOfMemoryError


class runtime:  # a namespace, named as cupy.cuda.runtime
    """The part of the CUDA runtime that gpucnn asks."""

    @staticmethod
    def getDeviceCount() -> int:
        return 1

    @staticmethod
    def getDevice() -> int:
        return 0

    @staticmethod
    def getDeviceProperties(device: int) -> dict[str, Any]:
        return {"name": b"cudasim", "major": 8, "minor": 0, "multiProcessorCount": 108}
