"""What this machine can run gpucnn on, and what to do about what it cannot."""

import argparse
import importlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal

import numpy as np

import gpucnn
from gpucnn import data
from gpucnn.commands.arguments import Commands
from gpucnn.cpu import usable_cores
from gpucnn.cuda import nvrtc
from gpucnn.data.dataset import DataNotFound
from gpucnn.data.download import refuse_missing_folder
from gpucnn.device import CUPY_INSTALL, Device
from gpucnn.errors import DeviceError

_OLDEST_CUPY = 14
_OLDEST_GPU = 50  # that NVRTC 12 compiles for, as a compute capability times ten
_MEANWHILE = "use --device cpu or cudasim meanwhile"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    state is "ok", "missing" (something optional) or "fault" (something is broken); remedy is what
    to do about the last two.
    """

    state: Literal["ok", "missing", "fault"]
    what: str
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        mark = {"ok": "ok     ", "missing": "missing", "fault": "FAULT  "}[self.state]
        remedy = f"\n         -> {self.remedy}" if self.remedy else ""
        return f"{mark}  {self.what}: {self.found}{remedy}"


def examine() -> list[Finding]:
    """Every finding: the package, CuPy, the driver, NVRTC, a compiler, the data."""
    return [
        Finding("ok", "gpucnn", f"{gpucnn.__version__}, NumPy {np.__version__}"),
        Finding("ok", "cpu", f"{usable_cores()} cores may be used"),
        _cupy(),
        *_cuda(),
        _nvrtc(),
        _compiler(),
        _data(),
    ]


# --- CuPy and the GPU ---


def cupy_distributions() -> list[str]:
    """Names and versions of every installed distribution that provides `cupy`."""
    return sorted(
        {
            f"{name} {distribution.version}"
            for distribution in metadata.distributions()
            if re.fullmatch(
                r"(amd-)?cupy(-cuda\d+x?|-rocm-.*)?", name := distribution.metadata["Name"] or ""
            )
        }
    )


def _cupy() -> Finding:
    found = cupy_distributions()
    if not found:
        return Finding("missing", "CuPy", "not installed", CUPY_INSTALL)
    names = " ".join(name.split()[0] for name in found)
    again = f"pip uninstall -y {names}, then {CUPY_INSTALL}"
    if len(found) > 1:
        what = f"{len(found)} distributions that overwrite each other: {', '.join(found)}"
        return Finding("fault", "CuPy", what, again)
    if "rocm" in names or "amd" in names:
        return Finding("fault", "CuPy", f"{found[0]} is for AMD's GPUs, not for CUDA", again)
    if int(found[0].split()[1].split(".")[0]) < _OLDEST_CUPY:
        return Finding("fault", "CuPy", f"{found[0]} is older than {_OLDEST_CUPY}", again)
    return Finding("ok", "CuPy", found[0])


def _cuda() -> list[Finding]:
    """The GPUs with their driver, and whether CuPy can compile for them."""
    try:
        device = Device.parse("cuda")
    except DeviceError as error:
        if not cupy_distributions():
            return [Finding("missing", "GPU", str(error).splitlines()[0], _MEANWHILE)]
        return [Finding("fault", "GPU", str(error).splitlines()[0], _without_a_gpu())]
    runtime = device.xp.cuda.runtime
    properties = [runtime.getDeviceProperties(i) for i in range(runtime.getDeviceCount())]
    names = [
        f"cuda:{index} {found['name'].decode()}, sm_{found['major']}{found['minor']}, "
        f"{found['totalGlobalMem'] / 2**30:.0f} GiB"
        for index, found in enumerate(properties)
    ]
    driver = f"driver for CUDA {_dotted(runtime.driverGetVersion())}"
    return [
        Finding("ok", "GPU", "; ".join([driver, *names])),
        _cupys_compiler(device.xp, [10 * found["major"] + found["minor"] for found in properties]),
    ]


def _without_a_gpu() -> str:
    """What to do where CuPy is installed and finds no usable GPU."""
    try:
        import cupy

        runtime = cupy.cuda.runtime
        driver, needed = runtime.driverGetVersion(), runtime.runtimeGetVersion()
    except Exception:  # CuPy does not load, or has classes of its own for what it raises
        return _MEANWHILE
    if driver == 0:
        return f"install NVIDIA's driver; {_MEANWHILE}"
    if driver // 1000 < needed // 1000:
        other = "" if needed < 13000 or driver < 12000 else _reinstall("cuda12") + ", or "
        return (
            f"the driver is for CUDA {_dotted(driver)}, CuPy for CUDA {_dotted(needed)}: "
            f"{other}install a newer driver; {_MEANWHILE}"
        )
    return _MEANWHILE


def _cupys_compiler(cupy: Any, capabilities: list[int]) -> Finding:
    """Whether CuPy finds NVRTC and CUDA's headers, and NVRTC compiles for each of the GPUs."""
    what = "CuPy's compiler"
    both = f"install CuPy with NVRTC and the headers: {CUPY_INSTALL}"
    try:
        version = ".".join(map(str, cupy.cuda.nvrtc.getVersion()))
        known = sorted(cupy.cuda.nvrtc.getSupportedArchs())
    except Exception as error:  # CuPy's loader has classes of its own
        reason = " ".join(str(error).split())
        return Finding("fault", what, f"NVRTC cannot be loaded ({reason})", both)
    if not _has_headers():
        return Finding("fault", what, f"NVRTC {version}, but CUDA's headers are not found", both)
    for index, capability in enumerate(capabilities):
        target = min(capability, known[-1])  # CuPy's choice
        if target in known and target // 10 == capability // 10:
            continue
        found = f"NVRTC {version} does not compile for cuda:{index}, sm_{capability}"
        if capability > known[0]:
            return Finding("fault", what, f"{found}, which is newer than that", _newest())
        older = _MEANWHILE if capability < _OLDEST_GPU else _reinstall("cuda12")
        return Finding("fault", what, f"{found}: the oldest that it knows is sm_{known[0]}", older)
    return Finding("ok", what, f"NVRTC {version}, compiles for sm_{known[0]} to sm_{known[-1]}")


def _has_headers() -> bool:
    """Whether CUDA's headers are where CuPy looks; True for a CuPy that looks elsewhere."""
    try:
        pathfinder = importlib.import_module("cuda.pathfinder")
    except ImportError:
        return True
    return pathfinder.find_nvidia_header_directory("cudart") is not None


def _reinstall(extra: str) -> str:
    names = " ".join(name.split()[0] for name in cupy_distributions())
    return f'pip uninstall -y {names}, then pip install "gpucnn[{extra}]"'


def _newest() -> str:
    name = next(iter(cupy_distributions()), "cupy").split()[0]
    return f'the newest CuPy: pip install --upgrade "{name}[ctk]"'


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


# --- the rest ---


def _nvrtc() -> Finding:
    return _of(
        "NVRTC", lambda: f"{nvrtc.version()}, compiles for sm_{nvrtc.architectures()[0]} and newer"
    )


def _compiler() -> Finding:
    from gpucnn.cudasim import compiler  # the simulator only where somebody asks for it

    return _of("compiler for cudasim", lambda: ", ".join(compiler.compiler()))


def _of(what: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding("ok", what, look())
    except DeviceError as error:
        found, _, remedy = str(error).partition("\n")
        found, _, after = found.partition("; ")
        return Finding("missing", what, found, remedy.strip() or after)


def _data() -> Finding:
    try:
        refuse_missing_folder(None)
    except DataNotFound as error:
        found, _, remedy = str(error).partition("\n")
        return Finding("missing", "CIFAR-10", found, remedy.strip())
    root = data.default_root()
    pair, reason = data.find_cifar10(root, download=False)
    if pair is None:
        return Finding(
            "missing",
            "CIFAR-10",
            reason.splitlines()[0],
            "training downloads it there, or put cifar-10-python.tar.gz into that folder",
        )
    where = "GPUCNN_DATA" if os.environ.get("GPUCNN_DATA") else "the cache folder"
    return Finding("ok", "CIFAR-10", f"{reason} ({where})")


def add_parser(commands: Commands) -> None:
    parser = commands.add_parser(
        "doctor",
        help="what this machine can run gpucnn on",
        description="Look at CuPy, the driver, NVRTC, the compiler for cudasim and the data; each "
        "finding with its remedy.  Exit status 1 if something is broken.",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    findings = examine()
    print(*findings, sep="\n")
    return int(any(finding.state == "fault" for finding in findings))
