"""Runs the two sides of a CPU benchmark: each in processes of its own, in turn.

Two frameworks in one process would share threads, caches and the allocator, and a shared machine
changes its speed from minute to minute.  So each round runs every side once, and what is
reported is the median over rounds of the ratio within a round.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

BLAS_VARIABLES = (
    "OPENBLAS_CORETYPE",
    "OPENBLAS_L2_SIZE",
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
)


def environment(blas: str) -> dict[str, str]:
    """The child's environment: "unset" clears the OpenBLAS variables, "as set" keeps them, any
    other word is the core type that OpenBLAS is told to use."""
    env = dict(os.environ)
    if blas != "as set":
        for name in BLAS_VARIABLES:
            env.pop(name, None)
        if blas != "unset":
            env["OPENBLAS_CORETYPE"] = blas
    return env


def run_child(script: str, side: str, task: dict[str, Any], blas: str = "unset") -> dict[str, Any]:
    """What `child` of the script reports for this side and task."""
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
    """`rounds` reports of each side, taken in turn."""
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
    """The median over rounds of own / the best peer of that round."""
    rounds = zip(reports[own], *(reports[peer] for peer in peers), strict=True)
    return statistics.median(
        mine[figure] / min(other[figure] for other in others) for mine, *others in rounds
    )


def seconds(
    step: Callable[[], object], repeats: int, clock: str = "wall", warm_up: int = 2
) -> float:
    """The median time of one call: on the wall, or "cpu", this process's own, which a machine
    that others use distorts less.  With one thread and an idle machine the two are equal."""
    now = time.process_time if clock == "cpu" else time.perf_counter
    for _ in range(warm_up):
        step()
    times = []
    for _ in range(repeats):
        start = now()
        step()
        times.append(now() - start)
    return statistics.median(times)


def peak_memory() -> float:
    """The largest resident set of this process so far, in MiB; 0 where there is no such figure."""
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def machine() -> str:
    """The processor, its cores that this process may use, and the versions beside each other."""
    from importlib import metadata

    names = {"numpy", "torch"}
    versions = []
    for name in sorted(names):
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
