"""Times a training step on the CPU beside PyTorch's, in both of its layouts.

    python benchmarks/cpu_training_step.py                 the table: batch, threads, BLAS
    python benchmarks/cpu_training_step.py --model keras   the lecture's AlexNet, 227 x 227, batch 8
    python benchmarks/cpu_training_step.py --growth        time over batch and over image side
    python benchmarks/cpu_training_step.py --overhead      autograd against the bare arithmetic
    python benchmarks/cpu_training_step.py --epoch DIR     one epoch of the CIFAR-10 that DIR holds

A step is forward, softmax cross entropy, backward, and SGD with momentum and weight decay.
Ratios are gpucnn's time over that of PyTorch's better layout, round by round; their median is
printed.  Without PyTorch gpucnn's own times are printed alone.
"""

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from _alexnets import cifar_layers, keras_layers, modules
from _peer import (
    interleave,
    machine,
    median_of,
    peak_memory,
    ratio,
    run_child,
    seconds,
)

Batch = Callable[[Any, Any], None]  # trains on images (N, H, W, C) and labels (N,)

OWN, PEERS = "gpucnn", ["torch channels_last", "torch nchw"]
MODELS = ("cifar10", "keras")


def layers_of(task: dict[str, Any]) -> list[tuple[Any, ...]]:
    return keras_layers() if task["model"] == "keras" else cifar_layers(task["side"])


def channels_of(task: dict[str, Any]) -> int:
    return int(layers_of(task)[0][1])


# --- the two sides ---


def gpucnn_steps(task: dict[str, Any]) -> tuple[Callable[[], object], Callable[[], object], Batch]:
    import gpucnn
    from gpucnn import nn, ops, optim

    gpucnn.set_num_threads(task["threads"])
    gpucnn.manual_seed(0)
    model = nn.Sequential(*modules(layers_of(task), nn, nn.BatchNorm2d, "ceil"))
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    rng = np.random.default_rng(0)
    side = task["side"]
    shape = (task["batch"], side, side, channels_of(task))
    x = gpucnn.tensor(rng.standard_normal(shape, dtype=np.float32))
    labels = rng.integers(0, 10, task["batch"])

    def train() -> None:
        optimizer.zero_grad()
        ops.cross_entropy(model(x), labels).backward()
        optimizer.step()

    def infer() -> None:
        model.eval()
        with gpucnn.no_grad():
            model(x)
        model.train()

    def train_on(images: Any, classes: Any) -> None:
        nonlocal x, labels
        x, labels = gpucnn.tensor(images), classes
        train()

    return train, infer, train_on


def torch_steps(
    task: dict[str, Any], channels_last: bool
) -> tuple[Callable[[], object], Callable[[], object], Batch]:
    import torch
    from torch import nn

    torch.set_num_threads(task["threads"])
    torch.manual_seed(0)
    model = nn.Sequential(*modules(layers_of(task), nn, nn.BatchNorm2d, "ceil_mode"))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(task["batch"], channels_of(task), task["side"], task["side"])
    labels = torch.randint(0, 10, (task["batch"],))
    model, x = model.to(memory_format=layout), x.to(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

    def train() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()

    def infer() -> None:
        model.eval()
        with torch.no_grad():
            model(x)
        model.train()

    def train_on(images: Any, classes: Any) -> None:
        nonlocal x, labels
        x, labels = torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(classes).long()
        x = x.contiguous(memory_format=layout)
        train()

    return train, infer, train_on


def bare_step(task: dict[str, Any]) -> Callable[[], object]:
    """The arithmetic of gpucnn's step, ordered by hand: each op's forward and backward are called
    on arrays, without modules, tensors and the tape."""
    import gpucnn
    from gpucnn import optim
    from gpucnn.ops.conv2d.op import _Conv2d
    from gpucnn.ops.dropout import _Dropout
    from gpucnn.ops.geometry import Geometry
    from gpucnn.ops.linear import _Linear
    from gpucnn.ops.relu import _ReLU
    from gpucnn.ops.shape import _Reshape
    from gpucnn.ops.softmax import _SoftmaxCrossEntropy
    from gpucnn.random import default_generator

    gpucnn.set_num_threads(task["threads"])
    rng = np.random.default_rng(0)
    side, batch = task["side"], task["batch"]
    images = rng.standard_normal((batch, side, side, 3), dtype=np.float32)
    labels = rng.integers(0, 10, batch)
    shape, parameters = images.shape, []
    plan: list[tuple[Callable[[], Any], tuple[Any, ...]]] = []  # what makes a node, and its weights
    for kind, *sizes in layers_of(task):
        weights: tuple[Any, ...] = ()
        if kind in ("conv", "linear", "last"):
            of_filter = (sizes[2], sizes[2], sizes[0]) if kind == "conv" else (sizes[0],)
            scale = np.float32(np.sqrt(2 / np.prod(of_filter)))
            w = rng.standard_normal((sizes[1], *of_filter), dtype=np.float32) * scale
            weights = tuple(
                gpucnn.tensor(a, requires_grad=True) for a in (w, np.zeros(sizes[1], np.float32))
            )
            parameters += weights
        if kind == "conv":
            convolved = Geometry.of("conv", shape, (sizes[2], sizes[2]), *sizes[3:])
            shape = (batch, convolved.oh, convolved.ow, sizes[1])
            plan.append((partial(_Conv2d, convolved, True, None), weights))
        elif kind == "pool":  # the convolution before it does it too, as in nn.Sequential
            v = Geometry.of("pool", shape, *sizes, 0)
            shape = (batch, v.oh, v.ow, shape[3])
            plan[-1] = partial(_Conv2d, convolved, True, v), plan[-1][1]
        elif kind == "flatten":
            plan.append((partial(_Reshape, (batch, -1)), ()))
        elif kind == "dropout":
            plan.append((partial(_Dropout, *sizes, default_generator()), ()))
        else:
            plan.append((_Linear, weights))
            plan += [(_ReLU, ())] if kind == "linear" else []
    plan.append((partial(_SoftmaxCrossEntropy, labels, 0.0, None), ()))
    optimizer = optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4)

    def step() -> None:
        optimizer.zero_grad()
        x, nodes = images, []
        for make, weights in plan:
            node = make()
            node.needs = (x is not images, True, True)
            node.last_use = True
            x = node.forward(x, *(weight.data for weight in weights))
            nodes.append((node, weights))
        d = np.ones_like(x)
        while nodes:
            node, weights = nodes.pop()
            given = node.backward(d)
            d, *gradients = given if isinstance(given, tuple) else (given,)
            for weight, gradient in zip(weights, gradients, strict=False):
                weight.grad = gradient
            del node, given
        optimizer.step()

    return step


def child(side: str, task: dict[str, Any]) -> dict[str, float]:
    if side == "bare":
        return {"train": seconds(bare_step(task), task["repeats"], task["clock"])}
    if side == OWN:
        train, infer, train_on = gpucnn_steps(task)
    else:
        train, infer, train_on = torch_steps(task, side == PEERS[0])
    if "data" in task:
        return {"epoch": epoch_seconds(train_on, task)}
    report = {"train": seconds(train, task["repeats"], task["clock"]), "memory": peak_memory()}
    if task["infer"]:
        report["infer"] = seconds(infer, task["repeats"], task["clock"])
    return report


def epoch_seconds(train_on: Batch, task: dict[str, Any]) -> float:
    """Every image of CIFAR-10 once, cropped, flipped and normalised: both sides are fed by gpucnn's
    loader, with the same batches."""
    from gpucnn import data

    training = data.CIFAR10(task["data"], train=True)
    transform = data.Compose(
        data.RandomCrop(32, padding=4),
        data.RandomFlip(),
        data.Normalize(*data.channel_statistics(training.images)),
    )
    loader = data.DataLoader(
        training, task["batch"], shuffle=True, transform=transform, seed=0, drop_last=True
    )
    images, labels = next(iter(loader))
    train_on(images, labels)  # warms up, untimed
    start = time.perf_counter()
    for images, labels in loader:
        train_on(images, labels)
    return time.perf_counter() - start


# --- the tables ---


def table(arguments: argparse.Namespace) -> None:
    sides = [OWN, *PEERS] if importlib.util.find_spec("torch") else [OWN]
    print("| model | batch | threads | OpenBLAS | figure | " + " | ".join(sides) + " | ratio |")
    print("|---" * (6 + len(sides)) + "|")
    for blas in arguments.blas:
        for threads in arguments.threads:
            for batch in arguments.batch:
                task = {
                    "model": arguments.model,
                    "side": 227 if arguments.model == "keras" else 32,
                    "batch": batch,
                    "threads": threads,
                    "repeats": arguments.repeats,
                    "clock": arguments.clock,
                    "infer": True,
                }
                reports = interleave(__file__, sides, task, arguments.rounds, blas)
                for figure, name, factor in (
                    ("train", "training, ms", 1e3),
                    ("infer", "inference, ms", 1e3),
                    ("memory", "peak memory, MiB", 1),
                ):
                    cells = [f"{median_of(reports[side], figure) * factor:.0f}" for side in sides]
                    if len(sides) > 1:
                        cells.append(f"**{ratio(reports, OWN, sides[1:], figure):.2f}**")
                    else:
                        cells.append("no peer")
                    head = f"| {arguments.model} | {batch} | {threads} | {blas} | {name} | "
                    print(head + " | ".join(cells) + " |", flush=True)


def growth(arguments: argparse.Namespace) -> None:
    """Time for each 1000 multiply-adds, relative to the first row: 1.00 is linear growth."""
    rows = [(batch, 32) for batch in (32, 64, 128, 256, 512, 1024)]
    rows += [(batch, side) for side, batch in ((16, 128), (32, 128), (64, 32), (128, 8))]
    base = None
    print("| batch | side | step, ms | us an image | time over linear |")
    print("|---|---|---|---|---|")
    for batch, side in rows:
        task = {
            "model": "cifar10",
            "side": side,
            "batch": batch,
            "threads": arguments.threads[0],
            "repeats": arguments.repeats,
            "clock": arguments.clock,
            "infer": False,
        }
        reports = [run_child(__file__, OWN, task) for _ in range(arguments.rounds)]
        step = median_of(reports, "train")
        work = step / (batch * multiply_adds(cifar_layers(side), side))
        base = base or work
        print(
            f"| {batch} | {side} | {step * 1e3:.0f} | {step / batch * 1e6:.0f} "
            f"| {work / base:.2f} |",
            flush=True,
        )


def multiply_adds(layers: list[tuple[Any, ...]], side: int) -> int:
    """Of one image, forward."""
    total = 0
    for kind, *sizes in layers:
        if kind == "conv":
            c, oc, k, stride, padding = sizes
            side = (side + 2 * padding - k) // stride + 1
            total += side * side * k * k * c * oc
        elif kind == "pool":
            side = (side - sizes[0]) // sizes[1] + 1
        elif kind in ("linear", "last"):
            total += sizes[0] * sizes[1]
    return total


def overhead(arguments: argparse.Namespace) -> None:
    print("| batch | threads | gpucnn, ms | bare arithmetic, ms | ratio |")
    print("|---|---|---|---|---|")
    for threads in arguments.threads:
        for batch in arguments.batch:
            task = {
                "model": "cifar10",
                "side": 32,
                "batch": batch,
                "threads": threads,
                "repeats": arguments.repeats,
                "clock": arguments.clock,
                "infer": False,
            }
            reports = interleave(__file__, [OWN, "bare"], task, arguments.rounds)
            own, bare = (median_of(reports[side], "train") * 1e3 for side in (OWN, "bare"))
            figure = ratio(reports, OWN, ["bare"], "train")
            print(f"| {batch} | {threads} | {own:.1f} | {bare:.1f} | {figure:.3f} |", flush=True)


def epoch(arguments: argparse.Namespace) -> None:
    sides = [OWN, *PEERS] if importlib.util.find_spec("torch") else [OWN]
    print("| threads | side | epoch, s | images a second |\n|---|---|---|---|")
    for threads in arguments.threads:
        task = {
            "model": "cifar10",
            "side": 32,
            "batch": 128,
            "threads": threads,
            "data": arguments.epoch,
        }
        for side in sides:
            taken = run_child(__file__, side, task)["epoch"]
            print(f"| {threads} | {side} | {taken:.0f} | {390 * 128 / taken:.0f} |", flush=True)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(child(sys.argv[2], json.loads(sys.argv[3]))))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="cifar10")
    parser.add_argument("--batch", type=int, nargs="+", default=None)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: on a machine in other use"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5, help="steps timed in each process")
    parser.add_argument(
        "--blas",
        nargs="+",
        default=["unset", "Haswell"],
        help='OpenBLAS variables: "unset", "as set", or a core type such as Haswell',
    )
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--overhead", action="store_true")
    parser.add_argument("--epoch", metavar="DIR", help="a folder with CIFAR-10")
    arguments = parser.parse_args()
    keras = arguments.model == "keras"
    arguments.batch = arguments.batch or ([8] if keras else [32, 128, 512])
    print(f"{machine()}; {arguments.clock} time\n")
    if arguments.epoch:
        epoch(arguments)
    elif arguments.growth:
        growth(arguments)
    elif arguments.overhead:
        overhead(arguments)
    else:
        table(arguments)


if __name__ == "__main__":
    main()
