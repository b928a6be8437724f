"""Time on a device: between events, and of work that waits behind a kernel that spins.

Events around a single launch measure Python: the device waits for the host between the two.  Work
that is queued while the device is busy with something else then runs without a gap, and what
the host needed to queue it is measured by itself.

    stream   | spin ..................... | event | work | work | work | event |
    host     | launch, launch, launch, ...|  <- all queued before the spin ends
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn import models, nn
from gpucnn.device import Device

_SPIN = """
extern "C" __global__ void spin(long long cycles) {
    long long start = clock64();
    while (clock64() - start < cycles) { }
}
"""
_CALIBRATION = 1_000_000  # cycles
_LONGEST = 1000.0  # milliseconds of spinning
_TRIES = 3
_QUEUE = 512  # launches that fit into a stream's queue, with room to spare: CUDA holds about 1024


@dataclass(frozen=True)
class Queued:
    """What it took to run some work behind a spin."""

    device_ms: float
    host_ms: float  # to queue it
    covered: (
        bool  # the spin lasted until all was queued: no gap is in device_ms, no wait in host_ms
    )


def milliseconds(step: Callable[[], object], device: Device, repeats: int) -> float:
    """The median time of one call between two events, host and device together."""
    cuda = device.xp.cuda
    with cuda.Device(device.index):
        step()
        pairs = []
        for _ in range(repeats):
            pairs.append((cuda.Event(), cuda.Event()))
            pairs[-1][0].record()
            step()
            pairs[-1][1].record()
        pairs[-1][1].synchronize()
        return float(statistics.median(cuda.get_elapsed_time(*pair) for pair in pairs))


def between_events(step: Callable[[], object], steps: int, device: Device) -> float:
    """Milliseconds of a call, of so many between two events: gaps are in it."""
    cuda = device.xp.cuda
    begin, end = cuda.Event(), cuda.Event()
    begin.record()
    for _ in range(steps):
        step()
    end.record()
    end.synchronize()
    return float(cuda.get_elapsed_time(begin, end)) / steps


class Spin:
    """A kernel that keeps `device` busy while work is queued behind it.

    The simulator runs each call at once, so that there nothing spins and nothing is covered.
    """

    def __init__(self, device: Device) -> None:
        self._device, self._cuda = device, device.xp.cuda
        self._kernel: Any = None
        self._duration = 2.0  # milliseconds
        if device.kind == "cuda":
            with self._cuda.Device(device.index):
                self._kernel = device.xp.RawModule(code=_SPIN).get_function("spin")
                time = milliseconds(lambda: self._launch(_CALIBRATION), device, 3)
            self._cycles = _CALIBRATION / max(time, 1e-3)  # of a millisecond

    @property
    def simulated(self) -> bool:
        return self._kernel is None

    def _launch(self, cycles: int) -> None:
        self._kernel((1,), (1,), (np.int64(cycles),))

    def queue(self, work: Callable[[], object]) -> Queued:
        """Run work() behind the spin; a second time with a longer one if it was too short."""
        with self._cuda.Device(self._device.index):
            for _ in range(_TRIES):
                found = self._queue(work)
                if found.covered or self._kernel is None or self._duration >= _LONGEST:
                    break
                self._duration = min(max(2 * self._duration, 2 * found.host_ms), _LONGEST)
        return found

    def _queue(self, work: Callable[[], object]) -> Queued:
        before, after = self._cuda.Event(), self._cuda.Event()
        self._cuda.get_current_stream().synchronize()
        if self._kernel is not None:
            self._launch(int(self._duration * self._cycles))
        before.record()
        start = time.perf_counter()
        work()
        host = (time.perf_counter() - start) * 1e3
        after.record()
        covered = self._kernel is not None and not before.done
        after.synchronize()
        return Queued(self._cuda.get_elapsed_time(before, after), host, covered)

    def milliseconds(
        self, step: Callable[[], object], launches: int, repeats: int, rounds: int = 3
    ) -> tuple[float, bool]:
        """The device's time of one call, and whether it is without gaps.

        launches: how many one call makes.  Each of the rounds queues `repeats` calls, or as many
        as fit into the stream's queue; the median of the rounds counts.  Call step once before:
        what it compiles and allocates is no part of its time.
        """
        calls = max(min(repeats, _QUEUE // max(launches, 1)), 1)

        def work() -> None:
            for _ in range(calls):
                step()

        found = [self.queue(work) for _ in range(rounds)]
        time = statistics.median(one.device_ms for one in found) / calls
        return time, all(one.covered for one in found)


def training_operations(model: nn.Module, name: str) -> float:
    """Floating-point operations of a training step for one image, a multiply-add being two.

    Forward, and twice as many backward; the first layer needs no gradient of the images.
    """
    layers = [layer.multiply_adds for layer in nn.summary(model, models.input_shape(name)).layers]
    first = next((work for work in layers if work), 0)
    return 2.0 * (3 * sum(layers) - first)
