"""Part 1: versions, the GPU, and its measured limits: a copy and matrix products."""

import importlib.util
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from typing import Any

import numpy as np

import gpucnn
from gpucnn.commands import doctor
from gpucnn.commands.check.measure import milliseconds
from gpucnn.commands.check.part import Reporter
from gpucnn.commands.check.runner import CHECKOUT, ROOT
from gpucnn.errors import DeviceError

_PACKAGES = "numpy cupy-cuda12x cupy-cuda13x torch triton pytest pytest-xdist".split()
_LARGEST_COPY = 2**28  # bytes
_SIDES = (256, 512, 1024, 2048, 4096, 8192)  # of the matrices, until one takes long enough
_ENOUGH = 4.0  # milliseconds for one product; an eighth of it for a copy
# cuBLAS's cublasComputeType_t and cudaDataType_t
_COMPUTE_32F, _COMPUTE_32F_FAST_TF32 = 68, 77
_R_32F, _R_16BF = 0, 14
_SMI = "name,driver_version,vbios_version,power.limit,clocks.max.sm,clocks.max.mem,ecc.mode.current"
_SMI += ",mig.mode.current,temperature.gpu,persistence_mode"


def examine(reporter: Reporter) -> None:
    reporter.run("versions", _versions, reporter)
    reporter.run("doctor", _doctor, reporter)
    try:
        device = reporter.device
        device.xp.cuda.Device(device.index).synchronize()
    except Exception as error:
        found, _, remedy = str(error).partition("\n  ")
        reporter.fail(f"device {reporter.task.device}", found, remedy)
        reporter.unusable(f"device {reporter.task.device} cannot be used: {found}")
        return
    reporter.run("card", _card, reporter)
    if reporter.simulated:
        reporter.skip("limits", "the simulator's speed says nothing about a GPU")
        return
    reporter.run("copy on the device", _copy, reporter)
    for name, kind, compute in (
        ("fp32", _R_32F, _COMPUTE_32F),
        ("tf32", _R_32F, _COMPUTE_32F_FAST_TF32),
        ("bf16", _R_16BF, _COMPUTE_32F),
    ):
        reporter.run(f"product in {name}", _product, reporter, name, kind, compute)


def _versions(reporter: Reporter) -> None:
    reporter.ok("Python", f"{platform.python_version()}, {platform.platform()}")
    packages = []
    for name in _PACKAGES:
        try:
            packages.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            if name in ("torch", "pytest-xdist"):
                packages.append(f"no {name}")
    reporter.ok("packages", ", ".join(packages))
    commit = ""
    if CHECKOUT and shutil.which("git"):
        answer = subprocess.run(
            ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True, text=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        commit = f", commit {answer.stdout.strip()}" if answer.returncode == 0 else ""
    reporter.ok("gpucnn", f"{gpucnn.__version__}{commit}, {sys.executable}")


def _doctor(reporter: Reporter) -> None:
    for finding in doctor.examine():
        if finding.state == "ok":
            reporter.ok(finding.what, finding.found)
        elif finding.state == "missing" or reporter.simulated:
            reporter.note(finding.what, finding.found, finding.remedy)
        else:
            reporter.fail(finding.what, finding.found, finding.remedy)


def _card(reporter: Reporter) -> None:
    device = reporter.device
    runtime = device.xp.cuda.runtime
    properties = runtime.getDeviceProperties(device.index)
    name = properties["name"].decode()
    capability = f"sm_{properties['major']}{properties['minor']}"
    reporter.fact("card", f"{name}, {capability}")
    count = properties["multiProcessorCount"]
    if reporter.simulated:
        reporter.ok("card", f"{name}, {capability}, {count} simulated multiprocessors")
        return
    free, total = runtime.memGetInfo()
    reporter.ok(
        "card",
        f"{name}, {capability}, {count} multiprocessors, {total / 2**30:.1f} GiB, "
        f"{free / 2**30:.1f} free",
    )
    reporter.ok(
        "CUDA",
        f"driver {runtime.driverGetVersion()}, runtime {runtime.runtimeGetVersion()}, "
        f"cuBLAS {_cublas_version(device)}",
    )
    attributes = device.xp.cuda.Device(device.index).attributes
    keys = [
        *("ClockRate", "MemoryClockRate", "GlobalMemoryBusWidth", "L2CacheSize"),
        *("MaxSharedMemoryPerMultiprocessor", "MaxSharedMemoryPerBlockOptin"),
    ]
    reporter.ok("device attributes", ", ".join(f"{key} {attributes.get(key)}" for key in keys))
    _nvidia_smi(reporter)


def _cublas_version(device: Any) -> str:
    from cupy_backends.cuda.libs import cublas

    return str(cublas.getVersion(device.xp.cuda.device.get_cublas_handle()))


def _nvidia_smi(reporter: Reporter) -> None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        reporter.note("nvidia-smi", "not found", "it comes with the driver")
        return
    command = [tool, f"--query-gpu={_SMI}", "--format=csv"]
    answer = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=10
    )
    names, *cards = (line.split(", ") for line in answer.stdout.strip().splitlines() or [""])
    for card in cards:
        reporter.ok("nvidia-smi", ", ".join(f"{n} {v}" for n, v in zip(names, card, strict=False)))
    if not cards:
        reporter.note("nvidia-smi", (answer.stdout + answer.stderr).strip())


# --- measured limits ---


def _copy(reporter: Reporter) -> None:
    """Measure a device-to-device copy; bytes per second count both the read and the write."""
    device = reporter.device
    with device.xp.cuda.Device(device.index):
        free = device.xp.cuda.runtime.memGetInfo()[0]
        size = 2**22
        while True:
            host = np.random.default_rng(0).integers(0, 256, min(size, 2**22), np.uint8)
            source = device.xp.asarray(np.tile(host, size // host.size))
            target = device.xp.empty_like(source)
            time = milliseconds(lambda: device.xp.copyto(target, source), device, 5)  # noqa: B023
            if time > _ENOUGH / 8 or size >= min(_LARGEST_COPY, free // 8):
                break
            size *= 2
    speed = 2 * size / time * 1e3
    reporter.row(
        "Measured limits", {"of": f"copy of {size >> 20} MiB", "ms": time, "GB/s": speed / 1e9}
    )
    reporter.fact("copy", speed)
    reporter.headline(f"copy {speed / 1e9:,.0f} GB/s")


def _product(reporter: Reporter, name: str, kind: int, compute: int) -> None:
    """Measure cuBLAS on square matrices, the largest that the time allows."""
    if importlib.util.find_spec("cupy_backends") is None:
        raise DeviceError("CuPy has no cuBLAS here")
    capability = int(reporter.device.xp.cuda.Device(reporter.device.index).compute_capability)
    if name != "fp32" and capability < 80:
        reporter.skip(f"product in {name}", f"sm_{capability} has no tensor cores for it")
        return
    device, left = reporter.device, reporter.seconds_left()
    with device.xp.cuda.Device(device.index):
        for side in _SIDES:
            time, error = _gemm(device, side, kind, compute)
            if time > _ENOUGH or time * 8 * 10 / 1e3 > left / 4:
                break
    speed = 2 * side**3 / time * 1e3
    reporter.row(
        "Measured limits",
        {"of": f"product in {name}, {side} x {side}", "ms": time, "TFLOP/s": speed / 1e12,
         "error": error},
    )  # fmt: skip
    reporter.fact(name, speed)
    reporter.headline(f"{name} {speed / 1e12:,.3g} TFLOP/s")


def _gemm(device: Any, side: int, kind: int, compute: int) -> tuple[float, float]:
    """Milliseconds, and the error of the first row relative to its largest value."""
    from cupy_backends.cuda.libs import cublas

    xp = device.xp
    rng = np.random.default_rng(0)
    # Drawing every element would take seconds.  The count is prime: no two rows are equal.
    hosts = [np.resize(rng.standard_normal(1_000_003, np.float32), (side, side)) for _ in range(2)]
    if kind == _R_16BF:  # the upper halves of float32: truncated, not rounded
        halves = [(a.view(np.uint32) >> 16).astype(np.uint16) for a in hosts]
        hosts = [(a.astype(np.uint32) << 16).view(np.float32) for a in halves]
        a, b = (xp.asarray(half) for half in halves)
    else:
        a, b = (xp.asarray(host) for host in hosts)
    c = xp.empty((side, side), np.float32)
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    handle = xp.cuda.device.get_cublas_handle()

    def product() -> None:  # column-major: c.T = a.T @ b.T
        cublas.gemmEx(
            handle, 0, 0, side, side, side, one.ctypes.data,
            a.data.ptr, kind, side, b.data.ptr, kind, side,
            zero.ctypes.data, c.data.ptr, _R_32F, side, compute, -1,
        )  # fmt: skip

    time = milliseconds(product, device, 5)
    expected = hosts[1][0].astype(np.float64) @ hosts[0].astype(np.float64)
    error = np.abs(c[0].get() - expected).max() / np.abs(expected).max()
    return time, float(error)
