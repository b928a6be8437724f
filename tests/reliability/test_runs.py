"""Training processes that are killed, stopped and resumed end with the bits of undisturbed ones."""

import os
import random
import signal
import subprocess
import sys
import time

import forked_runs
import pytest
import small_script
from forked_runs import RESUME, metrics
from reliability.tally import bounded

from gpucnn import train

NEW = (*forked_runs.NEW, "--save-every", 1)
SUSPEND = "in_step(3, lambda: os.kill(os.getpid(), signal.SIGSTOP))"


@pytest.fixture(scope="module")
def seconds(runs, tmp_path_factory):
    """How long an undisturbed run takes: the fastest of three."""
    found = []
    for name in ("a", "b", "c"):
        folder = tmp_path_factory.mktemp(name)
        started = time.monotonic()
        assert runs.run(folder, *NEW) == 0
        found.append(time.monotonic() - started)
    return min(found)


def next_flags(folder):
    """The command line that continues the run; the newest checkpoint is whole at every instant."""
    flags = forked_runs.next_flags(folder, NEW)
    if flags == RESUME:
        train.read_checkpoint(folder / "run" / "last.safetensors")
    return flags


def finish(runs, folder, whole):
    """Continue the run to its end, and compare it with the undisturbed one."""
    next_flags(folder)
    runs.finish(folder, whole, NEW)


def disturb(runs, folder, seconds, rng, *numbers):
    """Send these signals at random moments of a run, new or resumed; its exit status."""
    pid = runs.start(folder, *next_flags(folder))
    for number in numbers:
        time.sleep(rng.uniform(0, seconds / len(numbers)))
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            break
    return runs.wait(pid)


# --- kill -9 ---


@pytest.mark.parametrize("part", range(4))
def test_a_run_killed_at_random_moments_loses_nothing(part, runs, whole, seconds, tmp_path, tally):
    killed = 0
    for seed in range(8 * part, 8 * part + 8):
        rng, folder, kills = random.Random(seed), tmp_path / str(seed), 0
        folder.mkdir()
        with bounded():
            for _ in range(2):  # the second time during the resume
                kills += disturb(runs, folder, seconds, rng, signal.SIGKILL) == -signal.SIGKILL
            with tally("a training process killed with kill -9 at a random moment", times=kills):
                finish(runs, folder, whole)
        killed += kills
    assert killed >= 8  # the others came after the end of a run


@pytest.mark.parametrize("part", range(4))
def test_a_run_killed_between_any_two_operations_on_files_loses_nothing(
    part, runs, whole, tmp_path, tally
):
    count, status = part + 1, -signal.SIGKILL
    while status == -signal.SIGKILL:
        folder = tmp_path / str(count)
        folder.mkdir()
        with bounded():
            flags = [*NEW[:-1], 2]  # save every 2 steps: each kind of save, twice
            status = runs.run(folder, *flags, setup=f"die_before({count})")
            with tally("kill -9 between two operations on files", times=status != 0):
                finish(runs, folder, whole)
        count += 4
    assert status == 0
    assert count > 20


@pytest.mark.parametrize("seed", range(5))
def test_a_separate_process_that_is_killed_loses_nothing(
    seed, runs, whole, seconds, tmp_path, tally
):
    command = [sys.executable, small_script.__file__, *map(str, NEW)]
    path = os.pathsep.join(filter(None, sys.path))
    with (
        tally("a training process killed with kill -9 at a random moment"),
        open(tmp_path / "stderr", "w") as stderr,
    ):
        process = subprocess.Popen(
            command, cwd=tmp_path, stderr=stderr, env={**os.environ, "PYTHONPATH": path}
        )
        deadline = time.monotonic() + 600
        while not (tmp_path / "run" / "run.lock").exists():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(random.Random(seed).uniform(0, seconds / 2))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        finish(runs, tmp_path, whole)


def test_a_killed_run_leaves_its_folder_to_the_next(runs, whole, tmp_path, tally):
    with tally("a second process in the folder of a run"), bounded():
        first = runs.start(tmp_path, *NEW, setup=SUSPEND)
        while not (tmp_path / "run" / "last-1.safetensors").exists():
            time.sleep(0.001)
        for flags in (RESUME, ("--resume", "run/last.safetensors")):
            assert runs.run(tmp_path, *flags) == 2
        errors = (tmp_path / "stderr").read_text()
        assert errors.count(f"error: --out: run is in use by process {first}\n") == 2
        os.kill(first, signal.SIGKILL)
        assert runs.wait(first) == -signal.SIGKILL
        finish(runs, tmp_path, whole)


# --- other signals ---


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("number", "statuses"),
    [
        (signal.SIGINT, {130}),
        (signal.SIGTERM, {143, -signal.SIGTERM}),  # the latter before training has started
        (signal.SIGHUP, {129, -signal.SIGHUP}),
    ],
)
def test_a_run_stopped_by_a_signal_loses_nothing(
    number, statuses, seed, runs, whole, seconds, tmp_path, tally
):
    with tally("SIGINT, SIGTERM or SIGHUP at a random moment"), bounded():
        status = disturb(runs, tmp_path, seconds, random.Random(seed), number)
        assert status in {*statuses, 0}
        if status > 0:
            truthful(tmp_path)
        finish(runs, tmp_path, whole)


@pytest.mark.parametrize("seed", range(10))
def test_a_run_stopped_by_two_ctrl_c_says_what_is_on_disk(
    seed, runs, whole, seconds, tmp_path, tally
):
    with tally("Ctrl-C twice"), bounded():
        numbers = signal.SIGINT, signal.SIGINT
        status = disturb(runs, tmp_path, seconds, random.Random(seed), *numbers)
        assert status in {130, 0}
        if status:
            truthful(tmp_path)
        finish(runs, tmp_path, whole)


def truthful(folder):
    """Assert that a run which was stopped said truly whether it can be resumed."""
    text = (folder / "stderr").read_text()
    path = folder / "run" / "last.safetensors"
    if "resume with --resume run/last.safetensors" in text:
        step = train.read_checkpoint(path).info["step"]
        where = f"step {step}" if "continues" in text else f"after step {step}; resume"
        assert where in text
    elif "stopped in epoch" in text:
        assert "nothing was saved" in text
        assert not path.exists()


@pytest.mark.parametrize("seed", range(4))
def test_a_run_that_is_suspended_and_continued_notices_nothing(
    seed, runs, whole, seconds, tmp_path, tally
):
    with tally("SIGSTOP and SIGCONT at a random moment"), bounded():
        numbers = signal.SIGSTOP, signal.SIGCONT
        assert disturb(runs, tmp_path, seconds, random.Random(seed), *numbers) == 0
        finish(runs, tmp_path, whole)


@pytest.mark.parametrize("limit", ["0.001s", "0.15s"])
def test_a_run_in_slices_of_time_ends_as_one_in_one_piece(limit, runs, whole, tmp_path, tally):
    with tally("a run stopped by its time limit, again and again"), bounded():
        slices = 0
        while not (tmp_path / "run" / "metrics.csv").exists() or len(metrics(tmp_path)) < 3:
            assert runs.run(tmp_path, *next_flags(tmp_path), "--max-time", limit) == 0
            slices += 1
        assert slices <= 8  # six steps and the ends of two epochs
        assert slices > 1 or limit != "0.001s"
        finish(runs, tmp_path, whole)


def test_the_folder_of_a_finished_run_holds_no_litter(whole):
    names = {path.name for path in (whole / "run").iterdir()}
    files = "config.json metrics.csv run.lock best.safetensors last.safetensors last-1.safetensors"
    assert names == set(files.split())
