"""Fixtures that all tests share."""

import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from devices import CPU, CUDA, CUDASIM

import gpucnn
from gpucnn import cudasim, precision
from gpucnn.cuda import nvrtc
from gpucnn.device import Device
from gpucnn.errors import DeviceError
from gpucnn.ops.conv2d import cuda as conv2d_cuda

# PyTorch's threads spin while they wait for each other, many times slower beside another program.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print one line per reason for skipping: `-rs` prints one per test function.

    Reasons that differ in numbers only, such as a device's or an architecture's, are one.
    """
    reasons, alike = Counter[str](), dict[str, str]()
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2].splitlines()[0]
        reasons[alike.setdefault(re.sub(r":?[\d.]+\b", "", reason), reason)] += 1
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count} {reason[0].lower()}{reason[1:]}")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)


@pytest.fixture(autouse=True)
def _seed_default_generator() -> None:
    gpucnn.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _float32_in_full() -> None:
    """Tests compare with the CPU; those of TF32 set it themselves."""
    gpucnn.set_float32_precision("highest")


@pytest.fixture(autouse=True)
def _float32_in_full_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore the precision after a test that sets it."""
    monkeypatch.setattr(precision, "_float32_precision", "highest")


@pytest.fixture(scope="session", autouse=True)
def _hangups_as_in_a_terminal() -> Iterator[None]:
    """Under nohup, tests and their child processes would ignore the SIGHUP that tests send."""
    number = getattr(signal, "SIGHUP", None)
    before = None if number is None else signal.getsignal(number)
    if before == signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)
    yield
    if before == signal.SIG_IGN:
        signal.signal(number, before)


@pytest.fixture(scope="session")
def compiler() -> None:
    """Skip tests that need the simulator if it cannot be built."""
    try:
        cudasim.require_compiler()
    except DeviceError as error:
        pytest.skip(f"no C++ compiler: {error}")


@pytest.fixture(scope="session")
def nvrtc_library() -> None:
    """Skip tests that compile with NVRTC if it is not installed."""
    try:
        nvrtc.version()
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.fixture(params=[CPU, CUDASIM, CUDA])
def device(request: pytest.FixtureRequest) -> str:
    """The name of a device: each in turn."""
    return str(request.param)


@pytest.fixture(params=[CUDASIM, CUDA])
def gpu(request: pytest.FixtureRequest) -> str:
    """The name of a device that runs kernels: each in turn."""
    return str(request.param)


@pytest.fixture
def current(request: pytest.FixtureRequest) -> Iterator[None]:
    """Make the test's device CuPy's current device, for tests that compute with raw arrays."""
    name = next((name for name in ("device", "gpu") if name in request.fixturenames), None)
    device = Device("cpu") if name is None else Device.parse(request.getfixturevalue(name))
    with nullcontext() if device.kind == "cpu" else device.xp.cuda.Device(device.index):
        yield


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """A function that sets the number of CPU threads for this test."""
    before = gpucnn.get_num_threads()
    yield gpucnn.set_num_threads
    gpucnn.set_num_threads(before)


@pytest.fixture
def conv_algorithm() -> Iterator[Callable[[str], None]]:
    """A function that sets the convolution algorithm for this test."""
    before = gpucnn.get_conv_algorithm()
    yield gpucnn.set_conv_algorithm
    gpucnn.set_conv_algorithm(before)


@pytest.fixture
def tiles_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use tiled kernels and split sums for shapes otherwise too small for them."""
    monkeypatch.setattr(conv2d_cuda, "_MIN_CHANNELS", 1)
    monkeypatch.setattr(conv2d_cuda, "_MIN_SPLIT", 8)


@pytest.fixture
def small_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Train in a folder of its own, and draw no curves, which would take most of the time."""
    monkeypatch.chdir(tmp_path)
    if "curves" not in request.node.name:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
