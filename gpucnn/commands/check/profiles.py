"""Part 8: each kernel of a warmed step: by repeats, by ncu; PyTorch's kernels."""

import csv
import importlib.util
import sys
import time
from typing import Any

from gpucnn import cuda, models
from gpucnn.commands.check.measure import Spin, training_operations
from gpucnn.commands.check.part import Out
from gpucnn.commands.check.peer import Side, torch_step
from gpucnn.commands.check.program import training_step
from gpucnn.commands.check.tools import find_or_skip, output
from gpucnn.cuda import launcher
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
    "the driver lets only root read its counters: run as root, or load the module with "
    "NVreg_RestrictProfilingToAdminUsers=0"
)
_KERNELS = 15  # of PyTorch's


def examine(out: Out) -> None:
    device = out.device
    with device.xp.cuda.Device(device.index):
        out.run("kernels by repeats", _by_repeats, out, device)
    if out.simulated:
        out.skip("ncu", "for GPUs")
        out.skip("PyTorch's kernels", "for GPUs")
        return
    out.run("PyTorch's kernels", _torch_kernels, out, device)
    path = find_or_skip(out, "ncu")
    if path is not None:
        out.run("ncu", _ncu, out, path)


def _by_repeats(out: Out, device: Device) -> None:
    """Every launch of a step, repeated behind a spin with the arguments that it had."""
    batch = _batch(out, device)
    if batch == 0:
        out.skip("kernels by repeats", "a step on one image takes too long here")
        return
    step = training_step(device, out.task.model, batch)
    step()
    with cuda.record_launches() as launches:
        step()
    device.xp.cuda.Device(device.index).synchronize()
    spin, covered = Spin(device), True
    repeats = 1 if out.simulated else _REPEATS
    times: dict[str, float] = {}
    for number, launch in enumerate(launches):
        if out.left() < (2 if out.simulated else 8):
            out.note("kernels by repeats", f"no time for {len(launches) - number} launches")
            break
        ready = launcher.checked_kernel(launch.kernel.name, device, launch.defines)

        def run(launch: Any = launch, ready: Any = ready) -> None:
            ready.run(launch.grid, launch.block, launch.shared, launch.values)

        once = spin.queue(run).device_ms
        count = max(min(repeats, int(50 / max(once, 1e-3))), 1)
        ms, well = spin.milliseconds(run, 1, count, rounds=3 if count > 1 else 1)
        covered &= well
        name = launch.kernel.name
        times[name] = times.get(name, 0.0) + ms
        out.row(
            f"Each launch of a step of {out.task.model}, {batch} images, by repeats",
            {
                "number": number,
                "kernel": name,
                "blocks": "x".join(map(str, launch.grid)),
                "threads": launch.block[0],
                "us": ms * 1e3,
            },
        )
    total = sum(times.values())
    first = sorted(times.items(), key=lambda item: -item[1])[:3]
    out.ok(
        "kernels by repeats",
        f"{total:.3f} ms together, without cuBLAS's; most "
        + ", ".join(f"{name} {ms / total:.0%}" for name, ms in first),
    )
    if out.simulated:
        return
    out.headline(f"{first[0][0]} takes {first[0][1] / total:.0%} of the kernels' time")
    if not covered:
        out.note("kernels by repeats", "the host was not always ahead: some times hold gaps")


def _batch(out: Out, device: Device) -> int:
    """_BATCH images, fewer where these would take too long, 0 where one does."""
    if out.simulated:
        return 2
    name = out.task.model
    if out.seconds(training_operations(models.build(name), name)) > out.left() / 12:
        return 0
    step = training_step(device, out.task.model, 1)
    step().item()
    start = time.perf_counter()
    step().item()
    seconds = time.perf_counter() - start  # of one image; a step is done about six times
    fits = int(out.left() / 6 / seconds)
    return min(_BATCH, fits)


# --- PyTorch ---


def _torch_kernels(out: Out, device: Device) -> None:
    """Which kernels win in PyTorch's own step: cuDNN's choice is the mark to reach."""
    if importlib.util.find_spec("torch") is None:
        out.skip("PyTorch's kernels", "torch is not installed", "pip install torch")
        return
    import torch

    if not torch.cuda.is_available():
        out.skip("PyTorch's kernels", "torch sees no CUDA device")
        return
    torch.backends.cudnn.benchmark = True
    for side in (Side("fp32"), Side("TF32", tf32=True)):
        if out.left() < 8:
            break
        step = torch_step(out.task.model, f"cuda:{device.index}", side, _BATCH)
        for _ in range(4):
            step()
        torch.cuda.synchronize()
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            step()
            torch.cuda.synchronize()
        _kernels_of(out, profile.key_averages(), f"PyTorch's kernels in a step, {side.name}")


def _kernels_of(out: Out, events: Any, title: str) -> None:
    def time(event: Any) -> float:
        found = getattr(event, "self_device_time_total", None)
        return float(event.self_cuda_time_total if found is None else found)

    found = sorted((event for event in events if time(event) > 0), key=time, reverse=True)
    total = sum(map(time, found))
    for event in found[:_KERNELS]:
        out.row(
            title,
            {"kernel": event.key[:120], "calls": event.count, "us": time(event),
             "of all": f"{time(event) / total:.1%}"},
        )  # fmt: skip


# --- ncu ---


def _ncu(out: Out, path: str) -> None:
    program = ["-P", "-m", "gpucnn.commands.check.program", "step", out.task.device, out.task.model]
    tool = [path, "--profile-from-start", "off", "--target-processes", "all"]
    form = ["--csv", "--page", "raw", "--print-units", "base", "--metrics", ",".join(_METRICS)]
    done = output([*tool, *form, sys.executable, *program, str(_BATCH)], out.left() - 2)
    if "ERR_NVGPUCTRPERM" in done.text:
        out.skip("ncu", "no permission to read the counters", _PERMISSION)
        return
    rows = read_ncu(done.text)
    for row in rows:
        out.row(f"ncu: a step of {out.task.model}, {_BATCH} images", row)
    if not rows:
        reason = "was ended at its limit" if done.status is None else f"status {done.status}"
        out.fail("ncu", f"no kernel was profiled, {reason}", done.text.strip()[-1500:])
    else:
        total = sum(row["us"] for row in rows)
        out.ok("ncu", f"{len(rows)} kernels, {total:.0f} us together, at ncu's own clocks")


def read_ncu(text: str) -> list[dict[str, Any]]:
    """The kernels in what `ncu --csv --page raw` prints: a header, a row of units, then theirs."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    rows = list(csv.reader(lines))
    if len(rows) < 3 or "Kernel Name" not in rows[0]:
        return []
    header, units = rows[0], rows[1]
    found = []
    for row in rows[2:]:
        cells = dict(zip(header, row, strict=False))
        kept: dict[str, Any] = {"kernel": cells["Kernel Name"].partition("(")[0][:80]}
        for i, name in enumerate(header):
            if name in _METRICS and i < len(row):
                kept[_METRICS[name]] = _number(row[i]) * _UNITS.get(units[i], 1.0)
        found.append(kept)
    return found


def _number(text: str) -> float:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return float("nan")
