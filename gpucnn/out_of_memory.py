"""Explains an OutOfMemory: the layer that caused it, and a batch size that would fit.

Each thread stores which module it is running, and each recorded op keeps that for its backward
pass.  Names and sizes are computed only when memory has run out.
"""

import math
import threading
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

from gpucnn.cpu.limits import free_memory, memory_in_use
from gpucnn.device import Device
from gpucnn.errors import OutOfMemory
from gpucnn.graph_memory import bytes_behind

_state = threading.local()


@dataclass(frozen=True, slots=True)
class ModuleContext:
    """The module that a thread is running."""

    model: Any  # the outermost module that is running
    layer: Any  # the innermost one
    images: int  # in the model's batch; 0 if unknown
    used: int  # bytes in use on the device before the model was called, not counting the batch

    def __str__(self) -> str:
        names = (name for name, module in self.model.named_modules() if module is self.layer)
        return f"layer {next(names, '') or 'outermost'} ({type(self.layer).__name__})"


def module_context() -> ModuleContext | None:
    """The module that this thread is running; None outside of all modules."""
    return getattr(_state, "context", None)


def enter_module(context: ModuleContext | None) -> None:
    """Set this thread's module; None when it leaves the outermost one."""
    _state.context = context


def used_bytes(device: Device) -> int:
    """The bytes that arrays on `device` use; 0 for the CPU, where they are not counted."""
    if device.kind == "cpu":
        return 0
    with device.xp.cuda.Device(device.index):  # the pool reports the current one
        return int(device.xp.get_default_memory_pool().used_bytes())


def raise_out_of_memory(
    error: MemoryError,
    what: str,
    at: ModuleContext | None = None,
    values: Iterable[Any] = (),
    training: bool = False,
) -> NoReturn:
    """Raise `error` as an OutOfMemory that names `what`, its layer and a batch that would fit.

    what is an op or another action, `at` the module that ran it, and `values` are its inputs: on
    the CPU, the memory behind them is what grows with the batch.  Frames of a MemoryError lose
    their arrays, so that a handler can allocate.
    """
    try:
        if isinstance(error, OutOfMemory):
            _explain(error, what, at, values, training)
            raise error
        if not type(error).__module__.startswith(("builtins", "numpy")):
            raise error  # CuPy's, from outside of working_on
        traceback.clear_frames(error.__traceback__)
        explained = OutOfMemory(_requested(error), memory_in_use(), free_memory(), "cpu")
        _explain(explained, what, at, values, training)
        raise explained from error
    finally:
        error = explained = None  # type: ignore[assignment]  # the traceback refers to this frame


def _requested(error: MemoryError) -> int:
    """The bytes of the array that NumPy could not allocate; 0 if another object failed."""
    shape, dtype = getattr(error, "shape", None), getattr(error, "dtype", None)
    return 0 if shape is None or dtype is None else math.prod(shape) * int(dtype.itemsize)


@contextmanager
def explaining(what: str) -> Iterator[None]:
    """Raise a MemoryError in the block as an OutOfMemory that names `what`; also a decorator."""
    try:
        yield
    except MemoryError as error:
        raise_out_of_memory(error, what)


def _explain(
    error: OutOfMemory, what: str, at: ModuleContext | None, values: Iterable[Any], training: bool
) -> None:
    """Add to `error` the op `what`, its layer, and an estimate of the batch size that would fit.

    The estimate assumes that memory in use before the model was called stays in use, that each
    parameter gets a gradient in training, and that the rest, including the failed allocation, is
    proportional to the number of images.  It does not include layers that have not run yet.
    """
    if error.where:
        return  # explained by an op inside this one
    error.where = what if at is None else f"{what} in {at}"
    if at is None or at.images == 0:
        return
    grown = bytes_behind(values) if error.device == "cpu" else error.used - at.used
    if grown + error.requested <= 0 or error.used == error.free == 0:
        return
    available = grown + error.free
    if training:
        available -= sum(p.data.nbytes for p in at.model.parameters() if p.grad is None)
    error.images = at.images
    error.batch_size = max(available, 0) * at.images // (grown + error.requested)
