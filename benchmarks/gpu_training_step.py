"""Times a training step of alexnet_cifar10 on a GPU beside PyTorch's, and each layer by itself.

    python benchmarks/gpu_training_step.py                          cuda, batch 128
    python benchmarks/gpu_training_step.py --device cudasim --tiny  that it works, without a GPU

A step's time is between two events of the device's stream, median over `--repeats` steps in each
process, then over `--rounds` rounds of all sides in turn: where the device waits for Python, that
is in it.  A step is forward, softmax cross entropy, backward, and SGD with momentum and weight
decay.  gpucnn computes in float32; PyTorch runs in both of its layouts, with TF32 off (the same
arithmetic) and on, cuDNN choosing by trial.  Memory is the most that the pool held.

A layer's time is the device's alone: `--repeats` calls are queued while a kernel spins, and run
without a gap when it ends.  Events around single calls would show what Python takes for a launch
(gpucnn/commands/check/measure.py).  Figures of the simulator say nothing about a GPU.
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from _peer import interleave, machine, median_of, ratio
from cpu_training_step import cifar_layers

import gpucnn
from gpucnn import cuda, models, nn, ops, optim
from gpucnn.commands.check.measure import Spin, milliseconds
from gpucnn.device import Device, device_of
from gpucnn.errors import GpucnnError

OWN = "gpucnn"
PEERS = {  # channels last, TF32
    "torch channels_last": (True, False),
    "torch nchw": (False, False),
    "torch channels_last, TF32": (True, True),
    "torch nchw, TF32": (False, True),
}
FLOAT32 = list(PEERS)[:2]
FIGURES = {"train": "training, ms", "infer": "inference, ms", "memory": "memory, MiB"}
# float32 multiply-adds a clock of one multiprocessor: CUDA C++ Programming Guide, table of
# arithmetic throughput.
LANES = {60: 64, 61: 128, 70: 64, 75: 64, 80: 64, 86: 128, 87: 128, 89: 128, 90: 128}
LANES |= dict.fromkeys((100, 103, 110, 120, 121), 128)


# --- gpucnn ---


def prepare(task: dict[str, Any]) -> tuple[Device, nn.Module, gpucnn.Tensor, gpucnn.Tensor]:
    """The device, the model on it, images and labels."""
    gpucnn.manual_seed(0)
    device = Device.parse(task["device"])
    rng = np.random.default_rng(0)
    images = rng.standard_normal((task["batch"], 32, 32, 3), dtype=np.float32)
    labels = rng.integers(0, 10, task["batch"])
    model = models.alexnet_cifar10().to(device)
    return device, model, gpucnn.tensor(images, device), gpucnn.tensor(labels, device)


def own_figures(task: dict[str, Any]) -> dict[str, float]:
    device, model, images, labels = prepare(task)
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

    def train() -> None:
        optimizer.zero_grad()
        ops.cross_entropy(model(images), labels).backward()
        optimizer.step()

    def infer() -> None:
        with gpucnn.no_grad():
            model(images)

    xp = device.xp
    with xp.cuda.Device(device.index):
        report = {"train": milliseconds(train, device, task["repeats"])}
        report["memory"] = xp.get_default_memory_pool().total_bytes() / 2**20
        model.eval()
        report["infer"] = milliseconds(infer, device, task["repeats"])
    return report


def layers(task: dict[str, Any]) -> list[tuple[str, float, float, float, int]]:
    """Of each layer that multiplies: name, forward and backward in ms, multiply-adds of the
    forward pass, and how many times those backward makes (without the images' gradient: once)."""
    device, model, images, _ = prepare(task)
    calls: list[tuple[nn.Module, gpucnn.Tensor, gpucnn.Tensor]] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, nn.Conv2d | nn.Linear):
            calls.append((module, inputs[0], output))

    with gpucnn.no_grad(), nn.observe(keep):
        model.eval()(images)
    rows, spin = [], Spin(device)
    with device.xp.cuda.Device(device.index):
        for layer, given, output in calls:
            x = gpucnn.Tensor(given.data, requires_grad=given is not images)
            times = [queued(step, task["repeats"], spin) for step in layer_steps(layer, x)]
            name = (
                f"{type(layer).__name__} {x.shape[-1]} -> {output.shape[-1]}, {x.shape[1:-1] or 1}"
            )
            work = layer.multiply_adds((given,), output)
            rows.append((name, *times, work, 1 + x.requires_grad))
    return rows


def queued(step: Callable[[], None], repeats: int, spin: Spin) -> float:
    """Milliseconds of the device for one call, of `repeats` that were queued behind a spin."""
    with cuda.count_launches() as launches:
        step()
    # Twice, and four more: cuBLAS and CuPy launch too
    count = 2 * sum(launches.values()) + 4
    time, covered = spin.milliseconds(step, count, repeats, rounds=min(3, repeats))
    if not covered and not spin.simulated:
        print("warning: the device did not spin until all was queued: gaps are in the next row")
    return time


def layer_steps(layer: nn.Module, x: gpucnn.Tensor) -> list[Callable[[], None]]:
    """Forward, and backward of what one forward pass left."""
    y = layer(x)
    dy = device_of(y.data).xp.ones_like(y.data)
    leaves = [x, *layer.parameters()]

    def forward() -> None:
        with gpucnn.no_grad():
            layer(x)

    def backward() -> None:
        for leaf in leaves:
            leaf.grad = None
        y.backward(dy, retain_graph=True)

    return [forward, backward]


# --- PyTorch ---


def torch_figures(task: dict[str, Any], channels_last: bool, tf32: bool) -> dict[str, float]:
    import torch
    from torch import nn as torch_nn

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    modules: list[Any] = []
    for kind, *sizes in cifar_layers():
        if kind == "conv":
            c, oc, k, stride, padding = sizes
            modules += [torch_nn.Conv2d(c, oc, k, stride, padding), torch_nn.ReLU()]
        elif kind == "pool":
            modules.append(torch_nn.MaxPool2d(*sizes))
        elif kind == "flatten":
            modules.append(torch_nn.Flatten())
        elif kind == "dropout":
            modules.append(torch_nn.Dropout(0.5))
        else:
            modules += [torch_nn.Linear(*sizes), *([torch_nn.ReLU()] if kind == "linear" else [])]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = torch_nn.Sequential(*modules).to(task["device"]).to(memory_format=layout)
    images = torch.randn(task["batch"], 3, 32, 32, device=task["device"])
    images = images.contiguous(memory_format=layout)
    labels = torch.randint(0, 10, (task["batch"],), device=task["device"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

    def train() -> None:
        optimizer.zero_grad()
        torch_nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    def infer() -> None:
        with torch.no_grad():
            model(images)

    report = {"train": torch_milliseconds(train, task["repeats"])}
    report["memory"] = torch.cuda.max_memory_reserved() / 2**20
    model.eval()
    report["infer"] = torch_milliseconds(infer, task["repeats"])
    return report


def torch_milliseconds(step: Callable[[], object], repeats: int) -> float:
    """The median time of one call between two of PyTorch's events."""
    import torch

    step()
    pairs = []
    for _ in range(repeats):
        pairs.append([torch.cuda.Event(enable_timing=True) for _ in range(2)])
        pairs[-1][0].record()
        step()
        pairs[-1][1].record()
    pairs[-1][1].synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in pairs)


def peers(device: Device) -> list[str]:
    """PyTorch's sides, if it is installed and sees the GPU; asked in a process of its own."""
    if device.kind != "cuda" or importlib.util.find_spec("torch") is None:
        return []
    program = "import torch; print(torch.cuda.is_available())"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    return list(PEERS) if answer.stdout.strip() == "True" else []


# --- the tables ---


def peak(device: Device) -> float | None:
    """Float32 operations a second of the whole device, a multiply-add being two; None if its
    attributes do not say."""
    handle = device.xp.cuda.Device(device.index)
    lanes = LANES.get(int(handle.compute_capability))
    kilohertz = handle.attributes.get("ClockRate")
    if lanes is None or not kilohertz:
        return None
    return 2.0 * lanes * handle.attributes["MultiProcessorCount"] * kilohertz * 1e3


def step_table(task: dict[str, Any], rounds: int, others: list[str]) -> None:
    sides = [OWN, *others]
    reports = interleave(__file__, sides, task, rounds, "as set")
    heads = [*sides, *(["to PyTorch in float32", "to PyTorch with TF32"] if others else [])]
    print("\n| figure | " + " | ".join(heads) + " |")
    print("|---" * (1 + len(heads)) + "|")
    for figure, name in FIGURES.items():
        cells = [f"{median_of(reports[side], figure):.2f}" for side in sides]
        if others:
            for rivals in (FLOAT32, [side for side in others if side not in FLOAT32]):
                cells.append(f"**{ratio(reports, OWN, rivals, figure):.2f}**")
        print(f"| {name} | " + " | ".join(cells) + " |")
    if not others:
        print("\nno PyTorch with CUDA here: no peer")


def layer_table(task: dict[str, Any], most: float | None) -> None:
    print("\n| layer | forward, ms | TFLOP/s | of peak | backward, ms | TFLOP/s | of peak |")
    print("|---" * 7 + "|")
    for name, forward, backward, work, times in layers(task):
        cells = []
        for time, operations in ((forward, 2.0 * work), (backward, 2.0 * work * times)):
            speed = operations / time * 1e3
            share = f"{speed / most:.0%}" if most else "unknown"
            cells += [f"{time:.3f}", f"{speed / 1e12:.3g}", share]
        print(f"| {name} | " + " | ".join(cells) + " |")


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        side, task = sys.argv[2], json.loads(sys.argv[3])
        report = own_figures(task) if side == OWN else torch_figures(task, *PEERS[side])
        print(json.dumps(report))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cudasim (default: cuda)")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=50, help="calls timed in each process")
    parser.add_argument("--tiny", action="store_true", help="2 images, one round, one call")
    arguments = parser.parse_args()
    if arguments.tiny:
        arguments.batch, arguments.rounds, arguments.repeats = 2, 1, 1
    try:
        device = Device.parse(arguments.device)
    except GpucnnError as error:
        parser.error(str(error))
    if device.kind == "cpu":
        parser.error("the CPU's figures are cpu_training_step.py's")
    properties = device.xp.cuda.runtime.getDeviceProperties(device.index)
    most = peak(device)
    print(machine())
    print(
        f"{device}: {properties['name'].decode()}, sm_{properties['major']}{properties['minor']}, "
        + (f"peak {most / 1e12:.1f} TFLOP/s in float32" if most else "peak unknown")
    )
    task = {
        "device": str(device),
        "batch": arguments.batch,
        "repeats": arguments.repeats,
    }
    print(f"alexnet_cifar10, batch {arguments.batch}")
    step_table(task, arguments.rounds, peers(device))
    layer_table(task, most)


if __name__ == "__main__":
    main()
