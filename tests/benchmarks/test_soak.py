"""The soak: a loss makes its exit status 1, growth is a loss, and it runs."""

import re
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from scripts import load_script

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "soak.py"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the soak reads /proc")


@pytest.fixture
def soak(monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path[:])  # the script extends it
    return load_script(SCRIPT)


def run(soak, monkeypatch, capsys, act):
    """Five turns of one activity, then Ctrl-C; returns the exit status and what was printed."""
    turns = []

    def five(rng):
        turns.append(rng)
        if len(turns) > 5:
            raise KeyboardInterrupt
        return act(rng)

    @contextmanager
    def one():
        yield {"an activity": five}

    monkeypatch.setattr(soak, "activities", one)
    return soak.main(["--seed", "1"]), capsys.readouterr().out


def test_a_loss_makes_the_exit_status_1_and_is_named(soak, monkeypatch, capsys):
    def act(rng):
        raise ValueError("two bits differ")

    status, said = run(soak, monkeypatch, capsys, act)
    assert status == 1
    assert "| an activity | 5 | 5 |" in said
    assert "LOST an activity, turn 0: ValueError: two bits differ" in said


def test_an_open_file_that_is_left_makes_the_exit_status_1(soak, monkeypatch, capsys):
    files = []

    def act(rng):
        files.append(SCRIPT.open())
        return 1

    try:
        status, said = run(soak, monkeypatch, capsys, act)
    finally:
        for file in files:
            file.close()
    assert status == 1
    assert "| an activity | 5 | 0 |" in said
    assert "LOST measurements of this process, memory" in said


def test_without_a_loss_the_exit_status_is_0_also_after_ctrl_c(soak, monkeypatch, capsys):
    status, said = run(soak, monkeypatch, capsys, lambda rng: 3)
    assert status == 0, said
    assert "| an activity | 15 | 0 |" in said
    assert "LOST" not in said


def test_memory_that_grows_by_more_than_a_tenth_is_a_leak(soak):
    before = soak.Process.now()
    assert not before.leaks(before, 0.1)
    assert replace(before, memory=before.memory * 6 // 5).leaks(before, 0.1)


@pytest.mark.slow
def test_the_soak_runs():
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--hours", "0.02"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\| mutated files \| [1-9]", done.stdout)
    assert re.search(r"\| epochs of one long run \| [1-9]\d* \| 0 \|", done.stdout)
