"""The GPU benchmark: the time of a layer excludes Python's time to launch it."""

import time
from pathlib import Path

import pytest
from fake_cuda import TimedDevice
from scripts import load_script

from gpucnn.commands.check.measure import Spin

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return load_script(FOLDER / "gpu_training_step.py")


class SlowHost(TimedDevice):
    """A GPU on which a launch takes 1 ms, behind a host that needs 3 ms to queue it.

    Work waits for the work launched before it; an event passes when all work before it is done.
    """

    def __init__(self):
        super().__init__()
        self.host = 0.0  # the host's clock, in milliseconds
        self.busy = 0.0  # the time at which the device becomes idle

    def record(self):
        return max(self.busy, self.host)

    def has_passed(self, time):
        return self.host >= time

    def wait_until(self, time):
        self.host = max(self.host, time)

    def synchronize(self):
        self.wait_until(self.busy)

    def spin(self, grid, block, arguments):
        self.run(float(arguments[0]) * 1e-6)

    def run(self, milliseconds):
        self.busy = max(self.busy, self.host) + milliseconds

    def launch(self):
        self.host += 3.0
        self.run(1.0)


def test_the_time_of_a_layer_excludes_pythons_time_to_launch_it(benchmark, monkeypatch):
    device = SlowHost()
    monkeypatch.setattr(time, "perf_counter", lambda: device.host / 1e3)
    spin = Spin(device)
    assert benchmark.milliseconds(device.launch, device, 5) == pytest.approx(3.0)  # Python
    assert benchmark.queued(device.launch, 20, spin) == pytest.approx(1.0)


@pytest.mark.usefixtures("compiler")
def test_every_time_in_the_table_of_layers_comes_from_queued(benchmark, monkeypatch):
    calls = []
    monkeypatch.setattr(benchmark, "queued", lambda step, repeats, spin: calls.append(1) or 2.0)
    task = {"device": "cudasim", "batch": 1, "repeats": 1}
    rows = benchmark.layers(task)
    assert [row[1:3] for row in rows] == [(2.0, 2.0)] * 8
    assert len(calls) == 16
