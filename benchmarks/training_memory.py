"""Compare the training memory that gpucnn.inspect predicts with the growth of a process.

    python benchmarks/training_memory.py

The measured figure is the peak resident set size over five steps of SGD with momentum, in its own
process, minus the resident set size before the model was built.  Another network has been
trained and dropped by then: the code of NumPy and BLAS and BLAS's per-thread buffers are already
resident.  Linux only: the figures come from /proc.
"""

import argparse
import itertools
import json
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
from _peer import machine, run_child

import gpucnn
from gpucnn import inspect, models, ops, optim
from gpucnn.cpu import give_back_freed_memory, parallel
from gpucnn.device import CPU
from gpucnn.precision import autocast_of

TASKS = (
    {"model": "alexnet_cifar10", "batch": 128},
    {"model": "alexnet_cifar10_bn", "batch": 128},
    {"model": "lenet", "batch": 64},
    {"model": "alexnet_keras", "batch": 8},
)
PRECISIONS = ("fp32", "bf16")


def train(
    model: gpucnn.nn.Module, shape: tuple[int, ...], batch: int, steps: int, precision: str
) -> None:
    optimizer = optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    rng = np.random.default_rng(0)
    x = gpucnn.tensor(rng.standard_normal((batch, *shape), dtype=np.float32))
    labels = rng.integers(0, 10, batch)
    for _ in range(steps):
        with autocast_of(precision, CPU):
            loss = ops.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def warm_up(threads: int) -> None:
    """Load code and allocate BLAS's buffers on every thread; leave no scratch memory behind."""
    barrier = threading.Barrier(threads)

    def multiply(_: int) -> None:
        barrier.wait()
        square = np.ones((1024, 1024), np.float32)
        square.T @ (square @ square)

    def use() -> None:
        parallel(multiply, range(threads))
        for precision in PRECISIONS:
            train(models.build("cuda_convnet_18pct"), (32, 32, 3), 4, 2, precision)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    gpucnn.set_num_threads(1)  # ends the workers and frees their scratch memory
    gpucnn.set_num_threads(threads)
    give_back_freed_memory()


def resident(figure: str) -> float:
    """MiB: "VmRSS" is the current size, "VmHWM" the peak since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(figure)).split()[1]) / 2**10


def child(side: str, task: dict[str, Any]) -> float:
    """The measured or predicted MiB."""
    gpucnn.set_num_threads(task["threads"])
    shape, batch, precision = models.input_shape(task["model"]), task["batch"], task["precision"]
    model = models.build(task["model"])
    if side == "predicted":
        return inspect.training_memory(model, shape, batch, precision=precision).peak / 2**20
    del model
    warm_up(task["threads"])
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    train(models.build(task["model"]), shape, batch, 5, precision)
    return resident("VmHWM") - before


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--child", nargs=2, metavar=("SIDE", "TASK"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        side, task = options.child
        print(json.dumps({"MiB": child(side, json.loads(task))}))
        return 0
    print(f"{machine()}\nMiB of a training step\n")
    print(
        f"{'model':<20}{'batch':>6}{'precision':>11}{'threads':>9}{'predicted':>11}{'measured':>10}"
        f"{'ratio':>7}"
    )
    for task, precision, threads in itertools.product(TASKS, PRECISIONS, (1, 2)):
        given = {**task, "precision": precision, "threads": threads}
        predicted, measured = (
            run_child(__file__, side, given)["MiB"] for side in ("predicted", "measured")
        )
        print(
            f"{task['model']:<20}{task['batch']:>6}{precision:>11}{threads:>9}{predicted:>11.1f}"
            f"{measured:>10.1f}{predicted / measured:>7.2f}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
