"""Stand-ins for parts of cupy.cuda: the current device, and a device with a simulated clock."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any


def device_class(current: list[int]) -> type:
    """A class like cupy.cuda.Device: inside `with Device(i)`, current[-1] is i."""

    class Device:
        def __init__(self, index: int) -> None:
            self.index = index

        def __enter__(self) -> None:
            current.append(self.index)

        def __exit__(self, *exc: object) -> None:
            current.pop()

    return Device


class TimedDevice:
    """A gpucnn Device, its CuPy and its stream in one; subclasses define the clock."""

    kind, index = "cuda", 0

    def __init__(self) -> None:
        self.xp = self.cuda = self

    # --- what a subclass defines ---

    def record(self) -> float:
        """Record an event; return the time at which it passes, in milliseconds."""
        raise NotImplementedError

    def has_passed(self, time: float) -> bool:
        raise NotImplementedError

    def wait_until(self, time: float) -> None:
        """Make the host wait for an event."""

    def synchronize(self) -> None:
        """Make the host wait for the stream."""

    def spin(self, grid: Any, block: Any, arguments: Any) -> None:
        """Launch the kernel of measure.Spin."""
        raise NotImplementedError

    # --- what measure.py calls ---

    def Device(self, index: int) -> AbstractContextManager[None]:
        return nullcontext()

    def Event(self) -> "TimedEvent":
        return TimedEvent(self)

    def get_current_stream(self) -> "TimedDevice":
        return self

    def get_elapsed_time(self, begin: "TimedEvent", end: "TimedEvent") -> float:
        return end.time - begin.time

    def RawModule(self, code: str) -> "TimedDevice":
        return self

    def get_function(self, name: str) -> Any:
        return self.spin


class TimedEvent:
    """A cupy.cuda.Event of a TimedDevice."""

    def __init__(self, device: TimedDevice) -> None:
        self.device = device

    def record(self) -> None:
        self.time = self.device.record()

    def synchronize(self) -> None:
        self.device.wait_until(self.time)

    @property
    def done(self) -> bool:
        return self.device.has_passed(self.time)
