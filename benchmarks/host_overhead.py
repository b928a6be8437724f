"""Measure the time that Python takes to queue one training step on a GPU.

    python benchmarks/host_overhead.py                    alexnet_cifar10, batch 128
    python benchmarks/host_overhead.py --model resnet18_cifar --steps 500
    python benchmarks/host_overhead.py --graph            a Trainer's step, replayed as a graph

If a step takes the device longer, the device is always busy; if not, it waits for Python.  The
step runs on the simulated device, whose launches, memory fills, sums and matrix products are
replaced by functions that return at once.  So this needs neither a compiler nor a GPU.  The time is
that of gpucnn's own Python and of the simulator's arrays, which are Python where CuPy's are C.
CuPy's own time for a launch or an array operation is not included.

With --graph the step is Trainer.train_step with images that stay on the GPU: checking what the
graph depends on, drawing, one copy, the launch, and sending the loss back.
"""

import argparse
import itertools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
from _peer import machine

import gpucnn
from gpucnn import cuda, data, models, ops, optim, train
from gpucnn.autograd import Function
from gpucnn.cuda import launcher
from gpucnn.cudasim import arrays, memory
from gpucnn.cudasim.capture import Graph
from gpucnn.cudasim.module import Function as SimulatedFunction
from gpucnn.data.on_device import drawn_batch
from gpucnn.device import Device

DEVICE = Device("cudasim")  # Device.parse("cudasim") would require a compiler


@contextmanager
def idle_device() -> Iterator[None]:
    """Replace the simulated device's computations by functions that return at once."""

    def launch(*args: Any, **options: Any) -> None:  # a mock would keep the arguments alive
        pass

    def product(a: Any, b: Any) -> Any:
        return arrays.ndarray((*a.shape[:-1], b.shape[-1]), a.dtype)

    def total(a: Any, axis: Any = None, dtype: Any = None) -> Any:
        rest = () if axis is None else np.delete(a.shape, axis)
        return arrays.ndarray(tuple(rest), a.dtype)

    with (
        memory.unpoisoned(),
        mock.patch.object(SimulatedFunction, "__call__", launch),
        mock.patch.object(Graph, "launch", launch),
        mock.patch.object(arrays.ndarray, "__matmul__", product),
        mock.patch.object(arrays.ndarray, "__iadd__", lambda a, b: a),
        mock.patch.object(arrays.ndarray, "sum", total),
    ):
        yield


def training_step(name: str, batch: int) -> Callable[[], None]:
    gpucnn.manual_seed(0)
    model = models.build(name).to(DEVICE)
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    shape = (batch, *models.input_shape(name))
    images = gpucnn.Tensor(DEVICE.xp.empty(shape, np.float32))
    labels = gpucnn.Tensor(DEVICE.xp.zeros(batch, np.int64))

    def step() -> None:
        optimizer.zero_grad()
        ops.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def replayed_step(name: str, batch: int) -> Callable[[], None]:
    """A step of a Trainer that has captured it."""
    gpucnn.manual_seed(0)
    model = models.build(name).to(DEVICE).train()
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4 * batch, *models.input_shape(name)), dtype=np.uint8)
    dataset = data.Dataset(images, np.zeros(len(images), np.int64), ("one",) * 10)
    augment = data.Compose(
        [
            data.RandomCrop(images.shape[1], 4),
            data.RandomHorizontalFlip(),
            data.Normalize((0.5,) * 3, (0.25,) * 3),
        ]
    )
    with mock.patch.object(Device, "parse", lambda spec: spec):  # no compiler
        loader = data.DataLoader(dataset, batch, transform=augment, device=DEVICE)
    schedule = optim.lr_scheduler.CosineAnnealingLR(optimizer, 10**6)
    trainer = train.Trainer(model, optimizer, loader, scheduler=schedule, graph=True)
    batches = [drawn_batch(*tensors) for tensors in loader]
    number = itertools.count()

    def step() -> None:
        batch = batches[next(number) % len(batches)]
        assert batch is not None
        trainer.train_step(*batch.tensors())

    return step


def milliseconds(step: Callable[[], None], steps: int) -> list[float]:
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        times.append((time.perf_counter() - start) * 1e3)
    return times


class Clock:
    """Adds up calls and seconds of the functions that it wraps, by name."""

    def __init__(self) -> None:
        self.calls: defaultdict[str, int] = defaultdict(int)
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def wrap(self, function: Callable[..., Any], name: str = "") -> Callable[..., Any]:
        """`function`, timed under `name`; without a name, under the op of the method's object."""

        def timed(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                key = name or f"{args[0].name} {function.__name__.strip('_')}"
                self.calls[key] += 1
                self.seconds[key] += time.perf_counter() - start

        return timed


def where_it_goes(step: Callable[[], None], steps: int) -> None:
    """Print the time of each op, forward and backward, and the share of the launches."""
    clock = Clock()
    launch = clock.wrap(cuda.launch, "all launches")
    # launch_elementwise calls `launch` by its name in launcher.
    patches = [mock.patch.object(module, "launch", launch) for module in (cuda, launcher)]
    patches += [mock.patch.object(Function, "__call__", clock.wrap(Function.__call__))]
    for op in Function.__subclasses__():
        patches.append(mock.patch.object(op, "backward", clock.wrap(op.backward)))
    patches.append(mock.patch.object(optim.SGD, "step", clock.wrap(optim.SGD.step, "SGD.step")))
    for patch in patches:
        patch.start()
    whole = sum(milliseconds(step, steps)) / steps * 1e3
    for patch in patches:
        patch.stop()
    rows = {
        name.replace(" call", ", forward").replace(" backward", ", backward"): (
            clock.calls[name] / steps,
            clock.seconds[name] / steps * 1e6,
        )
        for name in clock.seconds
    }
    launches = rows.pop("all launches")
    inside = sum(time for _, time in rows.values())
    rows["tape, modules, zero_grad"] = (1, whole - inside)
    print("\n| where (the clock's overhead included) | calls | us per step | us per call |")
    print("|---|---|---|---|")
    for name, (calls, time_) in sorted(rows.items(), key=lambda row: -row[1][1]):
        print(f"| {name} | {calls:.0f} | {time_:.0f} | {time_ / calls:.1f} |")
    calls, time_ = launches
    print(f"| of these, cuda.launch | {calls:.0f} | {time_:.0f} | {time_ / calls:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=models.BY_NAME, default="alexnet_cifar10")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--graph", action="store_true", help="replay a Trainer's steps as a graph")
    arguments = parser.parse_args()
    with idle_device():
        make = replayed_step if arguments.graph else training_step
        step = make(arguments.model, arguments.batch)
        for _ in range(20):
            step()
        times = milliseconds(step, arguments.steps)
        with cuda.count_launches() as launches:
            step()
        print(machine())
        print(
            f"{arguments.model}, batch {arguments.batch}: {statistics.median(times):.3f} ms of "
            f"Python per step (minimum {min(times):.3f} of {arguments.steps}), "
            f"{sum(launches.values())} launches"
        )
        if not arguments.graph:
            where_it_goes(step, arguments.steps)


if __name__ == "__main__":
    main()
