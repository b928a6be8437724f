"""Time a training step of models.speedrun_cifar10 on the CPU, by layer and beside PyTorch.

    python benchmarks/speedrun_step.py                     batch 2000, two threads, wall time
    python benchmarks/speedrun_step.py --batch 500 --rounds 3
    python benchmarks/speedrun_step.py --layers            gpucnn's time by operation alone

A step is forward, softmax cross-entropy, backward, and SGD with Nesterov momentum, in float32.  The
ratio is gpucnn's time over that of PyTorch's faster layout, the median over rounds.  Memory is the
peak of the process in MiB.  Without PyTorch, only gpucnn's times are printed.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
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


def own_step(task: dict[str, Any]) -> Callable[[], None]:
    import gpucnn
    from gpucnn import models, ops, optim

    gpucnn.set_num_threads(task["threads"])
    model = models.speedrun_cifar10(generator=np.random.default_rng(0))
    x, labels = images(task)
    model.whiten(x[:500])
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.85, nesterov=True)
    given = gpucnn.tensor(x)

    def step() -> None:
        optimizer.zero_grad()
        ops.cross_entropy(model(given), labels).backward()
        optimizer.step()

    return step


def torch_step(task: dict[str, Any], channels_last: bool) -> Callable[[], None]:
    import torch
    from torch import nn

    torch.set_num_threads(task["threads"])
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    first = nn.Conv2d(3, 24, 2)
    first.weight.requires_grad = False
    layers: list[Any] = [first, nn.GELU()]
    c = 24
    for oc in (64, 256, 256):
        norms = [nn.BatchNorm2d(oc, 1e-12, 0.4) for _ in range(2)]
        for norm in norms:
            norm.weight.requires_grad = False
        layers += [nn.Conv2d(c, oc, 3, padding=1, bias=False), nn.MaxPool2d(2), norms[0], nn.GELU()]
        layers += [nn.Conv2d(oc, oc, 3, padding=1, bias=False), norms[1], nn.GELU()]
        c = oc
    layers += [nn.MaxPool2d(3), nn.Flatten(), nn.Linear(256, 10, bias=False)]
    model = nn.Sequential(*layers).to(memory_format=layout)
    pixels, classes = images(task)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(memory_format=layout)
    labels = torch.from_numpy(classes)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.01, momentum=0.85, nesterov=True)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x) / 256, labels).backward()
        optimizer.step()

    return step


def images(task: dict[str, Any]) -> tuple[Any, Any]:
    """Random images, smooth as photographs are, and labels."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((task["batch"], 32, 32, 3), dtype=np.float32)
    return x + np.roll(x, 1, 1) + np.roll(x, 1, 2), rng.integers(0, 10, task["batch"])


class Stopwatch:
    """Watches a step: the time from one operation's end to the next one's is the latter's."""

    def __init__(self, clock: str) -> None:
        self._now = time.process_time if clock == "cpu" else time.perf_counter
        self.times: dict[str, dict[str, float]] = {}
        self._names: dict[int, str] = {}
        self._last = self._now()

    def forward(self, node: Any, inputs: tuple[Any, ...], y: Any) -> None:
        name = f"{len(self._names):2} {node.name} {'x'.join(map(str, y.shape[1:]))}"
        self._names[id(node)] = name
        self._add(name, "forward")

    def backward(self, node: Any, dy: Any, gradients: Any) -> None:
        self._add(self._names[id(node)], "backward")

    def _add(self, name: str, way: str) -> None:
        now = self._now()
        self.times.setdefault(name, {})[way] = now - self._last
        self._last = self._now()


def layer_times(task: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Milliseconds of each operation, forward and backward: the medians over steps."""
    from gpucnn.watching import watching

    step = own_step(task)
    step()
    found = []
    for _ in range(task["repeats"]):
        watch = Stopwatch(task["clock"])
        with watching(watch):
            step()
        found.append(watch.times)
    return {
        name: {way: 1e3 * statistics.median(t[name][way] for t in found) for way in found[0][name]}
        for name in found[0]
    }


def child(side: str, task: dict[str, Any]) -> dict[str, Any]:
    if side == "layers":
        return layer_times(task)
    step = own_step(task) if side == OWN else torch_step(task, side == PEERS[0])
    return {
        "train": seconds(step, task["repeats"], task["clock"], warm_up=1),
        "memory": peak_memory(),
    }


def print_layers(task: dict[str, Any]) -> None:
    print("| operation, its result | forward, ms | backward, ms |\n|---|---|---|")
    total = {"forward": 0.0, "backward": 0.0}
    for name, times in run_child(__file__, "layers", task).items():
        print(f"| {name} | {times['forward']:.0f} | {times.get('backward', 0):.0f} |")
        for way, taken in times.items():
            total[way] += taken
    print(f"| all | {total['forward']:.0f} | {total['backward']:.0f} |\n", flush=True)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(child(sys.argv[2], json.loads(sys.argv[3]))))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", action="store_true", help="gpucnn's time by operation alone")
    add_arguments(parser, rounds=3)
    arguments = parser.parse_args()
    task = {name: getattr(arguments, name) for name in ("batch", "threads", "repeats", "clock")}
    print(f"{machine()}; {arguments.clock} time\n")
    print_layers(task)
    if arguments.layers:
        return
    names = sides()
    reports = interleave(__file__, names, task, arguments.rounds)
    print("| figure | " + " | ".join(names) + " | ratio |\n" + "|---" * (2 + len(names)) + "|")
    for figure, title, factor in (("train", "step, ms", 1e3), ("memory", "peak memory, MiB", 1)):
        cells = [f"{median_of(reports[side], figure) * factor:.0f}" for side in names]
        peers = names[1:]
        cells.append(f"**{ratio(reports, OWN, peers, figure):.2f}**" if peers else "no peer")
        print(f"| {title} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
