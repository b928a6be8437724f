"""Devices: "cpu" (NumPy), "cuda", "cuda:1", ... (CuPy) and "cudasim".

NumPy and CuPy share most of their API, so most code calls `array_module(x)` and computes with the
module that x belongs to.  An op with its own CUDA kernels pairs its two implementations instead:

    _forward = by_device(cpu=_forward_numpy, cuda=_forward_cuda)

CuPy is imported only when a CUDA device is requested.  "cudasim" is a simulated CUDA device:
gpucnn.cudasim replaces CuPy and runs the same kernels on the CPU's cores.

`with gpucnn.device("cuda:1"):` sets the default device of a block.  That function shadows this
module as an attribute of the package; `from gpucnn.device import Device` still imports the module.

CuPy's current device may differ from a tensor's.  CuPy then rejects the array, or uses the current
device's stream, which is not ordered with the array's.  Hence one rule:

    Code that allocates, computes with or copies an array does so inside `with working_on(device)`,
    where device is the array's.

Ops, backward, optimizers, modules, loaders and `inspect` follow it.  So every public function works
for tensors on cuda:1 while cuda:0 is current, and uses cuda:1's current stream.  Re-entering the
block for the same device costs almost nothing.
"""

import os
import re
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar, cast

import numpy as np

from gpucnn.errors import DeviceError, OutOfMemory

Array: TypeAlias = Any  # numpy.ndarray or cupy.ndarray: the two share no base class
_Call = TypeVar("_Call", bound=Callable[..., Any])

_AUTO = "GPUCNN_DEVICE"  # the environment variable that overrides "auto"
CUPY_INSTALL = 'pip install "gpucnn[cuda12]" (or "gpucnn[cuda13]" for a CUDA 13 driver)'


@dataclass(frozen=True)
class Device:
    """A device.  `Device.parse("cuda:1")` creates one and checks that it can be used."""

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
        """The device that `spec` names: "auto", "cpu", "cuda", "cuda:N", "cudasim" or a Device.

        None means the default device, which is the CPU outside of `with gpucnn.device(...)`.
        Raises DeviceError if the name is unknown, CuPy or the driver is missing, device N does not
        exist, or cudasim finds no C++ compiler.
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
    """Set the default device inside the block, in this thread.

        with gpucnn.device("cuda:1"):
            model = models.alexnet_cifar10()     # its parameters are on cuda:1
            x = gpucnn.tensor(images)            # and so is x

    It applies to tensors created from host data, new parameters and data.DataLoader, unless they
    are given a device.  Arrays on a GPU stay there.  The device also becomes CuPy's current one.
    Blocks nest.  Raises DeviceError as Device.parse does.
    """
    chosen = Device.parse(spec)
    outer = default_device()
    at_work = getattr(_state, "working_on", None)
    current = nullcontext() if chosen.kind == "cpu" else chosen.xp.cuda.Device(chosen.index)
    with current:
        _state.default = chosen
        if chosen.kind == "cuda":
            _state.working_on = None  # CuPy's current device has changed
        try:
            yield chosen
        finally:
            _state.default, _state.working_on = outer, at_work


def default_device() -> Device | None:
    """The device of this thread's innermost `with gpucnn.device(...)`, or None."""
    return getattr(_state, "default", None)


def choose_device() -> tuple[Device, str]:
    """The device that "auto" stands for, a CUDA device if there is one, and the reason as text.

    The environment variable GPUCNN_DEVICE overrides it; DeviceError if that cannot be used.
    """
    requested = os.environ.get(_AUTO, "auto")
    if requested not in ("", "auto"):
        try:
            return Device.parse(requested), f"{_AUTO}={requested}"
        except DeviceError as error:
            raise DeviceError(f"{_AUTO}={requested}: {error}") from error
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
    """The number of CUDA devices, at least 1; DeviceError if CuPy, driver or GPU is missing."""
    cupy = _cupy()
    try:
        count = int(cupy.cuda.runtime.getDeviceCount())
    except Exception as error:  # CuPy's own type, unknown without CuPy
        raise DeviceError(
            f"device cuda needs an NVIDIA driver, and CuPy found none ({error}); "
            f"install the driver, with a CuPy that matches it: {CUPY_INSTALL}"
        ) from error
    if count == 0:
        raise DeviceError("device cuda needs an NVIDIA GPU, and the driver reports none; use cpu")
    return count


def array_module(x: Array) -> Any:
    """The module of array x: numpy, cupy or gpucnn.cudasim; TypeError for anything else."""
    if isinstance(x, np.ndarray):
        return np
    for name in ("cupy", "gpucnn.cudasim"):
        module = sys.modules.get(name)
        if module is not None and isinstance(x, module.ndarray):
            return module
    raise TypeError(f"array_module: expected a NumPy or CuPy array, got {type(x).__name__}")


def device_of(x: Array) -> Device:
    """The device of array x."""
    if isinstance(x, np.ndarray):
        return CPU
    cudasim = sys.modules.get("gpucnn.cudasim")
    if cudasim is not None and isinstance(x, cudasim.ndarray):
        return _CUDASIM
    return Device("cuda", int(x.device.id))


def by_device(cpu: _Call, cuda: _Call) -> _Call:
    """A function that calls `cpu` or `cuda`, depending on the device of its first argument."""

    def dispatch(x: Array, *rest: Any) -> Any:
        return (cpu if isinstance(x, np.ndarray) else cuda)(x, *rest)

    dispatch.cpu, dispatch.cuda = cpu, cuda  # type: ignore[attr-defined]  # for the tests
    return cast(_Call, dispatch)


def to_host(x: Array) -> np.ndarray[Any, Any]:
    """x as a NumPy array: x itself if it is one, else a copy, which waits for the GPU."""
    if isinstance(x, np.ndarray):
        return x
    with working_on(device_of(x)):  # CuPy copies on the current device's current stream
        host: np.ndarray[Any, Any] = x.get()
    return host


def to_device(x: Array, device: Device) -> Array:
    """x on `device`: x itself if it is there, else a copy."""
    if device_of(x) == device:
        return x
    host = to_host(x)
    if device.kind == "cpu":
        return host
    with working_on(device):
        return device.xp.asarray(host)


# --- the current device and its memory ---


def working_on(device: Device) -> AbstractContextManager[None]:
    """Make `device` CuPy's current device inside the block: see this module's docstring.

    When memory runs out inside the block, gpucnn frees CuPy's cached blocks, then the memory of
    `spares`, and retries; if that fails too, it raises OutOfMemory.
    """
    if device.kind == "cpu" or getattr(_state, "working_on", None) == device:
        return _NOTHING
    return _enter(device)


_NOTHING = nullcontext()


class Spare(Protocol):
    """Something that holds memory which it can do without, such as a captured step."""

    def give_up(self, device: Device) -> bool:
        """Free the memory on `device`, on which no more is left; whether there was any."""


spares: "weakref.WeakSet[Spare]" = weakref.WeakSet()


@contextmanager
def _enter(device: Device) -> Iterator[None]:
    outer = getattr(_state, "working_on", None)
    cuda = device.xp.cuda
    with cuda.Device(device.index), cuda.using_allocator(_retrying(device, cuda.get_allocator())):
        _state.working_on = device
        try:
            yield
        finally:
            _state.working_on = outer


def _retrying(device: Device, allocate: Callable[[int], Any]) -> Callable[[int], Any]:
    """An allocator that calls `allocate`, and again after freeing the pool's cached blocks."""
    xp = device.xp

    def attempt(size: int) -> Any:
        try:
            return allocate(size)
        except xp.cuda.memory.OutOfMemoryError:
            return None

    def retrying(size: int) -> Any:
        memory = attempt(size)
        if memory is not None:
            return memory
        pool = xp.get_default_memory_pool()
        pool.free_all_blocks()
        memory = attempt(size)
        for spare in list(spares):
            if memory is None and spare.give_up(device):
                memory = attempt(size)
        if memory is None:
            used, limit = pool.used_bytes(), pool.get_limit()
            free = xp.cuda.runtime.memGetInfo()[0] + pool.free_bytes()
            free = min(free, limit - used) if limit else free
            raise OutOfMemory(size, used, free, str(device))
        return memory

    return retrying
