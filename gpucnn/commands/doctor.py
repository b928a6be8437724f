"""`gpucnn doctor`: which devices work on this machine, and how to fix those that do not."""

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
from gpucnn.errors import DataError, DeviceError

_OLDEST_CUPY = 14
_OLDEST_CAPABILITY = 50  # compute capability times ten; the oldest that NVRTC 12 supports
_OTHER_DEVICES = "use --device cpu or cudasim"


def add_parser(commands: Commands) -> None:
    parser = commands.add_parser(
        "doctor",
        help="diagnose this machine: CuPy, driver, compilers, data",
        description="Inspect CuPy, the driver, NVRTC, the C++ compiler for cudasim and the data, "
        "and print a remedy for each problem.  The exit status is 1 if something is broken.",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Exit status: 0, or 1 if there is a fault."""
    findings = examine()
    print(*findings, sep="\n")
    return int(any(finding.state == "fault" for finding in findings))


@dataclass(frozen=True)
class Finding:
    """The result of one inspection.

    state is "ok", "missing" (an optional component) or "fault" (something is broken); remedy says
    how to fix the last two.
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
    """Inspect the package, CuPy, the driver, NVRTC, the C++ compiler and the data."""
    return [
        Finding("ok", "gpucnn", f"{gpucnn.__version__}, NumPy {np.__version__}"),
        Finding("ok", "cpu", f"{usable_cores()} usable cores"),
        _cupy(),
        *_cuda(),
        _nvrtc(),
        _compiler(),
        _data(),
    ]


# --- CuPy and the GPU ---


def cupy_distributions() -> list[str]:
    """Name and version of every installed distribution that provides `cupy`, sorted."""
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
    distributions = cupy_distributions()
    if not distributions:
        return Finding("missing", "CuPy", "not installed", CUPY_INSTALL)
    names = " ".join(distribution.split()[0] for distribution in distributions)
    reinstall = f"pip uninstall -y {names}, then {CUPY_INSTALL}"
    if len(distributions) > 1:
        found = (
            f"{len(distributions)} distributions that overwrite each other: "
            f"{', '.join(distributions)}"
        )
        return Finding("fault", "CuPy", found, reinstall)
    installed = distributions[0]
    if "rocm" in names or "amd" in names:
        return Finding("fault", "CuPy", f"{installed} is for AMD GPUs, not for CUDA", reinstall)
    if int(installed.split()[1].split(".")[0]) < _OLDEST_CUPY:
        return Finding("fault", "CuPy", f"{installed} is older than {_OLDEST_CUPY}", reinstall)
    return Finding("ok", "CuPy", installed)


def _cuda() -> list[Finding]:
    """The GPUs and their driver, and whether CuPy can compile for them."""
    try:
        device = Device.parse("cuda")
    except DeviceError as error:
        if not cupy_distributions():
            return [Finding("missing", "GPU", str(error).splitlines()[0], _OTHER_DEVICES)]
        return [Finding("fault", "GPU", str(error).splitlines()[0], _remedy_without_gpu())]
    runtime = device.xp.cuda.runtime
    properties = [runtime.getDeviceProperties(i) for i in range(runtime.getDeviceCount())]
    cards = [
        f"cuda:{index} {card['name'].decode()}, sm_{card['major']}{card['minor']}, "
        f"{card['totalGlobalMem'] / 2**30:.0f} GiB"
        for index, card in enumerate(properties)
    ]
    driver = f"driver for CUDA {_dotted(runtime.driverGetVersion())}"
    return [
        Finding("ok", "GPU", "; ".join([driver, *cards])),
        _cupy_compiler(device.xp, [10 * card["major"] + card["minor"] for card in properties]),
    ]


def _remedy_without_gpu() -> str:
    """What to do if CuPy is installed but finds no usable GPU."""
    try:
        import cupy

        runtime = cupy.cuda.runtime
        driver, needed = runtime.driverGetVersion(), runtime.runtimeGetVersion()
    except Exception:  # CuPy does not load, or raises its own classes
        return _OTHER_DEVICES
    if driver == 0:
        return f"install NVIDIA's driver, or {_OTHER_DEVICES}"
    if driver // 1000 < needed // 1000:
        older_cupy = "" if needed < 13000 or driver < 12000 else _reinstall("cuda12") + ", or "
        return (
            f"the driver is for CUDA {_dotted(driver)}, CuPy for CUDA {_dotted(needed)}: "
            f"{older_cupy}install a newer driver, or {_OTHER_DEVICES}"
        )
    return _OTHER_DEVICES


def _cupy_compiler(cupy: Any, capabilities: list[int]) -> Finding:
    """Whether CuPy finds NVRTC and the CUDA headers, and NVRTC supports every GPU."""
    what = "CuPy's compiler"
    reinstall = f"install CuPy with NVRTC and the headers: {CUPY_INSTALL}"
    try:
        version = ".".join(map(str, cupy.cuda.nvrtc.getVersion()))
        supported = sorted(cupy.cuda.nvrtc.getSupportedArchs())
    except Exception as error:  # CuPy's loader raises its own classes
        reason = " ".join(str(error).split())
        return Finding("fault", what, f"NVRTC cannot be loaded ({reason})", reinstall)
    if not _has_headers():
        return Finding(
            "fault", what, f"NVRTC {version}, but the CUDA headers were not found", reinstall
        )
    for index, capability in enumerate(capabilities):
        target = min(capability, supported[-1])  # as CuPy chooses
        if target in supported and target // 10 == capability // 10:
            continue
        found = f"NVRTC {version} does not compile for cuda:{index}, sm_{capability}"
        if capability > supported[0]:
            return Finding("fault", what, f"{found}, a newer GPU", _upgrade_cupy())
        remedy = _OTHER_DEVICES if capability < _OLDEST_CAPABILITY else _reinstall("cuda12")
        return Finding("fault", what, f"{found}; the oldest supported is sm_{supported[0]}", remedy)
    return Finding(
        "ok", what, f"NVRTC {version}, compiles for sm_{supported[0]} to sm_{supported[-1]}"
    )


def _has_headers() -> bool:
    """Whether CuPy finds the CUDA headers; True if this CuPy does not use cuda.pathfinder."""
    try:
        pathfinder = importlib.import_module("cuda.pathfinder")
    except ImportError:
        return True
    return pathfinder.find_nvidia_header_directory("cudart") is not None


def _reinstall(extra: str) -> str:
    names = " ".join(name.split()[0] for name in cupy_distributions())
    return f'pip uninstall -y {names}, then pip install "gpucnn[{extra}]"'


def _upgrade_cupy() -> str:
    name = next(iter(cupy_distributions()), "cupy").split()[0]
    return f'upgrade CuPy: pip install --upgrade "{name}[ctk]"'


def _dotted(version: int) -> str:
    """Format CUDA's version number: 13010 becomes "13.1"."""
    return f"{version // 1000}.{version % 1000 // 10}"


# --- the rest ---


def _nvrtc() -> Finding:
    return _unless_missing(
        "NVRTC", lambda: f"{nvrtc.version()}, compiles for sm_{nvrtc.architectures()[0]} and newer"
    )


def _compiler() -> Finding:
    from gpucnn.cudasim import compiler  # here: other commands do not import the simulator

    return _unless_missing("compiler for cudasim", lambda: ", ".join(compiler.compiler()))


def _unless_missing(what: str, inspect: Callable[[], str]) -> Finding:
    """Finding "ok" with the result of `inspect`, or "missing" with the text of its DeviceError."""
    try:
        return Finding("ok", what, inspect())
    except DeviceError as error:
        found, _, remedy = str(error).partition("\n")
        found, _, short_remedy = found.partition("; ")
        return Finding("missing", what, found, remedy.strip() or short_remedy)


def _data() -> Finding:
    try:
        refuse_missing_folder(None)
        pair, reason = data.find_cifar10(data.default_root(), download=False)
    except DataError as error:
        found, _, remedy = str(error).partition("\n")
        missing = isinstance(error, DataNotFound)
        return Finding("missing" if missing else "fault", "CIFAR-10", found, remedy.strip())
    if pair is None:
        return Finding(
            "missing",
            "CIFAR-10",
            reason.splitlines()[0],
            "training downloads it there; or put cifar-10-python.tar.gz into that folder",
        )
    source = "GPUCNN_DATA" if os.environ.get("GPUCNN_DATA") else "the cache folder"
    return Finding("ok", "CIFAR-10", f"{reason} ({source})")
