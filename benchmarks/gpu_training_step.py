"""Time a training step of alexnet_cifar10 on a GPU, compare it with PyTorch, and time each layer.

    python benchmarks/gpu_training_step.py                          cuda, batch 128
    python benchmarks/gpu_training_step.py --precision bf16         autocast, on both sides
    python benchmarks/gpu_training_step.py --device cudasim --tiny  test the script without a GPU

A step is forward, softmax cross-entropy, backward, and SGD with momentum and weight decay.  Its
time is measured between two events on the device's stream, the median over `--repeats` steps in
each process, then over `--rounds` rounds of all sides in turn.  It includes the time that the
device waits for Python.  PyTorch runs in both of its layouts and in the precision of gpucnn, and
cuDNN benchmarks its algorithms.  Memory is the peak size of the memory pool.

`--precision` is fp32 (float32), tf32, bf16 or fp16 (autocast, fp16 with a scaled loss); without it,
gpucnn's default on the device: TF32 on GPUs that have it.

The time of a layer excludes the host: `--repeats` calls are queued while a kernel spins, and then
run without gaps.  Events around single calls would measure Python's launch time
(gpucnn/commands/check/measure.py).  "of peak" names the arithmetic: tensor cores where the layer
launches kernels for them, else float32 (a layer with 3 channels, for one).  Times on the simulator
say nothing about a GPU.
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
from _peer import OWN, PEERS, interleave, machine, median_of, ratio

import gpucnn
from gpucnn import cuda, models, nn, ops, optim
from gpucnn.commands.check.measure import Spin, milliseconds
from gpucnn.commands.check.peer import set_torch_precision
from gpucnn.device import Device, device_of
from gpucnn.errors import GpucnnError
from gpucnn.train.step_precision import StepPrecision

FIGURES = {"train": "training, ms", "infer": "inference, ms", "memory": "memory, MiB"}
# float32 multiply-adds per clock and multiprocessor, by compute capability.  Source: CUDA C++
# Programming Guide, table of arithmetic throughput.
LANES = {60: 64, 61: 128, 70: 64, 75: 64, 80: 64, 86: 128, 87: 128, 89: 128, 90: 128}
LANES |= dict.fromkeys((100, 103, 110, 120, 121), 128)
# 16-bit multiply-adds per clock and multiprocessor, of tensor cores that sum in float32; half as
# many in TF32.  From the speeds in NVIDIA's data sheets of T4, A100, A10, L40S, H100 and B200;
# GeForce cards have half of the A10's and L40S's.
TENSOR = {75: 512, 80: 1024, 86: 512, 89: 512, 90: 2048, 100: 4096}
LEAST = {"tf32": 80, "bf16": 80, "fp16": 75}  # compute capability of gpucnn's kernels for them


# --- gpucnn ---


def prepare(
    task: dict[str, Any],
) -> tuple[Device, nn.Module, gpucnn.Tensor, gpucnn.Tensor, StepPrecision]:
    """The device, the model on it, images, labels, and the precision."""
    gpucnn.manual_seed(0)
    device = Device.parse(task["device"])
    rng = np.random.default_rng(0)
    images = rng.standard_normal((task["batch"], 32, 32, 3), dtype=np.float32)
    labels = rng.integers(0, 10, task["batch"])
    model = models.alexnet_cifar10().to(device)
    precision = StepPrecision(task["precision"], device)
    return device, model, gpucnn.tensor(images, device), gpucnn.tensor(labels, device), precision


def own_figures(task: dict[str, Any]) -> dict[str, float]:
    device, model, images, labels, precision = prepare(task)
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

    def train() -> None:
        optimizer.zero_grad()
        with precision.forward():
            loss = ops.cross_entropy(model(images), labels)
        loss.backward(precision.start(loss))
        precision.step(optimizer)

    def infer() -> None:
        with gpucnn.no_grad(), precision.forward():
            model(images)

    xp = device.xp
    with xp.cuda.Device(device.index), precision.products():
        report = {"train": milliseconds(train, device, task["repeats"])}
        report["memory"] = xp.get_default_memory_pool().total_bytes() / 2**20
        model.eval()
        report["infer"] = milliseconds(infer, device, task["repeats"])
    return report


def layers(task: dict[str, Any]) -> list[tuple[str, float, float, float, int, list[str]]]:
    """One row per convolution and dense layer.

    A row is the name, the milliseconds of forward and backward, the multiply-adds of the forward
    pass, the ratio of backward to forward multiply-adds (1 for the first layer, which needs no
    gradient of the images, else 2), and the arithmetic of forward and backward: "fp32" or that of
    the tensor cores.
    """
    device, model, images, _, precision = prepare(task)
    calls: list[tuple[nn.Module, gpucnn.Tensor, gpucnn.Tensor]] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, nn.Conv2d | nn.Linear):
            calls.append((module, inputs[0], output))

    with gpucnn.no_grad(), nn.observe(keep), precision.products(), precision.forward():
        model.eval()(images)
    rows, spin = [], Spin(device)
    with device.xp.cuda.Device(device.index), precision.products():
        for layer, given, output in calls:
            x = gpucnn.Tensor(given.data, requires_grad=given is not images)
            steps = layer_steps(layer, x, precision)
            times = [queued(step, task["repeats"], spin) for step in steps]
            paths = [precision.name if on_tensor_cores(step) else "fp32" for step in steps]
            name = (
                f"{type(layer).__name__} {x.shape[-1]} -> {output.shape[-1]}, {x.shape[1:-1] or 1}"
            )
            work = layer.multiply_adds((given,), output)
            rows.append((name, *times, work, 1 + x.requires_grad, paths))
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


def on_tensor_cores(step: Callable[[], None]) -> bool:
    """Whether a call launches a kernel for tensor cores."""
    with cuda.count_launches() as launches:
        step()
    return any(name.endswith("_tensor") for name in launches)


def layer_steps(
    layer: nn.Module, x: gpucnn.Tensor, precision: StepPrecision
) -> list[Callable[[], None]]:
    """A forward step, and a backward step that repeats the backward pass of one forward pass."""
    with precision.forward():
        y = layer(x)
    dy = device_of(y.data).xp.ones_like(y.data)
    leaves = [x, *layer.parameters()]

    def forward() -> None:
        with gpucnn.no_grad(), precision.forward():
            layer(x)

    def backward() -> None:
        for leaf in leaves:
            leaf.grad = None
        y.backward(dy, retain_graph=True)

    return [forward, backward]


# --- PyTorch ---


def torch_figures(task: dict[str, Any], channels_last: bool) -> dict[str, float]:
    import torch
    from torch import nn

    device, precision = torch.device(task["device"]), task["precision"]
    set_torch_precision(precision)
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = nn.Sequential(*modules(cifar_layers(), nn)).to(device).to(memory_format=layout)
    images = torch.randn(task["batch"], 3, 32, 32, device=device)
    images = images.contiguous(memory_format=layout)
    labels = torch.randint(0, 10, (task["batch"],), device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)

    def autocast() -> Any:
        return torch.autocast(device.type, half or torch.bfloat16, enabled=half is not None)

    def train() -> None:
        optimizer.zero_grad()
        with autocast():
            loss = nn.functional.cross_entropy(model(images), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    def infer() -> None:
        with torch.no_grad(), autocast():
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
    return PEERS if answer.stdout.strip() == "True" else []


# --- the tables ---


def peaks(device: Device) -> dict[str, float]:
    """Peak operations per second in each precision, a multiply-add being two; without unknown ones.

    Precisions that the GPU, or gpucnn on it, computes in float32 have no peak of their own.
    """
    handle = device.xp.cuda.Device(device.index)
    capability = int(handle.compute_capability)
    kilohertz = handle.attributes.get("ClockRate")
    if not kilohertz:
        return {}
    clocks = 2.0 * handle.attributes["MultiProcessorCount"] * kilohertz * 1e3
    found = {"fp32": clocks * LANES[capability]} if capability in LANES else {}
    for name, least in LEAST.items():
        if capability in TENSOR and capability >= least:
            found[name] = clocks * TENSOR[capability] / (2 if name == "tf32" else 1)
    return found


def step_table(task: dict[str, Any], rounds: int, others: list[str]) -> None:
    sides = [OWN, *others]
    reports = interleave(__file__, sides, task, rounds, "as set")
    heads = [*sides, *([f"to PyTorch in {task['precision']}"] if others else [])]
    print("\n| figure | " + " | ".join(heads) + " |")
    print("|---" * (1 + len(heads)) + "|")
    for figure, name in FIGURES.items():
        cells = [f"{median_of(reports[side], figure):.2f}" for side in sides]
        if others:
            cells.append(f"**{ratio(reports, OWN, others, figure):.2f}**")
        print(f"| {name} | " + " | ".join(cells) + " |")
    if not others:
        print("\nno comparison: PyTorch with CUDA is not installed")


def layer_table(task: dict[str, Any], speeds: dict[str, float]) -> None:
    print("\n| layer | forward, ms | TFLOP/s | of peak | backward, ms | TFLOP/s | of peak |")
    print("|---" * 7 + "|")
    for name, forward, backward, work, times, paths in layers(task):
        cells = []
        both = ((forward, 2.0 * work), (backward, 2.0 * work * times))
        for (time, operations), path in zip(both, paths, strict=True):
            speed = operations / time * 1e3
            share = (
                f"{speed / speeds[path]:.0%} of {path}" if path in speeds else f"{path}, unknown"
            )
            cells += [f"{time:.3f}", f"{speed / 1e12:.3g}", share]
        print(f"| {name} | " + " | ".join(cells) + " |")


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        side, task = sys.argv[2], json.loads(sys.argv[3])
        report = own_figures(task) if side == OWN else torch_figures(task, side == PEERS[0])
        print(json.dumps(report))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cudasim (default: cuda)")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument(
        "--precision",
        choices=("fp32", "tf32", "bf16", "fp16"),
        help="of both sides (default: the device's)",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=50, help="calls timed in each process")
    parser.add_argument("--tiny", action="store_true", help="2 images, one round, one call")
    arguments = parser.parse_args()
    if arguments.tiny:
        arguments.batch, arguments.rounds, arguments.repeats = 2, 1, 1
    try:
        device = Device.parse(arguments.device)
        if device.kind != "cpu":
            precision = StepPrecision(arguments.precision, device).name
    except GpucnnError as error:
        parser.error(str(error))
    if device.kind == "cpu":
        parser.error("expected cuda or cudasim; cpu_training_step.py times the CPU")
    properties = device.xp.cuda.runtime.getDeviceProperties(device.index)
    speeds = peaks(device)
    known = ", ".join(f"{speed / 1e12:.1f} in {name}" for name, speed in speeds.items())
    print(machine())
    print(
        f"{device}: {properties['name'].decode()}, sm_{properties['major']}{properties['minor']}, "
        + (f"peak TFLOP/s: {known}" if known else "peak unknown")
    )
    task = {
        "device": str(device),
        "batch": arguments.batch,
        "repeats": arguments.repeats,
        "precision": precision,
    }
    default = "" if arguments.precision else ", the device's default"
    print(f"alexnet_cifar10, batch {arguments.batch}, {precision}{default}")
    step_table(task, arguments.rounds, peers(device))
    layer_table(task, speeds)


if __name__ == "__main__":
    main()
