"""What the parts of a check find: each sees the fault that is put in front of it."""

import io
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from processes import is_gone

import gpucnn
from gpucnn import cuda, models, nn
from gpucnn.commands.check import (
    agreement,
    kernels,
    measure,
    peer,
    profiles,
    runner,
    sanitizer,
    suite,
    tools,
)
from gpucnn.commands.check.part import Out, Task
from gpucnn.cuda import compiler, launcher
from gpucnn.device import Device


class Said:
    """What a part said, by kind."""

    def __init__(self, device="cudasim", quick=True):
        self._stream = io.StringIO()
        self.out = Out(Task(device, quick, "lenet5", 600.0), self._stream)

    def all(self, kind):
        events = [json.loads(line) for line in self._stream.getvalue().splitlines()]
        return [event[kind] for event in events if kind in event]

    def states(self):
        return {finding["what"]: finding["state"] for finding in self.all("finding")}

    def text(self):
        return self._stream.getvalue()


# --- kernels ---


@pytest.fixture
def fault(monkeypatch):
    """Puts a fault into a kernel's source."""
    assemble = cuda.assemble

    def forget():
        compiler.load_module.cache_clear()
        launcher.checked_kernel.cache_clear()

    def put(file, right, wrong):
        assert right in assemble(file), "the kernel has changed: put the fault where it is now"

        def assemble_with_fault(name, *rest):
            text = assemble(name, *rest)
            return text.replace(right, wrong) if name == file else text

        monkeypatch.setattr(cuda, "assemble", assemble_with_fault)
        forget()

    yield put
    forget()


@pytest.fixture
def few(monkeypatch):
    """ReLU's and pooling's cases alone, which compile in a second."""

    def cases(rng, gpu):
        yield from kernels._elementwise(rng, gpu)
        yield from kernels._pools(rng, gpu)

    monkeypatch.setattr(agreement, "cases", cases)


@pytest.mark.usefixtures("compiler", "few")
def test_a_wrong_kernel_fails_its_case_and_no_other(fault):
    fault("pool2d.cu", "value > best", "value >= best")  # ties go to the last
    said = Said()
    agreement._every_kernel(said.out)
    failed = [what for what, state in said.states().items() if state == "fail"]
    assert failed == ["max_pool2d"]
    assert len(said.all("row")) == 6
    finding = next(f for f in said.all("finding") if f["state"] == "fail")
    assert "allowed 2e-06" in finding["found"]
    assert "max_pool2d_forward" in finding["remedy"]


@pytest.mark.usefixtures("compiler", "few")
def test_a_kernel_that_does_not_compile_is_reported_with_the_compilers_words(fault):
    fault("activation.cu", "__global__", "__global__ nonsense")
    said = Said()
    agreement._every_kernel(said.out)
    states = said.states()
    assert states["relu"] == states["leaky_relu"] == "fail"
    assert "max_pool2d" in [row["cells"]["case"] for row in said.all("row")]
    assert "nonsense" in said.text()


@pytest.mark.usefixtures("compiler")
def test_a_file_that_does_not_compile_is_named_before_its_cases_run(fault, monkeypatch):
    fault("activation.cu", "__global__", "__global__ nonsense")
    declared = {name: cuda.kernel(name) for name in ("relu_forward", "max_pool2d_forward")}
    monkeypatch.setattr(cuda, "kernels", lambda: declared)
    said = Said()
    agreement._compile(said.out)
    assert said.states() == {"compiling activation.cu": "fail", "compiling": "note"}


@pytest.mark.usefixtures("compiler")
def test_a_layer_that_differs_from_the_cpus_is_named(monkeypatch):
    said = Said()
    layer = nn.ReLU()
    agreement._layer(said.out, "lenet5", "ReLU", layer, (2, 3, 3, 4))
    assert said.states() == {}
    monkeypatch.setattr(agreement, "largest", lambda ours, theirs: 1e-3)
    agreement._layer(said.out, "lenet5", "ReLU", layer, (2, 3, 3, 4))
    assert said.states() == {"lenet5: ReLU, batch 2": "fail"}


def test_the_cases_leave_the_choice_of_kernels_as_it_was():
    before = gpucnn.get_conv_algorithm(), vars(kernels.conv2d_cuda).copy()
    with kernels.every_way("plain", (128, 128)):
        assert kernels.conv2d_cuda._tile(1, 1, 1) == (128, 128)
    assert (gpucnn.get_conv_algorithm(), vars(kernels.conv2d_cuda)) == before


# --- measuring ---


def test_the_operations_of_a_step_are_those_of_its_products():
    model = models.lenet5(generator=np.random.default_rng(0))
    conv1, conv2 = 28 * 28 * 6 * 25, 10 * 10 * 16 * 25 * 6
    dense = 400 * 120 + 120 * 84 + 84 * 10
    # forward, gradient of the weights, gradient of the inputs; the images need none
    expected = 2 * (3 * (conv2 + dense) + 2 * conv1)
    assert measure.training_operations(model, "lenet5") == expected


class Calls:
    """A device whose events come in the order of the calls: what was queued, and when."""

    kind, index = "cuda", 0

    def __init__(self, spins_needed):
        self.log, self.clock, self.spins, self.needed = [], 0.0, 0, spins_needed
        self.xp = self
        self.cuda = self

    def Device(self, index):
        import contextlib

        return contextlib.nullcontext()

    def Event(self):
        return Event(self)

    def get_current_stream(self):
        return self

    def synchronize(self):
        pass

    def get_elapsed_time(self, before, after):
        return after.time - before.time

    def RawModule(self, code):
        return self

    def get_function(self, name):
        return self.spin

    def spin(self, grid, block, arguments):
        self.spins += 1
        self.log.append("spin")

    def work(self):
        self.log.append("work")
        self.clock += 3.0


class Event:
    def __init__(self, device):
        self.device = device

    def record(self):
        self.time = self.device.clock
        self.device.log.append("event")

    def synchronize(self):
        pass

    @property
    def done(self):
        return self.device.spins < self.device.needed


def test_work_is_queued_behind_a_spin_and_again_behind_a_longer_one_if_it_was_too_short():
    device = Calls(spins_needed=6)  # 4 of these measure the spin itself
    spin = measure.Spin(device)
    device.log.clear()
    duration = spin._duration
    found = spin.queue(device.work)
    assert device.log == ["spin", "event", "work", "event"] * 2
    assert (found.device_ms, found.covered) == (3.0, True)
    assert spin._duration >= 2 * duration


def test_a_call_is_the_time_of_many_over_their_number_and_no_more_than_a_queue_holds():
    device = Calls(spins_needed=0)
    spin = measure.Spin(device)
    device.log.clear()
    time, covered = spin.milliseconds(device.work, launches=100, repeats=50, rounds=1)
    assert (time, covered) == (3.0, True)
    assert device.log.count("work") == 512 // 100


@pytest.mark.usefixtures("compiler")
def test_on_the_simulator_work_is_timed_without_a_spin():
    device = Device.parse("cudasim")
    found = measure.Spin(device).queue(lambda: None)
    assert not found.covered
    assert found.device_ms >= 0


# --- PyTorch ---


def test_pytorchs_twin_has_the_same_weights_and_gives_the_same_logits():
    torch = pytest.importorskip("torch", reason="the twin is PyTorch's")
    model = models.lenet5(generator=np.random.default_rng(0)).eval()
    x = np.random.default_rng(1).standard_normal((2, 28, 28, 1), np.float32)
    with gpucnn.no_grad(), torch.no_grad():
        ours = model(gpucnn.tensor(x)).numpy()
        theirs = peer.twin(model, "cpu").eval()(torch.tensor(x).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_model_without_a_twin_is_an_error_that_names_the_layer():
    pytest.importorskip("torch", reason="the twin is PyTorch's")
    with pytest.raises(gpucnn.GpucnnError, match="twin of a GELU"):
        peer.twin(nn.Sequential(nn.GELU()), "cpu")


@pytest.mark.parametrize("side", [peer.SIDES[0], peer.SIDES[2]], ids=lambda side: side.name)
def test_pytorchs_step_runs_in_every_way(side):
    torch = pytest.importorskip("torch", reason="the twin is PyTorch's")
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        step = peer.torch_step("lenet5", "cpu", side, 2)
        step()
        step()
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


# --- tools ---


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """Puts a tool on PATH that prints a text and ends with a status."""

    def put(name, text, status=0):
        (tmp_path / "text").write_text(text)
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\ncat {tmp_path / 'text'}\nexit {status}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    return put


NCU = "\n".join(
    [
        "==PROF== Connected to process 7",
        '"ID","Process ID","Kernel Name","gpu__time_duration.sum",'
        '"sm__throughput.avg.pct_of_peak_sustained_elapsed","launch__grid_size"',
        '"","","","ns","%",""',
        '"0","7","conv2d_forward_128x128_vector(const float *, int)","1,500","81.5","256"',
        '"1","7","relu_backward(const float *)","2500","12","32"',
    ]
)


def test_ncus_table_is_read_with_its_units():
    assert profiles.read_ncu(NCU) == [
        {"kernel": "conv2d_forward_128x128_vector", "us": 1.5, "SM %": 81.5, "blocks": 256.0},
        {"kernel": "relu_backward", "us": 2.5, "SM %": 12.0, "blocks": 32.0},
    ]
    assert profiles.read_ncu("==ERROR== something else") == []


@pytest.mark.skipif(sys.platform == "win32", reason="the tools are shell scripts")
@pytest.mark.parametrize(
    ("text", "status", "state"),
    [
        (NCU, 0, "ok"),
        ("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission\n", 1, "skip"),
        ("==ERROR== no kernels were profiled\n", 0, "fail"),
    ],
)
def test_ncu_is_run_and_its_refusal_has_a_remedy(text, status, state, tool):
    tool("ncu", text, status)
    said = Said("cuda")
    profiles._ncu(said.out, tools.find("ncu"))
    assert said.states() == {"ncu": state}


CLEAN = "========= ERROR SUMMARY: 0 errors\n"
RACES = "========= RACECHECK SUMMARY: {} displayed\n"


@pytest.mark.skipif(sys.platform == "win32", reason="the tools are shell scripts")
@pytest.mark.parametrize(
    ("text", "status", "state"),
    [
        ("ran relu\nran dropout\n" + CLEAN, 0, "ok"),
        (RACES.format("0 hazards"), 0, "ok"),
        ("========= Invalid __global__ read of size 4 bytes\n", 9, "fail"),
        ("========= Error: Race reported between Read and Write\n" + RACES.format(1), 9, "fail"),
        ("WRONG: relu is off by 1e-3, allowed 2e-06\n" + CLEAN, 1, "fail"),
        ("========= Error: Target application terminated before the first call\n", 1, "fail"),
    ],
)
def test_what_compute_sanitizer_says_decides(text, status, state, tool):
    tool("compute-sanitizer", text, status)
    said = Said("cuda")
    sanitizer._sanitize(said.out, tools.find("compute-sanitizer"), "memcheck", 60)
    assert said.states() == {"memcheck": state}


def test_a_tool_that_is_missing_is_a_line_that_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(tools, "find", lambda tool: None)
    said = Said("cuda")
    sanitizer.examine(said.out)
    (finding,) = said.all("finding")
    assert (finding["state"], finding["found"]) == ("skip", "not installed")
    assert "apt install" in finding["remedy"]


@pytest.mark.skipif(sys.platform == "win32", reason="the tools are shell scripts")
def test_a_tool_is_ended_at_its_limit_with_what_it_started_and_its_text_is_kept(tmp_path):
    script = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True); time.sleep(600)"
    )
    found = tools.output([sys.executable, "-c", script], 1.0)
    assert found.status is None
    assert is_gone(int(found.text))


# --- pytest's output ---


RESULTS = [
    {"test": "tests/a.py::test_a[cuda]", "outcome": "passed", "text": ""},
    {"test": "tests/a.py::test_b[cuda]", "outcome": "failed", "text": "    assert x\nE   no x\n"},
]


def test_a_failing_test_is_said_at_once_with_its_reason():
    said = Said()
    results = suite.Results(said.out)
    text = "".join(json.dumps(result) + "\n" for result in RESULTS)
    results.read(io.StringIO(text[:100]))
    assert said.all("finding") == []
    results.read(io.StringIO(text[100:]))  # the rest of a line that was not complete
    (finding,) = said.all("finding")
    assert (finding["what"], finding["found"]) == ("tests/a.py::test_b[cuda]", "no x")
    assert "assert x" in finding["remedy"]
    results.close(1, "")
    assert said.states() == {"tests/a.py::test_b[cuda]": "fail"}
    assert said.all("headline") == ["1 failed, 1 passed"]


@pytest.mark.parametrize(
    ("status", "state", "words"),
    [
        (0, "ok", "1 passed"),
        (None, "note", "1 passed, and then there was no time left, after tests/a.py::test_a"),
        (4, "fail", "pytest ended with status 4"),
    ],
)
def test_the_end_of_the_tests_is_told(status, state, words):
    said = Said()
    results = suite.Results(said.out)
    results.read(io.StringIO(json.dumps(RESULTS[0]) + "\n"))
    results.close(status, "usage: pytest")
    assert said.states() == {"tests": state}
    assert words in said.text()


def test_the_plugin_writes_each_result_once(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2\n"
        "def test_skipped(): pytest.skip('why')\n"
        "@pytest.fixture\n"
        "def broken(): raise OSError('no device')\n"
        "def test_error(broken): pass\n"
    )
    path = tmp_path / "results"
    env = runner.environment(GPUCNN_CHECK_RESULTS=str(path), PYTEST_ADDOPTS="")
    env.pop("PYTEST_XDIST_WORKER", None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "gpucnn.commands.check.pytest_results"]
    subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, timeout=120)
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert {result["test"].partition("::")[2]: result["outcome"] for result in found} == {
        "test_good": "passed", "test_bad": "failed", "test_skipped": "skipped",
        "test_error": "error",
    }  # fmt: skip
    assert len(found) == 4
    assert "assert 1 == 2" in found[1]["text"]
    assert "no device" in found[3]["text"]


# --- the whole run ---


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_a_quick_run_on_the_simulator_finds_nothing(tmp_path):
    from gpucnn.commands import main

    assert main(["check", "--device", "cudasim", "--quick", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert [part["state"] for part in report["parts"]].count("ok") == 8
    assert len(report["summary"]) <= 20
    assert Path(tmp_path, "report.md").read_text().count("\n## ") == 10


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_a_wrong_kernel_one_that_does_not_compile_and_a_part_that_hangs_are_reported(tmp_path):
    """In another checkout on PYTHONPATH, as its user would see them."""
    root = runner.ROOT
    for folder in ("gpucnn", "kernels"):
        shutil.copytree(root / folder, tmp_path / folder)
    shutil.copy(root / "pyproject.toml", tmp_path)
    for file, right, wrong in (
        ("kernels/pool2d.cu", "value > best", "value >= best"),
        ("kernels/activation.cu", "__global__", "__global__ nonsense"),
        (
            "gpucnn/commands/check/probes.py",
            "def _stream(out: Out) -> None:\n",
            "{}    while True: pass\n",
        ),
    ):
        text = (tmp_path / file).read_text()
        assert right in text
        (tmp_path / file).write_text(text.replace(right, wrong.replace("{}", right)))
    command = [
        sys.executable,
        "-P",
        "-m",
        "gpucnn.commands",
        "check",
        "--device",
        "cudasim",
        "--quick",
    ]
    done = subprocess.run(
        [*command, "--parts", "agreement", "probes", "--out", str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
        timeout=200,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    failed = {
        finding["what"]: finding["found"] + finding["remedy"]
        for part in report["parts"]
        for finding in part["findings"]
        if finding["state"] == "fail"
    }
    assert "of the largest value" in failed["max_pool2d"]
    assert "nonsense" in failed["relu"]
    assert "ended" in failed["a stream of one's own"]
    assert report["finished"]
