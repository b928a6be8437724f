"""Measure how training scales over processes on this machine's CPU, and predict it for GPUs.

    pip install -e ".[distributed]"
    python benchmarks/scaling.py                both; the script starts mpiexec itself
    python benchmarks/scaling.py --predicted    only the prediction

Measured: the steps of a Trainer, on processes of one thread each, against one process of one
thread.  In strong scaling `--batch` images are divided among the processes; in weak scaling each
process has as many.  `1 x 2` is the alternative on one machine: one process with two threads.  The
sides run in turn, each in processes of its own; a figure is the median over `--rounds` rounds, a
ratio the median of the ratios within a round, with the smallest and the largest.

Communication is the time in which a process waits for the others, agrees with them and adds
gradients, and does not compute.  A process that waits for a slower one communicates.  Overlap
compares reductions that begin during backward with the same ones begun after it.  The last table
times allreduce alone; its bandwidth is 2 (n - 1) / n * bytes / time, as in nccl-tests.

Predicted: weak scaling over 8 and 64 GPUs.  _scaling_model.py describes the model.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from _peer import environment, machine
from _scaling_model import (
    PEAK,
    TF32_PEAK,
    Cluster,
    Protocol,
    efficiency,
    least_step,
    ring_seconds,
    step_seconds,
    workload,
)

import gpucnn
from gpucnn import data, models, optim, train
from gpucnn.cpu import usable_cores
from gpucnn.device import Array
from gpucnn.distributed import MPICommunicator, Work
from gpucnn.errors import missing_extra

MODELS = [name for name in models.BY_NAME if name != "mlp"]  # those of images
WARM_UP = 2  # steps
SIZES = (64_000, 1_000_000, 25_000_000)  # bytes, timed besides the buckets
SCALING = ("one", "strong", "weak")  # the rows of the first table


@dataclass(frozen=True)
class Side:
    """Processes that train together."""

    processes: int
    threads: int  # each
    images: int  # of all processes in a step
    late: bool = False  # reductions begin after backward

    @property
    def name(self) -> str:
        over = " (more than cores)" if self.processes > usable_cores() else ""
        return f"{self.processes} x {self.threads}{over}"


Reports = dict[tuple[str, Side], list[dict[str, float]]]  # of a model and a side, one a round


# --- one rank ---


class TimedCommunicator(MPICommunicator):
    """Adds up the seconds in which this rank communicates and does not compute, by purpose.

    late   begin the reductions of gradients when they are waited for, which is after backward
    """

    def __init__(self, late: bool) -> None:
        super().__init__()
        self.late = late
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def clock(self, purpose: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[purpose] += time.perf_counter() - start

    def gather(self, value: Any) -> list[Any]:
        with self.clock("agreeing"):
            return super().gather(value)

    def allreduce(self, x: Array) -> None:
        with self.clock("loss"):
            super().start_allreduce(x).wait()

    def start_allreduce(self, x: Array, wire: str | None = None) -> Work:
        return _Timed(self.clock, partial(super().start_allreduce, x, wire), self.late)


class _Timed(Work):
    """A reduction of gradients on the clock; if it is late, it begins in wait()."""

    def __init__(self, clock: Callable[[str], Any], start: Callable[[], Work], late: bool) -> None:
        self._clock, self._start = clock, start
        self._work: Work | None = None
        if not late:
            with clock("gradients"):
                self._work = start()

    def test(self) -> bool:
        with self._clock("gradients"):
            return self._work is not None and self._work.test()

    def wait(self) -> None:
        with self._clock("gradients"):
            self._work = self._work or self._start()
            self._work.wait()


def trained(task: dict[str, Any]) -> dict[str, float]:
    """Seconds of a step, and of its communication by purpose: mean over the ranks."""
    side = Side(**task["side"])
    gpucnn.set_num_threads(side.threads)
    gpucnn.manual_seed(0)
    comm = TimedCommunicator(side.late)
    rng = np.random.default_rng(0)
    shape = (side.images, *models.input_shape(task["model"]))
    model = models.build(task["model"], classes=10)
    dataset = data.Dataset(
        rng.integers(0, 256, shape, np.uint8),
        rng.integers(0, 10, side.images),
        tuple(map(str, range(10))),
    )
    normalize = data.Normalize(*data.channel_statistics(dataset.images))
    loader = data.DataLoader(dataset, side.images, transform=normalize, device="cpu")
    optimizer = optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    trainer = train.Trainer(model, optimizer, loader, comm=comm)
    ((images, labels),) = trainer.loader
    steps: list[dict[str, float]] = []
    for _ in range(WARM_UP + task["repeats"]):
        comm.seconds.clear()
        with comm.clock("step"):
            trainer.train_step(images, labels)
        steps.append(dict(comm.seconds))
    own = {
        purpose: median(step.get(purpose, 0.0) for step in steps[WARM_UP:])
        for purpose in ("step", "agreeing", "loss", "gradients")
    }
    ranks = comm.gather(own)
    return {purpose: mean(rank[purpose] for rank in ranks) for purpose in own}


def reduced(task: dict[str, Any]) -> dict[str, float]:
    """Seconds of an allreduce of each size, of the slowest rank."""
    comm = MPICommunicator()
    found = {}
    for size in task["sizes"]:
        x = np.ones(size // 4, np.float32)
        times = []
        for _ in range(WARM_UP + 4 * task["repeats"]):
            comm.barrier()
            start = time.perf_counter()
            comm.allreduce(x)
            times.append(time.perf_counter() - start)
            x[...] = 1  # repeated sums would overflow
        found[str(size)] = max(comm.gather(median(times[WARM_UP:])))
    return found


def rank_main(task: dict[str, Any]) -> None:
    report = reduced(task) if "sizes" in task else trained(task)
    if MPICommunicator().rank == 0:
        print(json.dumps(report))


# --- processes ---


def mpiexec() -> str:
    """The path of mpiexec, beside this Python or on PATH."""
    beside = shutil.which("mpiexec", path=str(Path(sys.executable).parent))
    found = beside or shutil.which("mpiexec")
    if found is None or find_spec("mpi4py") is None:  # importing mpi4py here would start MPI
        what = "benchmarks/scaling.py without --predicted"
        raise SystemExit(str(missing_extra(what, "mpi4py and mpiexec", "distributed")))
    return found


def run_ranks(n: int, task: dict[str, Any]) -> dict[str, float]:
    command = [mpiexec(), "-n", str(n), sys.executable, "-m", "mpi4py", __file__]
    done = subprocess.run(
        [*command, "--rank", json.dumps(task)],
        env=environment("unset"),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{n} ranks failed for {task}\n{done.stdout}{done.stderr}")
    report: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return report


# --- measured ---


def sides(arguments: argparse.Namespace) -> dict[str, list[Side]]:
    """The sides of each kind of scaling; "one" is the one that the others are compared with."""
    threads = [Side(1, 2, arguments.batch)] if usable_cores() > 1 else []
    return {
        "one": [Side(1, 1, arguments.batch)],
        "strong": threads + [Side(n, 1, arguments.batch) for n in arguments.ranks],
        "weak": [Side(n, 1, n * arguments.batch) for n in arguments.ranks],
        "late": [Side(n, 1, arguments.batch, late=True) for n in arguments.ranks],
    }


def measured(arguments: argparse.Namespace) -> None:
    kinds = sides(arguments)
    every = [side for kind in kinds.values() for side in kind]
    reports: Reports = {(name, side): [] for name in arguments.model for side in every}
    for _ in range(arguments.rounds):
        for (name, side), found in reports.items():
            task = {"model": name, "side": asdict(side), "repeats": arguments.repeats}
            found.append(run_ranks(side.processes, task))
    scaling(arguments.model, kinds, reports)
    overlapping(arguments.model, kinds["late"], reports)
    allreduce(arguments)


def scaling(names: list[str], kinds: dict[str, list[Side]], reports: Reports) -> None:
    heads = ["model", "scaling", "processes x threads", "images a step", "step, ms"]
    heads += ["images/s", "ratio", "communication"]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    (one,) = kinds["one"]
    for name in names:
        for kind, side in [(each, side) for each in SCALING for side in kinds[each]]:
            found = reports[name, side]
            step = median(report["step"] for report in found)
            ratios = [
                (side.images / own["step"]) / (one.images / base["step"])
                for own, base in zip(found, reports[name, one], strict=True)
            ]
            share = median(communication(report) / report["step"] for report in found)
            print(
                f"| {name} | {kind} | {side.name} | {side.images} | {step * 1e3:.1f} "
                f"| {side.images / step:.0f} | {spread(ratios)} | {share:.1%} |"
            )


def overlapping(names: list[str], sides: list[Side], reports: Reports) -> None:
    print("\n| model | processes | reductions | step, ms | of it in reductions, ms | ratio |")
    print("|---" * 6 + "|")
    for name, late in [(name, side) for name in names for side in sides]:
        for side in (late, replace(late, late=False)):
            when = "after backward" if side.late else "during backward"
            found = reports[name, side]
            step, sent = (median(report[key] for report in found) for key in ("step", "gradients"))
            ratios = [
                own["step"] / after["step"]
                for own, after in zip(found, reports[name, late], strict=True)
            ]
            print(
                f"| {name} | {side.processes} | {when} | {step * 1e3:.1f} | {sent * 1e3:.1f} "
                f"| {spread(ratios)} |"
            )


def allreduce(arguments: argparse.Namespace) -> None:
    print("\n| allreduce alone, processes | MB | ms | GB/s |\n|---|---|---|---|")
    buckets = [bucket.nbytes for name in arguments.model for bucket in workload(name).buckets]
    sizes = sorted({*SIZES, *buckets})
    for n in arguments.ranks:
        times = run_ranks(n, {"sizes": sizes, "repeats": arguments.repeats})
        for size in sizes:
            taken = times[str(size)]
            speed = 2 * (n - 1) / n * size / taken / 1e9
            print(f"| {n} | {size / 1e6:.2f} | {taken * 1e3:.2f} | {speed:.2f} |")


def spread(ratios: list[float]) -> str:
    return f"**{median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})"


def communication(report: dict[str, float]) -> float:
    return report["agreeing"] + report["loss"] + report["gradients"]


# --- predicted ---


def predicted(name: str = "alexnet_cifar10", batch: int = 512) -> None:
    """Print the predicted efficiency for 8 and 64 GPUs, and what it depends on."""
    cluster, work = Cluster(), workload(name)
    half = work.step(batch, PEAK / 2)
    slow = tuple(replace(p, nvlink=2 * p.nvlink, network=2 * p.network) for p in cluster.protocols)
    line = Cluster(nvlink=450e9, adapter=25e9, protocols=(Protocol(1, 0, 0, 0),))
    rows = [
        ("**half of float32's peak**", half, cluster, True),
        ("a quarter of the peak", work.step(batch, PEAK / 4), cluster, True),
        ("three quarters of the peak", work.step(batch, PEAK * 3 / 4), cluster, True),
        ("the peak", work.step(batch, PEAK), cluster, True),
        ("half of TF32's peak", work.step(batch, TF32_PEAK / 2), cluster, True),
        ("no overlap", half, cluster, False),
        ("buckets of 5 MB", workload(name, 5_000_000).step(batch, PEAK / 2), cluster, True),
        ("hops take twice as long", half, replace(cluster, protocols=slow), True),
        ("links at line rate, no latency", half, line, True),
        ("one adapter for a machine's 8 GPUs", half, replace(cluster, adapters=1), True),
    ]
    print(f"Predicted, not measured: {name}, batch {batch} a GPU, float32 gradients")
    for i, bucket in enumerate(work.buckets):
        times = " and ".join(
            f"{ring_seconds(bucket.nbytes, n, cluster) * 1e3:.2f}" for n in (8, 64)
        )
        print(
            f"  bucket {i}: {bucket.nbytes / 1e6:.1f} MB, complete after {bucket.ready:.0%} of "
            f"backward, predicted to take {times} ms over 8 and 64 GPUs"
        )
    print()
    print("| assumption | one GPU, ms | predicted: added at 64, ms | 8 GPUs | 64 GPUs |")
    print("|---" * 5 + "|")
    for what, step, where, overlap in rows:
        added = step_seconds(step, 64, where, overlap) - step.seconds
        eight, many = (efficiency(step, n, where, overlap) for n in (8, 64))
        print(
            f"| {what} | {step.seconds * 1e3:.1f} | {added * 1e3:.2f} | {eight:.1%} | {many:.1%} |"
        )
    least = least_step(work, 64, cluster, 0.95)
    part = work.step(batch, PEAK).seconds / least
    print(
        f"\nPredicted: 64 GPUs reach 95 % if a step takes one GPU {least * 1e3:.1f} ms or more "
        f"({part:.0%} of float32's peak or less)."
    )


def main() -> None:
    if sys.argv[1:2] == ["--rank"]:
        rank_main(json.loads(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", choices=MODELS, nargs="+", default=["alexnet_cifar10", "cuda_convnet_18pct"]
    )
    parser.add_argument("--batch", type=int, default=128, help="images of one process's step")
    parser.add_argument(
        "--ranks", type=int, nargs="+", default=[2, 4], help="numbers of processes (default: 2 4)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="runs of each side (default: 5)")
    parser.add_argument("--repeats", type=int, default=5, help="steps timed in each (default: 5)")
    parser.add_argument("--predicted", action="store_true", help="print only the prediction")
    arguments = parser.parse_args()
    if not arguments.predicted:
        print(machine() + "\n")
        measured(arguments)
        print()
    predicted()


if __name__ == "__main__":
    main()
