"""Part 8: time each kernel of a step: by repetition, and with ncu; PyTorch's kernels."""

import csv
import importlib.util
import sys
import time
from typing import Any

from gpucnn import cuda, models
from gpucnn.commands.check.measure import Spin, training_operations
from gpucnn.commands.check.part import Reporter
from gpucnn.commands.check.peer import Mode, torch_step
from gpucnn.commands.check.program import training_step
from gpucnn.commands.check.tools import find_or_skip, output
from gpucnn.cuda.launcher import checked_kernel
from gpucnn.device import Device

_BATCH = 128
_REPEATS = 50
_METRICS = {
    "gpu__time_duration.sum": "us",
    "gpu__compute_memory_throughput.avg.pct_of_peak_sustained_elapsed": "memory %",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "DRAM %",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "SM %",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy %",
    "launch__registers_per_thread": "registers",
    "launch__grid_size": "blocks",
}
_UNITS = {"ns": 1e-3, "nsecond": 1e-3, "us": 1.0, "usecond": 1.0, "ms": 1e3, "msecond": 1e3}
_PERMISSION = (
    "only root may read the performance counters: run as root, or load the driver module with "
    "NVreg_RestrictProfilingToAdminUsers=0"
)
_TORCH_KERNELS = 15  # listed


def examine(reporter: Reporter) -> None:
    device = reporter.device
    with device.xp.cuda.Device(device.index):
        reporter.run("kernels by repetition", _by_repetition, reporter, device)
    if reporter.simulated:
        reporter.skip("ncu", "for GPUs only")
        reporter.skip("PyTorch's kernels", "for GPUs only")
        return
    reporter.run("PyTorch's kernels", _torch_kernels, reporter, device)
    path = find_or_skip(reporter, "ncu")
    if path is not None:
        reporter.run("ncu", _ncu, reporter, path)


def _by_repetition(reporter: Reporter, device: Device) -> None:
    """Time every launch of a step, repeated behind a spin with its own arguments."""
    batch = _batch(reporter, device)
    if batch == 0:
        reporter.skip("kernels by repetition", "a step on one image takes too long here")
        return
    step = training_step(device, reporter.task.model, batch)
    step()
    with cuda.record_launches() as launches:
        step()
    device.xp.cuda.Device(device.index).synchronize()
    spin, covered = Spin(device), True
    repeats = 1 if reporter.simulated else _REPEATS
    times: dict[str, float] = {}
    for number, launch in enumerate(launches):
        if reporter.seconds_left() < (2 if reporter.simulated else 8):
            reporter.note(
                "kernels by repetition", f"no time left for {len(launches) - number} launches"
            )
            break
        kernel = checked_kernel(launch.kernel.name, device, launch.defines)

        def run(launch: Any = launch, kernel: Any = kernel) -> None:
            kernel.run(launch.grid, launch.block, launch.shared, launch.values)

        once = spin.queue(run).device_ms
        count = max(min(repeats, int(50 / max(once, 1e-3))), 1)
        ms, launch_covered = spin.milliseconds(run, 1, count, rounds=3 if count > 1 else 1)
        covered &= launch_covered
        name = launch.kernel.name
        times[name] = times.get(name, 0.0) + ms
        reporter.row(
            f"Each launch of a step of {reporter.task.model}, {batch} images, by repetition",
            {
                "number": number,
                "kernel": name,
                "blocks": "x".join(map(str, launch.grid)),
                "threads": launch.block[0],
                "us": ms * 1e3,
            },
        )
    total = sum(times.values())
    slowest = sorted(times.items(), key=lambda item: -item[1])[:3]
    reporter.ok(
        "kernels by repetition",
        f"{total:.3f} ms in total, cuBLAS excluded; slowest: "
        + ", ".join(f"{name} {ms / total:.0%}" for name, ms in slowest),
    )
    if reporter.simulated:
        return
    reporter.headline(f"{slowest[0][0]} takes {slowest[0][1] / total:.0%} of the kernels' time")
    if not covered:
        reporter.note(
            "kernels by repetition",
            "the host was not always ahead of the device: some times include gaps",
        )


def _batch(reporter: Reporter, device: Device) -> int:
    """_BATCH images; fewer if they would take too long, 0 if even one would."""
    if reporter.simulated:
        return 2
    name = reporter.task.model
    if (
        reporter.estimated_seconds(training_operations(models.build(name), name))
        > reporter.seconds_left() / 12
    ):
        return 0
    step = training_step(device, reporter.task.model, 1)
    step().item()
    start = time.perf_counter()
    step().item()
    seconds = time.perf_counter() - start  # per image; a step runs about six times
    fits = int(reporter.seconds_left() / 6 / seconds)
    return min(_BATCH, fits)


# --- PyTorch ---


def _torch_kernels(reporter: Reporter, device: Device) -> None:
    """List the kernels of PyTorch's step: cuDNN's choice is the target to reach."""
    if importlib.util.find_spec("torch") is None:
        reporter.skip("PyTorch's kernels", "torch is not installed", "pip install torch")
        return
    import torch

    if not torch.cuda.is_available():
        reporter.skip("PyTorch's kernels", "torch sees no CUDA device")
        return
    torch.backends.cudnn.benchmark = True
    for mode in (Mode("fp32"), Mode("TF32", "tf32"), Mode("bf16", "bf16")):
        if reporter.seconds_left() < 8:
            break
        step = torch_step(reporter.task.model, f"cuda:{device.index}", mode, _BATCH)
        for _ in range(4):
            step()
        torch.cuda.synchronize()
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            step()
            torch.cuda.synchronize()
        _kernels_of(reporter, profile.key_averages(), f"PyTorch's kernels in a step, {mode.name}")


def _kernels_of(reporter: Reporter, events: Any, title: str) -> None:
    def time(event: Any) -> float:
        microseconds = getattr(event, "self_device_time_total", None)
        return float(event.self_cuda_time_total if microseconds is None else microseconds)

    kernels = sorted((event for event in events if time(event) > 0), key=time, reverse=True)
    total = sum(map(time, kernels))
    for event in kernels[:_TORCH_KERNELS]:
        reporter.row(
            title,
            {"kernel": event.key[:120], "calls": event.count, "us": time(event),
             "share": f"{time(event) / total:.1%}"},
        )  # fmt: skip


# --- ncu ---


def _ncu(reporter: Reporter, path: str) -> None:
    program = [
        "-P",
        "-m",
        "gpucnn.commands.check.program",
        "step",
        reporter.task.device,
        reporter.task.model,
    ]
    tool = [path, "--profile-from-start", "off", "--target-processes", "all"]
    form = ["--csv", "--page", "raw", "--print-units", "base", "--metrics", ",".join(_METRICS)]
    done = output(
        [*tool, *form, sys.executable, *program, str(_BATCH)], reporter.seconds_left() - 2
    )
    if "ERR_NVGPUCTRPERM" in done.text:
        reporter.skip("ncu", "no permission to read the counters", _PERMISSION)
        return
    rows = read_ncu(done.text)
    for row in rows:
        reporter.row(f"ncu: a step of {reporter.task.model}, {_BATCH} images", row)
    if not rows:
        reason = "it reached its time limit" if done.status is None else f"status {done.status}"
        reporter.fail("ncu", f"no kernel was profiled, {reason}", done.text.strip()[-1500:])
    else:
        total = sum(row["us"] for row in rows)
        reporter.ok(
            "ncu", f"{len(rows)} kernels, {total:.0f} us in total, at the clocks that ncu fixes"
        )


def read_ncu(text: str) -> list[dict[str, Any]]:
    """Parse `ncu --csv --page raw`: a header, a row of units, then one row per kernel."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    rows = list(csv.reader(lines))
    if len(rows) < 3 or "Kernel Name" not in rows[0]:
        return []
    header, units = rows[0], rows[1]
    kernels = []
    for row in rows[2:]:
        cells = dict(zip(header, row, strict=False))
        kept: dict[str, Any] = {"kernel": cells["Kernel Name"].partition("(")[0][:80]}
        for i, name in enumerate(header):
            if name in _METRICS and i < len(row):
                kept[_METRICS[name]] = _number(row[i]) * _UNITS.get(units[i], 1.0)
        kernels.append(kept)
    return kernels


def _number(text: str) -> float:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return float("nan")
