"""Time a training step on the CPU, and compare it with PyTorch in both of its layouts.

    python benchmarks/cpu_training_step.py                 the table: batch, threads, BLAS
    python benchmarks/cpu_training_step.py --model keras   alexnet_keras, 227 x 227, batch 8
    python benchmarks/cpu_training_step.py --growth        time against batch size and image side
    python benchmarks/cpu_training_step.py --overhead      autograd against the bare arithmetic
    python benchmarks/cpu_training_step.py --epoch DIR     one epoch of the CIFAR-10 in DIR

A step is forward, softmax cross-entropy, backward, and SGD with momentum and weight decay.  The
ratio is gpucnn's time over that of PyTorch's faster layout, the median over rounds.  Without
PyTorch, only gpucnn's times are printed.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
from _alexnets import cifar_layers, keras_layers, modules
from _peer import (
    OWN,
    PEERS,
    add_arguments,
    interleave,
    machine,
    median_of,
    peak_memory,
    ratio,
    run_child,
    seconds,
    sides,
)

# train(), infer(), and train_on(images, labels) for images (N, H, W, C) and labels (N,)
TrainOn = Callable[[Any, Any], None]
Steps = tuple[Callable[[], None], Callable[[], None], TrainOn]

MODELS = ("cifar10", "keras")


def layers_of(task: dict[str, Any]) -> list[tuple[Any, ...]]:
    return keras_layers() if task["model"] == "keras" else cifar_layers(task["side"])


def channels_of(task: dict[str, Any]) -> int:
    return int(layers_of(task)[0][1])


# --- the two sides ---


def gpucnn_steps(task: dict[str, Any]) -> Steps:
    import gpucnn
    from gpucnn import nn, ops, optim

    gpucnn.set_num_threads(task["threads"])
    gpucnn.manual_seed(0)
    model = nn.Sequential(*modules(layers_of(task), nn))
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    rng = np.random.default_rng(0)
    shape = (task["batch"], task["side"], task["side"], channels_of(task))
    x = gpucnn.tensor(rng.standard_normal(shape, dtype=np.float32))
    labels = rng.integers(0, 10, task["batch"])

    def convert(images: Any, classes: Any) -> tuple[Any, Any]:
        return gpucnn.tensor(images), classes

    return steps(model, optimizer, ops.cross_entropy, gpucnn.no_grad, (x, labels), convert)


def torch_steps(task: dict[str, Any], channels_last: bool) -> Steps:
    import torch
    from torch import nn

    torch.set_num_threads(task["threads"])
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = nn.Sequential(*modules(layers_of(task), nn)).to(memory_format=layout)
    x = torch.randn(task["batch"], channels_of(task), task["side"], task["side"])
    x = x.to(memory_format=layout)
    labels = torch.randint(0, 10, (task["batch"],))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

    def convert(images: Any, classes: Any) -> tuple[Any, Any]:
        images = torch.from_numpy(images).permute(0, 3, 1, 2)
        return images.contiguous(memory_format=layout), torch.from_numpy(classes).long()

    cross_entropy = nn.functional.cross_entropy
    return steps(model, optimizer, cross_entropy, torch.no_grad, (x, labels), convert)


def steps(
    model: Any,
    optimizer: Any,
    cross_entropy: Callable[..., Any],
    no_grad: Callable[[], AbstractContextManager[Any]],
    batch: tuple[Any, Any],
    convert: Callable[[Any, Any], tuple[Any, Any]],
) -> Steps:
    """The steps of either framework; convert turns a batch of NumPy arrays into its tensors."""
    x, labels = batch

    def train() -> None:
        optimizer.zero_grad()
        cross_entropy(model(x), labels).backward()
        optimizer.step()

    def infer() -> None:
        model.eval()
        with no_grad():
            model(x)
        model.train()

    def train_on(images: Any, classes: Any) -> None:
        nonlocal x, labels
        x, labels = convert(images, classes)
        train()

    return train, infer, train_on


def bare_step(task: dict[str, Any]) -> Callable[[], object]:
    """The arithmetic of gpucnn's step without modules, tensors and the tape.

    It calls forward and backward of each op on arrays.
    """
    import gpucnn
    from gpucnn import optim
    from gpucnn.ops.conv2d.op import _Conv2d
    from gpucnn.ops.dropout import _Dropout
    from gpucnn.ops.geometry import Geometry
    from gpucnn.ops.linear import _Linear
    from gpucnn.ops.relu import _ReLU
    from gpucnn.ops.shape import _Reshape
    from gpucnn.ops.softmax import _CrossEntropy
    from gpucnn.random import default_generator

    gpucnn.set_num_threads(task["threads"])
    rng = np.random.default_rng(0)
    side, batch = task["side"], task["batch"]
    images = rng.standard_normal((batch, side, side, 3), dtype=np.float32)
    labels = rng.integers(0, 10, batch)
    shape, parameters = images.shape, []
    plan: list[tuple[Callable[[], Any], tuple[Any, ...]]] = []  # node factories, and their weights
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
            convolved = Geometry.of("conv2d", shape, (sizes[2], sizes[2]), *sizes[3:])
            shape = (batch, convolved.oh, convolved.ow, sizes[1])
            plan.append((partial(_Conv2d, convolved, True, None), weights))
        elif kind == "pool":  # fused into the preceding convolution, as in nn.Sequential
            pooled = Geometry.of("pool", shape, *sizes, 0)
            shape = (batch, pooled.oh, pooled.ow, shape[3])
            plan[-1] = partial(_Conv2d, convolved, True, pooled), plan[-1][1]
        elif kind == "flatten":
            plan.append((partial(_Reshape, (batch, -1)), ()))
        elif kind == "dropout":
            plan.append((partial(_Dropout, *sizes, default_generator()), ()))
        else:
            plan.append((_Linear, weights))
            plan += [(_ReLU, ())] if kind == "linear" else []
    plan.append((partial(_CrossEntropy, labels, 0.0, None), ()))
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


def epoch_seconds(train_on: TrainOn, task: dict[str, Any]) -> float:
    """The time to train on every image of CIFAR-10 once, cropped, flipped and normalised.

    gpucnn's loader feeds both sides, with the same batches.
    """
    from gpucnn import data

    training = data.CIFAR10(task["data"], train=True)
    transform = data.Compose(
        [
            data.RandomCrop(32, padding=4),
            data.RandomHorizontalFlip(),
            data.Normalize(*data.channel_statistics(training.images)),
        ]
    )
    loader = data.DataLoader(
        training, task["batch"], shuffle=True, transform=transform, seed=0, drop_last=True
    )
    images, labels = next(iter(loader))
    train_on(images, labels)  # warm up
    start = time.perf_counter()
    for images, labels in loader:
        train_on(images, labels)
    return time.perf_counter() - start


# --- the tables ---


def step_task(arguments: argparse.Namespace, **settings: Any) -> dict[str, Any]:
    """The task of a child process that times steps."""
    task = {"model": "cifar10", "side": 32, "infer": False}
    return {**task, "repeats": arguments.repeats, "clock": arguments.clock, **settings}


def table(arguments: argparse.Namespace) -> None:
    names = sides()
    print("| model | batch | threads | OpenBLAS | figure | " + " | ".join(names) + " | ratio |")
    print("|---" * (6 + len(names)) + "|")
    settings = [
        (blas, threads, batch)
        for blas in arguments.blas
        for threads in arguments.threads
        for batch in arguments.batch
    ]
    for blas, threads, batch in settings:
        side = 227 if arguments.model == "keras" else 32
        task = step_task(
            arguments, model=arguments.model, side=side, batch=batch, threads=threads, infer=True
        )
        reports = interleave(__file__, names, task, arguments.rounds, blas)
        for figure, name, factor in (
            ("train", "training, ms", 1e3),
            ("infer", "inference, ms", 1e3),
            ("memory", "peak memory, MiB", 1),
        ):
            cells = [f"{median_of(reports[side], figure) * factor:.0f}" for side in names]
            peers = names[1:]
            cells.append(f"**{ratio(reports, OWN, peers, figure):.2f}**" if peers else "no peer")
            head = f"| {arguments.model} | {batch} | {threads} | {blas} | {name} | "
            print(head + " | ".join(cells) + " |", flush=True)


def growth(arguments: argparse.Namespace) -> None:
    """Print the time per multiply-add, relative to the first row: 1.00 is linear growth."""
    rows = [(batch, 32) for batch in (32, 64, 128, 256, 512, 1024)]
    rows += [(batch, side) for side, batch in ((16, 128), (32, 128), (64, 32), (128, 8))]
    base = None
    print("| batch | side | step, ms | us per image | time over linear |")
    print("|---|---|---|---|---|")
    for batch, side in rows:
        task = step_task(arguments, side=side, batch=batch, threads=arguments.threads[0])
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
    """The multiply-adds of a forward pass, per image."""
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
            task = step_task(arguments, batch=batch, threads=threads)
            reports = interleave(__file__, [OWN, "bare"], task, arguments.rounds)
            own, bare = (median_of(reports[side], "train") * 1e3 for side in (OWN, "bare"))
            figure = ratio(reports, OWN, ["bare"], "train")
            print(f"| {batch} | {threads} | {own:.1f} | {bare:.1f} | {figure:.3f} |", flush=True)


def epoch(arguments: argparse.Namespace) -> None:
    print("| threads | side | epoch, s | images/s |\n|---|---|---|---|")
    for threads in arguments.threads:
        task = {
            "model": "cifar10",
            "side": 32,
            "batch": 128,
            "threads": threads,
            "data": arguments.epoch,
        }
        for side in sides():
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
    add_arguments(parser, rounds=5)
    parser.add_argument(
        "--blas",
        nargs="+",
        default=["unset", "Haswell"],
        help='OpenBLAS variables: "unset", "as set", or a core type such as Haswell',
    )
    parser.add_argument(
        "--growth", action="store_true", help="time against batch size and image side"
    )
    parser.add_argument(
        "--overhead", action="store_true", help="autograd against the bare arithmetic"
    )
    parser.add_argument("--epoch", metavar="DIR", help="time one epoch of the CIFAR-10 in DIR")
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
