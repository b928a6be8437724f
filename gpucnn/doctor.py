"""What this machine can run gpucnn on, and what to do about what it cannot."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal

import numpy as np

import gpucnn
from gpucnn import data, nvrtc
from gpucnn.device import CUPY_INSTALL, Device
from gpucnn.errors import DeviceError
from gpucnn.threads import usable_cores


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
    findings = [
        Finding("ok", "gpucnn", f"{gpucnn.__version__}, NumPy {np.__version__}"),
        Finding("ok", "cpu", f"{usable_cores()} cores may be used"),
        _cupy(),
    ]
    return [*findings, _cuda(), _nvrtc(), _compiler(), _data()]


def cupy_distributions() -> list[str]:
    """Names and versions of every installed distribution that provides `cupy`."""
    return sorted(
        {
            f"{name} {distribution.version}"
            for distribution in metadata.distributions()
            if re.fullmatch(
                r"cupy(-cuda\d+x|-rocm-.*)?", name := distribution.metadata["Name"] or ""
            )
        }
    )


def _cupy() -> Finding:
    found = cupy_distributions()
    if not found:
        return Finding("missing", "CuPy", "not installed", CUPY_INSTALL)
    if len(found) > 1:
        names = " ".join(name.split()[0] for name in found)
        return Finding(
            "fault",
            "CuPy",
            f"{len(found)} distributions that overwrite each other: {', '.join(found)}",
            f"pip uninstall -y {names}, then {CUPY_INSTALL}",
        )
    return Finding("ok", "CuPy", found[0])


def _cuda() -> Finding:
    try:
        device = Device.parse("cuda")
    except DeviceError as error:
        text = str(error)
        state: Any = "fault" if cupy_distributions() else "missing"
        return Finding(state, "GPU", text.splitlines()[0], "use --device cpu or cudasim meanwhile")
    runtime = device.xp.cuda.runtime
    names = []
    for index in range(runtime.getDeviceCount()):
        properties = runtime.getDeviceProperties(index)
        names.append(
            f"cuda:{index} {properties['name'].decode()}, sm_{properties['major']}"
            f"{properties['minor']}, {properties['totalGlobalMem'] / 2**30:.0f} GiB"
        )
    driver = runtime.driverGetVersion()
    return Finding(
        "ok", "GPU", f"driver for CUDA {driver // 1000}.{driver % 1000 // 10}; {'; '.join(names)}"
    )


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
