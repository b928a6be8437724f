"""Measure time on a device: between events, or of work queued behind a spinning kernel.

Events around a single launch measure Python: the device waits for the host between them.  Work
that is queued while the device is busy runs without gaps, and the host's time to queue it is
measured separately.

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
_QUEUE = 512  # launches in flight; a stream's queue holds about 1024


@dataclass(frozen=True)
class Queued:
    """The time of work that was queued behind a spin."""

    device_ms: float
    host_ms: float  # to queue it
    covered: bool  # the spin outlasted queueing: device_ms has no gaps, host_ms no waits


def milliseconds(step: Callable[[], object], device: Device, repeats: int) -> float:
    """The median time of one call between two events, in milliseconds: host and device together."""
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
    """Milliseconds per call, from `steps` calls between two events: gaps included."""
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

    The simulator runs each call synchronously: nothing spins there, and nothing is covered.
    """

    def __init__(self, device: Device) -> None:
        self._device, self._cuda = device, device.xp.cuda
        self._kernel: Any = None
        self._duration = 2.0  # milliseconds
        if device.kind == "cuda":
            with self._cuda.Device(device.index):
                self._kernel = device.xp.RawModule(code=_SPIN).get_function("spin")
                time = milliseconds(lambda: self._launch(_CALIBRATION), device, 3)
            self._cycles = _CALIBRATION / max(time, 1e-3)  # per millisecond

    @property
    def simulated(self) -> bool:
        return self._kernel is None

    def _launch(self, cycles: int) -> None:
        self._kernel((1,), (1,), (np.int64(cycles),))

    def queue(self, work: Callable[[], object]) -> Queued:
        """Run work() behind the spin; retry with a longer one if it ended too early."""
        with self._cuda.Device(self._device.index):
            for _ in range(_TRIES):
                queued = self._queue(work)
                if queued.covered or self._kernel is None or self._duration >= _LONGEST:
                    break
                self._duration = min(max(2 * self._duration, 2 * queued.host_ms), _LONGEST)
        return queued

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
        """The device time of one call in milliseconds, and whether it is free of gaps.

        launches: the number of launches in one call.  Each round queues `repeats` calls, or as many
        as fit into the stream's queue; the result is the median over rounds.  Call step once before
        this, so that compiling and allocating are not measured.
        """
        calls = max(min(repeats, _QUEUE // max(launches, 1)), 1)

        def work() -> None:
            for _ in range(calls):
                step()

        queued = [self.queue(work) for _ in range(rounds)]
        time = statistics.median(one.device_ms for one in queued) / calls
        return time, all(one.covered for one in queued)


def training_operations(model: nn.Module, name: str) -> float:
    """Floating-point operations of a training step per image; a multiply-add counts as two.

    The backward pass takes twice the forward pass, but the first layer skips the images' gradient.
    """
    layers = [layer.multiply_adds for layer in nn.summary(model, models.input_shape(name)).layers]
    first = next((work for work in layers if work), 0)
    return 2.0 * (3 * sum(layers) - first)
