"""Measure time on a device with its own clock."""

import time
from collections import deque
from typing import Any

from gpucnn.device import Device


class Timer:
    """Accumulate the time spent in `with` blocks.

        timer = cuda.Timer(images.device)
        for images, labels in loader:
            with timer:
                step(images, labels)
        print(timer.seconds / timer.count)

    On a GPU it measures the time between two events on the current stream.  Entering and leaving a
    block do not synchronize; reading `seconds` waits for the last event.  On a CPU it measures
    wall-clock time.  Device None means the default device.
    """

    def __init__(self, device: str | Device | None = None) -> None:
        self.device = Device.parse(device)
        self.count = 0  # completed blocks
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
        """Total time of all blocks so far."""
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
    """Pairs of stream events.  Completed pairs are added up and freed at each block, so that a long
    run keeps few."""

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
        self._collect()

    def total(self) -> float:
        if self._pairs:
            self._pairs[-1][1].synchronize()
        self._collect()
        return self._milliseconds / 1e3

    def _collect(self) -> None:
        while self._pairs and self._pairs[0][1].done:
            self._milliseconds += self._cuda.get_elapsed_time(*self._pairs.popleft())
