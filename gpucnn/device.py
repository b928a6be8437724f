"""Where arrays live: "cpu" (NumPy), "cuda", "cuda:1", ... (CuPy) or "cudasim".

NumPy and CuPy share most of their API, so most code asks `array_module(x)` for the module that
x belongs to.  An op with a kernel of its own pairs its two halves by name instead:

    _forward = by_device(cpu=_forward_numpy, cuda=_forward_cuda)

CuPy is imported only when a CUDA device is asked for.  "cudasim" is a CUDA device made of CPU
cores: gpucnn.cudasim stands in for CuPy there, and runs the same kernels.

`with gpucnn.device("cuda:1"):` makes a device the default of a block.  In the package that name is
the function below; `from gpucnn.device import Device` still finds this module.
"""

import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar, cast

import numpy as np

from gpucnn.errors import DeviceError, OutOfMemory

Array: TypeAlias = Any  # numpy.ndarray or cupy.ndarray: the two share no base class
_Call = TypeVar("_Call", bound=Callable[..., Any])

_AUTO = "GPUCNN_DEVICE"  # the variable that says what "auto" takes
CUPY_INSTALL = 'pip install "gpucnn[cuda12]" (or "gpucnn[cuda13]" for a CUDA 13 driver)'


@dataclass(frozen=True)
class Device:
    """One place for arrays.  `Device.parse("cuda:1")` checks that it can be used."""

    kind: str  # "cpu", "cuda" or "cudasim"
    index: int = 0

    def __str__(self) -> str:
        return f"{self.kind}:{self.index}" if self.kind == "cuda" else self.kind

    def __repr__(self) -> str:
        return f"Device({str(self)!r})"

    @property
    def xp(self) -> Any:
        """The array module of this device: numpy, cupy or gpucnn.cudasim."""
        if self.kind == "cpu":
            return np
        return _cupy() if self.kind == "cuda" else _cudasim()

    @staticmethod
    def parse(spec: "str | Device | None") -> "Device":
        """The device that `spec` names; None means the default: the CPU outside of `device`.

        spec is "auto", "cpu", "cuda", "cuda:N", "cudasim" or a Device.  Raises DeviceError if the
        name is unknown, CuPy is missing, there is no driver, device N does not exist, or there is
        no compiler for cudasim.
        """
        if spec is None:
            return default_device() or CPU
        if isinstance(spec, Device):
            return spec
        if spec == "auto":
            return choose_device()[0]
        if spec == "cpu":
            return CPU
        if spec == "cudasim":
            _cudasim().require_compiler()
            return Device("cudasim")
        match = re.fullmatch(r"cuda(?::(\d+))?", spec) if isinstance(spec, str) else None
        if match is None:
            raise DeviceError(
                f"device {spec!r} is unknown\n"
                "  expected auto, cpu, cuda, cuda:N (N = 0, 1, ...) or cudasim"
            )
        index = int(match[1] or 0)
        count = _cuda_device_count()
        if index >= count:
            names = ", ".join(f"cuda:{i}" for i in range(count))
            raise DeviceError(f"device cuda:{index} does not exist\n  this machine has {names}")
        return Device("cuda", index)


CPU = Device("cpu")
_CUDASIM = Device("cudasim")


_state = threading.local()


@contextmanager
def device(spec: "str | Device | None") -> Iterator[Device]:
    """Make a device the default inside the block, in this thread.

        with gpucnn.device("cuda:1"):
            model = models.alexnet_cifar10()     # its parameters are on cuda:1
            x = gpucnn.tensor(images)            # and so is x

    New tensors of the host's data, new parameters and data.DataLoader are there unless they are
    given a device; what is on a device already stays where it is.  It is CuPy's current device too.
    Blocks nest.  Errors: as Device.parse.
    """
    chosen = Device.parse(spec)
    outer = default_device()
    current = nullcontext() if chosen.kind == "cpu" else chosen.xp.cuda.Device(chosen.index)
    with current:
        _state.default = chosen
        try:
            yield chosen
        finally:
            _state.default = outer


def default_device() -> Device | None:
    """The device of the innermost `with gpucnn.device(...)` of this thread; None outside."""
    return getattr(_state, "default", None)


def choose_device() -> tuple[Device, str]:
    """What "auto" means and, for people, the reason: the fastest usable device.

    The environment variable GPUCNN_DEVICE names another one; DeviceError if that cannot be used.
    """
    wish = os.environ.get(_AUTO, "auto")
    if wish not in ("", "auto"):
        try:
            return Device.parse(wish), f"{_AUTO}={wish}"
        except DeviceError as error:
            raise DeviceError(f"{_AUTO}={wish}: {error}") from error
    try:
        return Device.parse("cuda"), "a CUDA device was found"
    except DeviceError as error:
        return CPU, str(error).splitlines()[0]


def _cupy() -> Any:
    try:
        import cupy
    except ModuleNotFoundError as error:
        raise DeviceError(
            f"device cuda needs CuPy, which is not installed: {CUPY_INSTALL}"
        ) from error
    except ImportError as error:
        raise DeviceError(
            f"device cuda needs CuPy, which does not load ({error}): {CUPY_INSTALL}"
        ) from error
    return cupy


def _cudasim() -> Any:
    from gpucnn import cudasim

    return cudasim


def _cuda_device_count() -> int:
    """How many CUDA devices there are, at least 1; DeviceError says what is missing otherwise."""
    cupy = _cupy()
    try:
        count = int(cupy.cuda.runtime.getDeviceCount())
    except Exception as error:  # CuPy raises its own type, which cannot be named without CuPy
        raise DeviceError(
            f"device cuda needs an NVIDIA driver, and CuPy found none ({error}); "
            f"install the driver, with a CuPy that matches it: {CUPY_INSTALL}"
        ) from error
    if count == 0:
        raise DeviceError("device cuda needs an NVIDIA GPU, and the driver reports none; use cpu")
    return count


def array_module(x: Array) -> Any:
    """numpy if x is a NumPy array, cupy or gpucnn.cudasim if it is one of theirs."""
    if isinstance(x, np.ndarray):
        return np
    for name in ("cupy", "gpucnn.cudasim"):
        module = sys.modules.get(name)
        if module is not None and isinstance(x, module.ndarray):
            return module
    raise TypeError(f"array_module: expected a NumPy or CuPy array, got {type(x).__name__}")


def device_of(x: Array) -> Device:
    """The device on which array x lives."""
    if isinstance(x, np.ndarray):
        return CPU
    cudasim = sys.modules.get("gpucnn.cudasim")
    if cudasim is not None and isinstance(x, cudasim.ndarray):
        return _CUDASIM
    return Device("cuda", int(x.device.id))


def by_device(cpu: _Call, cuda: _Call) -> _Call:
    """One function out of two halves: the first argument, an array, decides which one runs."""

    def dispatch(x: Array, *rest: Any) -> Any:
        return (cpu if isinstance(x, np.ndarray) else cuda)(x, *rest)

    dispatch.cpu, dispatch.cuda = cpu, cuda  # type: ignore[attr-defined]  # for the tests
    return cast(_Call, dispatch)


def to_device(x: Array, device: Device) -> Array:
    """x on `device`: x itself if it is there already, else a copy."""
    if device_of(x) == device:
        return x
    host = x if isinstance(x, np.ndarray) else x.get()
    if device.kind == "cpu":
        return host
    with working_on(device):
        return device.xp.asarray(host)


# --- working on a device: its memory comes from there, and when there is none left ---


def working_on(device: Device) -> AbstractContextManager[None]:
    """The block's new arrays are on `device`; OutOfMemory if there is no room for one.

    Every op, backward pass and optimizer step is such a block, so that a model works on cuda:1
    while CuPy's current device is another.
    """
    if device.kind == "cpu" or getattr(_state, "working_on", None) == device:
        return _NOTHING
    return _enter(device)


_NOTHING = nullcontext()


@contextmanager
def _enter(device: Device) -> Iterator[None]:
    outer = getattr(_state, "working_on", None)
    cuda = device.xp.cuda
    with cuda.Device(device.index), cuda.using_allocator(_frugal(device, cuda.get_allocator())):
        _state.working_on = device
        try:
            yield
        finally:
            _state.working_on = outer


def _frugal(device: Device, allocate: Callable[[int], Any]) -> Callable[[int], Any]:
    """`allocate`, which gives unused memory back to the device where it fails, and tries again."""
    xp = device.xp

    def attempt(size: int) -> Any:
        try:
            return allocate(size)
        except xp.cuda.memory.OutOfMemoryError:
            return None

    def frugal(size: int) -> Any:
        memory = attempt(size)
        if memory is None:
            pool = xp.get_default_memory_pool()
            pool.free_all_blocks()
            memory = attempt(size)
        if memory is None:
            used, limit = pool.used_bytes(), pool.get_limit()
            free = xp.cuda.runtime.memGetInfo()[0] + pool.free_bytes()
            free = min(free, limit - used) if limit else free
            raise OutOfMemory(size, used, free, str(device))
        return memory

    return frugal
