"""One rank of several fails: all end soon, with its message, and the last checkpoint is whole."""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gpucnn.checkpoint import read_checkpoint

sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))

from mpiexec import start_ranks

PROGRAM = Path(__file__).parents[1] / "distributed" / "faulty_ranks.py"
LIMIT = 10.0  # seconds from the fault to the end of the last process
SHORT, LONG = ("--epochs", 4), ("--epochs", 40)  # of three steps


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The tensors at the end of a run of SHORT."""
    with contextlib.chdir(tmp_path_factory.mktemp("undisturbed")):
        assert ended(start("none", 1, 0, *SHORT))[0] == 0
        return tensors()


def start(*arguments, **options):
    return start_ranks(2, PROGRAM, *arguments, "--out", "run", "--quiet", **options)


def ended(process):
    """The exit status and standard error of mpiexec, LIMIT after the fault at the latest."""
    try:
        while process.poll() is None:
            fault = Path("fault")
            if fault.exists() and time.time() - fault.stat().st_mtime > LIMIT:
                pytest.fail(f"the ranks still run {LIMIT:.0f} s after the fault")
            time.sleep(0.05)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        _, err = process.communicate()
    return process.returncode, err


def tensors():
    return read_checkpoint("run/last.safetensors").tensors


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(np.array_equal(array, other[name]) for name, array in one.items())


FAULTS = {
    "an error on one of two ranks": ("raise", 1, "rank 1: Traceback", 1),
    "kill -9 of one of two ranks": ("kill", 1, "", 9),
    "one of two ranks out of memory": ("out of memory", 1, "rank 1: error: out of memory", 2),
    "NaN on one of two ranks": ("nan", 1, "rank 1: the images of the batch are not finite", 2),
    "a full disk on the rank that saves": ("full disk", 0, "rank 0: error: ", 2),
}


@pytest.mark.parametrize(
    ("name", "step"), [*((name, 4) for name in FAULTS), ("kill -9 of one of two ranks", 7)]
)
def test_a_fault_of_one_rank_ends_all_and_the_run_resumes_to_the_same_bits(
    name, step, undisturbed, tally
):
    fault, rank, message, status = FAULTS[name]
    with tally(name):
        code, text = ended(start(fault, rank, step, *SHORT))
        assert code == status
        assert message in text
        info = read_checkpoint("run/last.safetensors").info
        assert info["step"] == 3 * info["epoch"] == step // 3 * 3
        Path("fault").unlink()
        assert ended(start("none", 0, 0, "--resume"))[0] == 0
        assert_same(tensors(), undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_mpiexec_stops_all_ranks_at_the_same_step_and_saves(number, tally):
    with tally("SIGINT or SIGTERM to mpiexec"):
        process = start("a signal", 1, 7, *LONG)
        while not Path("fault").exists():
            time.sleep(0.02)
        os.utime("fault")
        process.send_signal(number)
        code, text = ended(process)
        assert code == 128 + number
        step = read_checkpoint("run/last.safetensors").info["step"]
        assert step >= 7
        assert f"after step {step}; resume with --resume run/last.safetensors" in text
        assert "Traceback" not in text


def test_a_rank_that_comes_late_changes_nothing(undisturbed, tally):
    with tally("one of two ranks that comes seconds late"):
        assert ended(start("late", 1, 2, *SHORT))[0] == 0
        assert_same(tensors(), undisturbed)


def test_a_rank_whose_parameters_drift_is_named_within_100_steps(tally):
    with tally("parameters of one rank that drift"):
        code, text = ended(start("drift", 1, 98, "--batch-size", 2, "--epochs", 9, "--lr", 1e-3))
        assert code == 2
        assert "step 100: parameter 0.weight of rank " in text


def test_processes_that_would_not_train_together_say_so(tally):
    with tally("mpiexec without --distributed"):
        process = start_ranks(2, PROGRAM.parents[1] / "small_script.py", "--out", "run")
        code, text = ended(process)
        assert code == 2
        assert "mpiexec has started 2 processes" in text
        assert not Path("run").exists()


def test_a_rank_that_fails_ends_the_others_without_help_from_mpi4py(tally):
    with tally("an error on one of two ranks"):
        code, text = ended(start("raise", 1, 2, *SHORT, runner=()))
        assert code == 1
        assert "rank 1: Traceback" in text
