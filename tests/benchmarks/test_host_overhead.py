"""The benchmark of the host's time runs without a compiler, and its table adds up."""

import os
import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "host_overhead.py"


def run(*options):
    command = [sys.executable, str(SCRIPT), "--batch", "2", "--steps", "3", *options]
    environment = {**os.environ, "CXX": "", "PATH": "/nowhere"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, timeout=600
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done


def test_a_replayed_step_is_one_launch():
    done = run("--graph")
    assert re.search(r"batch 2: [\d.]+ ms of Python per step.* 1 launches", done.stdout)


def test_it_runs_without_gpu_and_compiler_and_its_table_adds_up():
    done = run()
    assert re.search(r"alexnet_cifar10, batch 2: [\d.]+ ms of Python per step", done.stdout)
    launches = int(re.search(r"(\d+) launches", done.stdout)[1])
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in done.stdout.splitlines()
        if re.match(r"\| [a-zS]", line)
    ][1:]
    calls = {name: int(count) for name, count, *_ in rows}
    assert calls["conv2d, forward"] == calls["conv2d, backward"] == 5
    assert calls["of these, cuda.launch"] == launches
    times = {name: int(time) for name, _, time, _ in rows}
    assert min(times.values()) >= 0
    assert times["of these, cuda.launch"] < sum(times.values()) / 2
