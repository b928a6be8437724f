"""The part of cupy.cuda that gpucnn uses: devices, streams, events, memory."""

from typing import Any, Literal

from gpucnn.cudasim import streams
from gpucnn.cudasim.capture import CUDARuntimeError, Graph
from gpucnn.cudasim.memory import (
    MemoryPool,
    OutOfMemoryError,
    device_memory,
    free_memory,
    get_allocator,
    using_allocator,
)
from gpucnn.cudasim.streams import (
    Event,
    PinnedMemoryPool,
    Stream,
    alloc_pinned_memory,
    counters,
    get_current_stream,
    get_elapsed_time,
)
from gpucnn.errors import DeviceError

__all__ = [
    "Device",
    "Event",
    "Graph",
    "MemoryPointer",
    "MemoryPool",
    "PinnedMemoryPool",
    "Stream",
    "alloc_pinned_memory",
    "counters",
    "get_allocator",
    "get_current_stream",
    "get_elapsed_time",
    "memory",
    "runtime",
    "using_allocator",
]


class Device:
    """The one simulated device; a context manager, like CuPy's."""

    def __init__(self, device: "int | Device" = 0) -> None:
        self.id: int = int(device)
        if self.id != 0:
            raise DeviceError(
                f"device cudasim:{self.id} does not exist\n  there is only one: cudasim"
            )

    # Those of an A100, compute capability 8.0.
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
        streams.synchronize()

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
    """The address of an array: `array.data.ptr`."""

    def __init__(self, ptr: int, /) -> None:
        self.ptr = ptr


class memory:  # a namespace, named as cupy.cuda.memory
    OutOfMemoryError = OutOfMemoryError


class runtime:  # a namespace, named as cupy.cuda.runtime
    """The part of the CUDA runtime that gpucnn uses."""

    CUDARuntimeError = CUDARuntimeError

    @staticmethod
    def getDeviceCount() -> int:
        return 1

    @staticmethod
    def getDevice() -> int:
        return 0

    @staticmethod
    def memGetInfo() -> tuple[int, int]:
        """Free and total memory of the device, in bytes."""
        return free_memory(), device_memory()

    @staticmethod
    def getDeviceProperties(device: int) -> dict[str, Any]:
        return {"name": b"cudasim", "major": 8, "minor": 0, "multiProcessorCount": 108}
