"""Part 3: compile times with a cold and a warm cache; registers and memory of each kernel."""

import json
import sys
from typing import Any

from gpucnn import cuda
from gpucnn.commands.check.part import Reporter
from gpucnn.commands.check.tools import output
from gpucnn.commands.kernel_export import register_budget
from gpucnn.cuda.declarations import assemble
from gpucnn.cuda.launcher import checked_kernel
from gpucnn.integers import ceil_div
from gpucnn.temporary import temporary_folder

_TABLE = "Registers and memory, as the driver reports them"
_RESERVED = 0.35  # share of the time limit that the cold compilation must leave


def examine(reporter: Reporter) -> None:
    reporter.run("compile times", _compile_times, reporter)
    if reporter.simulated:
        reporter.skip("registers and local memory", "only the driver of a GPU reports them")
        return
    reporter.run("registers and local memory", _all_resources, reporter)


def _all_resources(reporter: Reporter) -> None:
    reported = 0
    for name in cuda.kernels():
        if reporter.seconds_left() < 2:
            reporter.note("registers", f"no time left for {name} and the kernels after it")
            break
        reported += _resources(reporter, name)
    if reported:
        reporter.ok("registers and local memory", f"of {reported} kernels")
        reporter.headline(f"registers of {reported} kernels")
    else:
        reporter.note("registers and local memory", "the driver reports none")


def _compile_times(reporter: Reporter) -> None:
    """Compile each file in a process with an empty cache, then in another that finds the cache."""
    files = sorted({kernel.file for kernel in cuda.kernels().values()}, key=_size)
    if reporter.task.quick:
        files = files[:1] if reporter.simulated else [files[0], files[len(files) // 2], files[-1]]
    with temporary_folder("gpucnn-check-") as folder:
        times = [_compile(reporter, files, str(folder), share) for share in (1 - _RESERVED, 0.5)]
    cold, warm = times
    for file in files:
        reporter.row(
            "Compile times in seconds",
            {"file": file, "cold": cold.get(file), "warm": warm.get(file)},
        )
    if len(cold) < len(files):
        reporter.note("compile times", f"{len(files) - len(cold)} files were not compiled in time")
    both = [file for file in files if file in cold and file in warm]
    total = [sum(time[file] for file in both) for time in times]
    reporter.headline(f"{len(both)} files in {total[0]:.1f} s cold, {total[1]:.2f} s warm")


def _size(file: str) -> int:
    return len(assemble(file))


def _compile(reporter: Reporter, files: list[str], folder: str, share: float) -> dict[str, float]:
    done = output(
        [
            sys.executable,
            "-P",
            "-m",
            "gpucnn.commands.check.program",
            "compile",
            reporter.task.device,
            *files,
        ],
        reporter.seconds_left() * share,
        CUPY_CACHE_DIR=folder,
        XDG_CACHE_HOME=folder,
        CUPY_CACHE_IN_MEMORY="0",
    )
    seconds = {}
    for line in done.text.splitlines():
        if line.startswith('{"file"'):
            entry = json.loads(line)
            seconds[entry["file"]] = entry["seconds"]
    if done.status:
        lines = done.text.strip().splitlines()
        file = files[min(len(seconds), len(files) - 1)]
        reason = next(
            (text for text in reversed(lines) if "Error" in text), f"status {done.status}"
        )
        reporter.fail(f"compiling {file}", reason, "\n".join(lines[-12:]))
    return seconds


def _resources(reporter: Reporter, name: str) -> bool:
    """Compare the driver's figures for a kernel with its launch bounds; False if it has none."""
    declared = cuda.kernel(name)
    device = reporter.device
    attributes = checked_kernel(name, device, ()).function.attributes
    registers, local = attributes["num_regs"], attributes["local_size_bytes"]
    budget = register_budget(declared)
    row: dict[str, Any] = {
        "kernel": name,
        "registers": registers,
        "at most": budget,
        "local bytes": local,
        "shared bytes": attributes["shared_size_bytes"],
    }
    row["code for"] = f"sm_{attributes['binary_version']}"
    if not registers:
        reporter.row(_TABLE, row)
        return False
    threads, stated = (
        int(text) if text and text.isdecimal() else 0 for text in (declared.bound, declared.blocks)
    )
    if threads:
        limits = device.xp.cuda.Device(device.index).attributes
        blocks = _blocks(limits, registers, attributes["shared_size_bytes"], threads)
        row |= {"blocks that fit": blocks, "stated": stated or None}
        if blocks < stated:
            reporter.note(
                name,
                f"{blocks} blocks fit on a multiprocessor, but its launch bounds state {stated}",
            )
    reporter.row(_TABLE, row)
    if budget and registers > budget:
        reporter.fail(name, f"{registers} registers, but its launch bounds allow {budget}")
    if local:
        reporter.fail(name, f"{local} bytes of local memory per thread: registers spill")
    return True


def _blocks(limits: dict[str, int], registers: int, shared: int, threads: int) -> int:
    """Resident blocks per multiprocessor.  Source: CUDA C++ Programming Guide, occupancy."""
    warps = ceil_div(threads, 32)
    registers_per_block = ceil_div(registers, 8) * 8 * 32 * warps  # allocated in steps of 8
    fits = [
        limits["MaxThreadsPerMultiProcessor"] // (warps * 32),
        limits["MaxRegistersPerMultiprocessor"] // registers_per_block,
        limits.get("MaxBlocksPerMultiprocessor", 32),
    ]
    if shared:
        reserved = limits.get("ReservedSharedMemoryPerBlock", 1024)
        fits.append(limits["MaxSharedMemoryPerMultiprocessor"] // (shared + reserved))
    return min(fits)
