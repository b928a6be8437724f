"""Time a training step of alexnet_cifar10 on a GPU, compare it with PyTorch, and time each layer.

    python benchmarks/gpu_training_step.py                          cuda, batch 128
    python benchmarks/gpu_training_step.py --device cudasim --tiny  test the script without a GPU

A step is forward, softmax cross-entropy, backward, and SGD with momentum and weight decay.  Its
time is measured between two events on the device's stream, the median over `--repeats` steps in
each process, then over `--rounds` rounds of all sides in turn.  It includes the time that the
device waits for Python.  gpucnn computes in float32; PyTorch runs in both of its layouts, with TF32
off (the same arithmetic) and on, and cuDNN benchmarks its algorithms.  Memory is the peak size of
the memory pool.

The time of a layer excludes the host: `--repeats` calls are queued while a kernel spins, and then
run without gaps.  Events around single calls would measure Python's launch time
(gpucnn/commands/check/measure.py).  Times on the simulator say nothing about a GPU.
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
from _alexnets import cifar_layers, modules
from _peer import OWN, interleave, machine, median_of, ratio

import gpucnn
from gpucnn import cuda, models, nn, ops, optim
from gpucnn.commands.check.measure import Spin, milliseconds
from gpucnn.device import Device, device_of
from gpucnn.errors import GpucnnError

PEERS = {  # channels_last, TF32
    "torch channels_last": (True, False),
    "torch nchw": (False, False),
    "torch channels_last, TF32": (True, True),
    "torch nchw, TF32": (False, True),
}
FLOAT32 = list(PEERS)[:2]
FIGURES = {"train": "training, ms", "infer": "inference, ms", "memory": "memory, MiB"}
# float32 multiply-adds per clock and multiprocessor, by compute capability.  Source: CUDA C++
# Programming Guide, table of arithmetic throughput.
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
    """One row per convolution and dense layer.

    A row is the name, the milliseconds of forward and backward, the multiply-adds of the forward
    pass, and the ratio of backward to forward multiply-adds: 1 for the first layer, which needs no
    gradient of the images, else 2.
    """
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
    """Device milliseconds per call, from `repeats` calls queued behind a spin."""
    with cuda.count_launches() as launches:
        step()
    # An upper bound: cuBLAS and CuPy launch kernels too.
    count = 2 * sum(launches.values()) + 4
    time, covered = spin.milliseconds(step, count, repeats, rounds=min(3, repeats))
    if not covered and not spin.simulated:
        print("warning: the spin ended before all calls were queued: the next row includes gaps")
    return time


def layer_steps(layer: nn.Module, x: gpucnn.Tensor) -> list[Callable[[], None]]:
    """A forward step, and a backward step that repeats the backward pass of one forward pass."""
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
    from torch import nn

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = nn.Sequential(*modules(cifar_layers(), nn)).to(task["device"]).to(memory_format=layout)
    images = torch.randn(task["batch"], 3, 32, 32, device=task["device"])
    images = images.contiguous(memory_format=layout)
    labels = torch.randint(0, 10, (task["batch"],), device=task["device"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

    def train() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
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
    """The median time of one call between two PyTorch events."""
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
    """PyTorch's sides; [] if it is missing or sees no GPU, which a separate process tests."""
    if device.kind != "cuda" or importlib.util.find_spec("torch") is None:
        return []
    program = "import torch; print(torch.cuda.is_available())"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    return list(PEERS) if answer.stdout.strip() == "True" else []


# --- the tables ---


def peak(device: Device) -> float | None:
    """Peak float32 operations per second, a multiply-add being two; None if unknown."""
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
        print("\nno comparison: PyTorch with CUDA is not installed")


def layer_table(task: dict[str, Any], peak_speed: float | None) -> None:
    print("\n| layer | forward, ms | TFLOP/s | of peak | backward, ms | TFLOP/s | of peak |")
    print("|---" * 7 + "|")
    for name, forward, backward, work, times in layers(task):
        cells = []
        for time, operations in ((forward, 2.0 * work), (backward, 2.0 * work * times)):
            speed = operations / time * 1e3
            share = f"{speed / peak_speed:.0%}" if peak_speed else "unknown"
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
        parser.error("expected cuda or cudasim; cpu_training_step.py times the CPU")
    properties = device.xp.cuda.runtime.getDeviceProperties(device.index)
    peak_speed = peak(device)
    print(machine())
    print(
        f"{device}: {properties['name'].decode()}, sm_{properties['major']}{properties['minor']}, "
        + (f"peak {peak_speed / 1e12:.1f} TFLOP/s in float32" if peak_speed else "peak unknown")
    )
    task = {
        "device": str(device),
        "batch": arguments.batch,
        "repeats": arguments.repeats,
    }
    print(f"alexnet_cifar10, batch {arguments.batch}")
    step_table(task, arguments.rounds, peers(device))
    layer_table(task, peak_speed)


if __name__ == "__main__":
    main()
