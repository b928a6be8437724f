"""Time on a device, measured where it passes."""

import time
from collections import deque
from typing import Any

from gpucnn.device import Device


class Timer:
    """Adds up the time between the begin and the end of each `with` block.

        timer = cuda.Timer(images.device)
        for images, labels in loader:
            with timer:
                step(images, labels)
        print(timer.seconds / timer.count)

    On a GPU the time is that of the current stream, between two events: entering and leaving cost
    nothing and wait for nothing, and `seconds` waits for the last event.  On a CPU it is the wall
    clock's.  Device None means the default one.
    """

    def __init__(self, device: str | Device | None = None) -> None:
        self.device = Device.parse(device)
        self.count = 0  # blocks that were left
        self._clock: Any = _Events(self.device) if self.device.kind != "cpu" else _WallClock()
        self._begin: Any = None

    def __enter__(self) -> "Timer":
        self._begin = self._clock.now()
        return self

    def __exit__(self, *exc: object) -> None:
        self._clock.add(self._begin, self._clock.now())
        self.count += 1

    @property
    def seconds(self) -> float:
        """The time of all blocks so far."""
        return float(self._clock.total())


class _WallClock:
    def __init__(self) -> None:
        self._total = 0.0

    def now(self) -> float:
        return time.perf_counter()

    def add(self, begin: float, end: float) -> None:
        self._total += end - begin

    def total(self) -> float:
        return self._total


class _Events:
    """Pairs of a stream's events.  Those that have passed are added up on the way, so that a long
    run keeps few of them."""

    def __init__(self, device: Device) -> None:
        self._cuda = device.xp.cuda
        self._index = device.index
        self._pairs: deque[tuple[Any, Any]] = deque()
        self._milliseconds = 0.0

    def now(self) -> Any:
        with self._cuda.Device(self._index):
            event = self._cuda.Event()
            event.record(self._cuda.get_current_stream())
        return event

    def add(self, begin: Any, end: Any) -> None:
        self._pairs.append((begin, end))
        self._add_up()

    def total(self) -> float:
        if self._pairs:
            self._pairs[-1][1].synchronize()
        self._add_up()
        return self._milliseconds / 1e3

    def _add_up(self) -> None:
        while self._pairs and self._pairs[0][1].done:
            self._milliseconds += self._cuda.get_elapsed_time(*self._pairs.popleft())
