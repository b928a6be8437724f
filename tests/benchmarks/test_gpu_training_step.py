"""The GPU benchmark: the time of a layer excludes Python's time to launch it."""

import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fake_cuda import TimedDevice
from scripts import load_script

from gpucnn import cuda
from gpucnn.commands.check.measure import Spin
from gpucnn.cudasim.memory import unpoisoned
from gpucnn.device import Device

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


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_every_time_in_the_table_of_layers_comes_from_queued(benchmark, monkeypatch):
    calls = []
    monkeypatch.setattr(benchmark, "queued", lambda step, repeats, spin: calls.append(1) or 2.0)
    task = {"device": "cudasim", "batch": 1, "repeats": 1, "precision": "fp32"}
    rows = benchmark.layers(task)
    assert [row[1:3] for row in rows] == [(2.0, 2.0)] * 8
    assert len(calls) == 16


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_a_step_runs_in_the_precision_of_its_task(benchmark, monkeypatch, precision):
    if precision == "bf16":
        pytest.importorskip("ml_dtypes", reason="needs ml_dtypes")
    recorded = []

    def once(step, device, repeats):
        with cuda.record_launches(False) as launches:
            step()
        recorded.append(launches)
        return 1.0

    monkeypatch.setattr(benchmark, "milliseconds", once)
    monkeypatch.setattr(Device, "parse", lambda name: Device("cudasim"))  # no compiler
    task = {"device": "cudasim", "batch": 8, "repeats": 1, "precision": precision}
    with unpoisoned(), np.errstate(all="ignore"):
        benchmark.own_figures(task)
    element = {"fp32": set(), "tf32": {"tf32"}, "bf16": {"bfloat16"}, "fp16": {"half"}}[precision]
    for launches in recorded:  # training, inference
        tensor = [launch for launch in launches if launch.kernel.name.endswith("_tensor")]
        assert {dict(launch.defines)["ELEMENT"] for launch in tensor} == element


def test_a_share_of_the_peak_is_that_of_the_arithmetic_used(benchmark, capsys, monkeypatch):
    rows = [("one", 1.0, 2.0, 1e9, 1, ["fp32", "tf32"]), ("two", 1.0, 2.0, 1e9, 2, ["fp16"] * 2)]
    monkeypatch.setattr(benchmark, "layers", lambda task: rows)
    benchmark.layer_table({}, {"fp32": 4e12, "tf32": 8e12})
    cells = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[-2:]]
    shares = [[cells[i][j].strip() for j in (3, 6)] for i in (0, 1)]
    assert shares == [["50% of fp32", "12% of tf32"], ["fp16, unknown", "fp16, unknown"]]


def test_the_peaks_of_an_a100_are_those_of_its_data_sheet(benchmark):
    class A100:
        compute_capability = "80"
        attributes = {"ClockRate": 1_410_000, "MultiProcessorCount": 108}

    device = SimpleNamespace(
        index=0, xp=SimpleNamespace(cuda=SimpleNamespace(Device=lambda index: A100))
    )
    teraflops = {name: round(speed / 1e12, 1) for name, speed in benchmark.peaks(device).items()}
    assert teraflops == {"fp32": 19.5, "tf32": 155.9, "bf16": 311.9, "fp16": 311.9}
