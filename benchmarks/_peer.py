"""Run the sides of a benchmark (gpucnn and its peers) in turn, each run in its own process.

Two frameworks in one process would share threads, caches and the allocator, and the speed of a
shared machine changes from minute to minute.  So each round runs every side once, and the result
is the median over rounds of the ratio within a round.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

OWN, PEERS = "gpucnn", ["torch channels_last", "torch nchw"]  # the sides of the CPU benchmarks
BLAS_VARIABLES = (
    "OPENBLAS_CORETYPE",
    "OPENBLAS_L2_SIZE",
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
)


def sides() -> list[str]:
    """gpucnn, and PyTorch's two layouts if PyTorch is installed."""
    return [OWN, *PEERS] if importlib.util.find_spec("torch") else [OWN]


def add_arguments(parser: argparse.ArgumentParser, rounds: int) -> None:
    """Add --clock, --rounds and --repeats."""
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: CPU time of the process, for a busy machine (default: wall)",
    )
    parser.add_argument(
        "--rounds", type=int, default=rounds, help=f"runs of each side (default: {rounds})"
    )
    parser.add_argument(
        "--repeats", type=int, default=5, help="calls timed in each process (default: 5)"
    )


def environment(blas: str) -> dict[str, str]:
    """The environment of a child process.

    blas "unset" clears the OpenBLAS variables, "as set" keeps them; any other value is the core
    type that OpenBLAS must use, such as "Haswell".
    """
    env = dict(os.environ)
    if blas != "as set":
        for name in BLAS_VARIABLES:
            env.pop(name, None)
        if blas != "unset":
            env["OPENBLAS_CORETYPE"] = blas
    return env


def run_child(script: str, side: str, task: dict[str, Any], blas: str = "unset") -> dict[str, Any]:
    """Run `script --child side task` and return the report that it prints as JSON."""
    done = subprocess.run(
        [sys.executable, script, "--child", side, json.dumps(task)],
        env=environment(blas),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{script}: {side} failed for {task}\n{done.stderr}")
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def interleave(
    script: str, sides: list[str], task: dict[str, Any], rounds: int, blas: str = "unset"
) -> dict[str, list[dict[str, Any]]]:
    """Return `rounds` reports of each side; the sides run in turn."""
    reports: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            reports[side].append(run_child(script, side, task, blas))
    return reports


def median_of(reports: list[dict[str, Any]], figure: str) -> float:
    return statistics.median(report[figure] for report in reports)


def ratio(
    reports: dict[str, list[dict[str, Any]]], own: str, peers: list[str], figure: str
) -> float:
    """The median over rounds of own / best peer of that round."""
    rounds = zip(reports[own], *(reports[peer] for peer in peers), strict=True)
    return statistics.median(
        mine[figure] / min(other[figure] for other in others) for mine, *others in rounds
    )


def seconds(
    step: Callable[[], object], repeats: int, clock: str = "wall", warm_up: int = 2
) -> float:
    """The median time of one call, in seconds.

    clock is "wall", or "cpu": the CPU time of this process, which other processes distort less.
    With one thread on an idle machine the two are equal.
    """
    now = time.process_time if clock == "cpu" else time.perf_counter
    for _ in range(warm_up):
        step()
    times = []
    for _ in range(repeats):
        start = now()
        step()
        times.append(now() - start)
    return statistics.median(times)


def forward_and_both(
    forward: Callable[[], Any],
    leaves: list[Any],
    dy: Any,
    no_grad: Callable[[], AbstractContextManager[Any]],
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Two steps of either framework: forward without gradients, and forward with backward."""

    def forward_only() -> None:
        with no_grad():
            forward()

    def both() -> None:
        for tensor in leaves:
            tensor.grad = None
        forward().backward(dy)

    return forward_only, both


def peak_memory() -> float:
    """The peak resident set size of this process in MiB; 0 if the platform does not report it."""
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def machine() -> str:
    """The processor, the cores that this process may use, and the versions of NumPy and PyTorch."""
    from importlib import metadata

    versions = []
    for name in ("numpy", "torch"):
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            versions.append(f"no {name}")
    model = "unknown processor"
    try:
        with open("/proc/cpuinfo") as lines:
            model = next(
                line.split(":")[1].strip() for line in lines if line.startswith("model name")
            )
    except (OSError, StopIteration):
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores; {', '.join(versions)}"
