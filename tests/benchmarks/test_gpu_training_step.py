"""The benchmark of a step: a layer's time holds nothing of what Python takes for a launch."""

import importlib.util
import sys
import time
from pathlib import Path

import pytest

from gpucnn.commands.check.measure import Spin

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    path = FOLDER / "gpu_training_step.py"
    spec = importlib.util.spec_from_file_location("gpu_training_step", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_training_step", module)
    spec.loader.exec_module(module)
    return module


class Device:
    """A GPU on which a launch takes 1 ms, behind a host that needs 3 ms to make it.

    Its clock is the host's: what is launched waits for what was launched before, and an event
    has passed when all before it is done.
    """

    kind, index = "cuda", 0

    def __init__(self):
        self.xp = self.cuda = self
        self.host = 0.0  # milliseconds
        self.busy = 0.0  # until when the device works

    def Device(self, index):
        import contextlib

        return contextlib.nullcontext()

    def Event(self):
        return Event(self)

    def get_current_stream(self):
        return self

    def synchronize(self):
        self.host = max(self.host, self.busy)

    def get_elapsed_time(self, begin, end):
        return end.time - begin.time

    def RawModule(self, code):
        return self

    def get_function(self, name):
        return lambda grid, block, arguments: self.run(float(arguments[0]) * 1e-6)

    def run(self, milliseconds):
        self.busy = max(self.busy, self.host) + milliseconds

    def launch(self):
        self.host += 3.0
        self.run(1.0)


class Event:
    def __init__(self, device):
        self.device = device

    def record(self):
        self.time = max(self.device.busy, self.device.host)

    def synchronize(self):
        self.device.host = max(self.device.host, self.time)

    @property
    def done(self):
        return self.device.host >= self.time


def test_a_layers_time_is_the_devices_and_not_pythons(benchmark, monkeypatch):
    device = Device()
    monkeypatch.setattr(time, "perf_counter", lambda: device.host / 1e3)
    spin = Spin(device)
    assert benchmark.milliseconds(device.launch, device, 5) == pytest.approx(3.0)  # Python
    assert benchmark.queued(device.launch, 20, spin) == pytest.approx(1.0)


@pytest.mark.usefixtures("compiler")
def test_the_layers_are_timed_in_that_way(benchmark, monkeypatch):
    """Every figure of the table comes from `queued`."""
    calls = []
    monkeypatch.setattr(benchmark, "queued", lambda step, repeats, spin: calls.append(1) or 2.0)
    task = {"device": "cudasim", "batch": 1, "repeats": 1}
    rows = benchmark.layers(task)
    assert [row[1:3] for row in rows] == [(2.0, 2.0)] * 8
    assert len(calls) == 16
