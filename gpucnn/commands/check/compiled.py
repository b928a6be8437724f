"""Part 3: what compiling costs, cold and warm; registers and memory of each kernel."""

import json
import sys
import tempfile
from typing import Any

from gpucnn import cuda
from gpucnn.commands.check.part import Out
from gpucnn.commands.check.tools import output
from gpucnn.commands.kernels import _register_budget
from gpucnn.cuda import launcher
from gpucnn.cuda.declarations import Kernel, assemble
from gpucnn.integers import ceil_div

_TABLE = "Registers and memory, as the driver reports them"
_KEPT = 0.35  # share of the time that the cold compilation leaves to the rest


def examine(out: Out) -> None:
    out.run("compile times", _compile_times, out)
    if out.simulated:
        out.skip("registers and local memory", "a GPU's driver reports them, the simulator cannot")
        return
    out.run("registers and local memory", _all_resources, out)


def _all_resources(out: Out) -> None:
    reported = 0
    for name in cuda.kernels():
        if out.left() < 2:
            out.note("registers", f"no time left for {name} and those after it")
            break
        reported += _resources(out, name)
    if reported:
        out.ok("registers and local memory", f"of {reported} kernels")
        out.headline(f"registers of {reported} kernels")
    else:
        out.note("registers and local memory", "the driver reports none")


def _compile_times(out: Out) -> None:
    """Each file by a new process with an empty cache, then by another with what that one kept."""
    files = sorted({kernel.file for kernel in cuda.kernels().values()}, key=_size)
    if out.task.quick:
        files = files[:1] if out.simulated else [files[0], files[len(files) // 2], files[-1]]
    with tempfile.TemporaryDirectory() as folder:
        times = [_compile(out, files, folder, share) for share in (1 - _KEPT, 0.5)]
    cold, warm = times
    for file in files:
        out.row(
            "Compile times in seconds",
            {"file": file, "cold": cold.get(file), "warm": warm.get(file)},
        )
    if len(cold) < len(files):
        out.note("compile times", f"{len(files) - len(cold)} files were not reached in time")
    both = [file for file in files if file in cold and file in warm]
    total = [sum(time[file] for file in both) for time in times]
    out.headline(f"{len(both)} files in {total[0]:.1f} s cold, {total[1]:.2f} s warm")


def _size(file: str) -> int:
    return len(assemble(file))


def _compile(out: Out, files: list[str], folder: str, share: float) -> dict[str, float]:
    done = output(
        [
            sys.executable,
            "-P",
            "-m",
            "gpucnn.commands.check.program",
            "compile",
            out.task.device,
            *files,
        ],
        out.left() * share,
        CUPY_CACHE_DIR=folder,
        XDG_CACHE_HOME=folder,
        CUPY_CACHE_IN_MEMORY="0",
    )
    found = {}
    for line in done.text.splitlines():
        if line.startswith('{"file"'):
            entry = json.loads(line)
            found[entry["file"]] = entry["seconds"]
    if done.status:
        lines = done.text.strip().splitlines()
        at = files[min(len(found), len(files) - 1)]
        reason = next(
            (text for text in reversed(lines) if "Error" in text), f"status {done.status}"
        )
        out.fail(f"compiling {at}", reason, "\n".join(lines[-12:]))
    return found


def _resources(out: Out, name: str) -> bool:
    """What the driver says of a kernel beside what its launch bounds leave; False if nothing."""
    declared = cuda.kernel(name)
    device = out.device
    attributes = launcher.checked_kernel(name, device, ()).function.attributes
    registers, local = attributes["num_regs"], attributes["local_size_bytes"]
    budget = _register_budget(declared)
    row: dict[str, Any] = {
        "kernel": name,
        "registers": registers,
        "at most": budget,
        "local bytes": local,
        "shared bytes": attributes["shared_size_bytes"],
    }
    row["code for"] = f"sm_{attributes['binary_version']}"
    if not registers:
        out.row(_TABLE, row)
        return False
    threads, stated = (int(text) if str(text).isdecimal() else 0 for text in _stated(declared))
    if threads:
        limits = device.xp.cuda.Device(device.index).attributes
        blocks = _blocks(limits, registers, attributes["shared_size_bytes"], threads)
        row |= {"blocks that fit": blocks, "stated": stated or None}
        if blocks < stated:
            out.note(name, f"{blocks} blocks fit on a multiprocessor, {stated} are stated")
    out.row(_TABLE, row)
    if budget and registers > budget:
        out.fail(name, f"{registers} registers, and its launch bounds leave {budget}")
    if local:
        out.fail(name, f"{local} bytes of local memory a thread: registers spill, none should")
    return True


def _stated(declared: Kernel) -> tuple[str, str]:
    """Threads of a block, and blocks on a multiprocessor, in the launch bounds."""
    return declared.bound or "", declared.blocks or ""


def _blocks(limits: dict[str, int], registers: int, shared: int, threads: int) -> int:
    """Blocks that a multiprocessor holds at once: CUDA C++ Programming Guide, occupancy."""
    warps = ceil_div(threads, 32)
    of_a_block = ceil_div(registers, 8) * 8 * 32 * warps  # handed out to a warp 8 by 8
    fits = [
        limits["MaxThreadsPerMultiProcessor"] // (warps * 32),
        limits["MaxRegistersPerMultiprocessor"] // of_a_block,
        limits.get("MaxBlocksPerMultiprocessor", 32),
    ]
    if shared:
        reserved = limits.get("ReservedSharedMemoryPerBlock", 1024)
        fits.append(limits["MaxSharedMemoryPerMultiprocessor"] // (shared + reserved))
    return min(fits)
