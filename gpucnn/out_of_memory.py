"""Which layer ran out of memory, and how large a batch would have fit.

Each thread knows in which module it is, and each op that is recorded keeps that for its backward
pass.  Nothing is looked up or added up before memory has run out.
"""

import threading
from dataclasses import dataclass
from typing import Any

from gpucnn.device import Device
from gpucnn.errors import OutOfMemory

_state = threading.local()


@dataclass(frozen=True, slots=True)
class ModuleContext:
    """Which module of which model a thread is running."""

    model: Any  # the outermost module that is being called
    layer: Any  # the innermost one
    images: int  # in the batch that the model was called with; 0 if it is not known
    used: int  # bytes of the device that were in use when it was called, without the batch

    def __str__(self) -> str:
        names = (name for name, module in self.model.named_modules() if module is self.layer)
        return f"layer {next(names, '') or 'outermost'} ({type(self.layer).__name__})"


def module_context() -> ModuleContext | None:
    """What this thread is running; None outside of all modules."""
    return getattr(_state, "context", None)


def enter_module(context: ModuleContext | None) -> None:
    """Make `context` the one of this thread; None leaves the outermost module."""
    _state.context = context


def used_bytes(device: Device) -> int:
    """What the arrays on `device` take, in bytes; 0 for the CPU, where nobody counts."""
    if device.kind == "cpu":
        return 0
    with device.xp.cuda.Device(device.index):  # whose pool answers
        return int(device.xp.get_default_memory_pool().used_bytes())


def explain(
    error: OutOfMemory, what: str, at: ModuleContext | None, training: bool = False
) -> None:
    """Write into `error` what asked for memory, where, and the batch that would fit.

    The estimate: what was in use before the model was called stays; in training each parameter
    gets a gradient; the rest, with what was asked for, is proportional to the number of images.
    What the layers after this one need is not known.
    """
    if error.where:
        return  # an op inside this one has done it
    error.where = what if at is None else f"{what} in {at}"
    if at is None or at.images == 0 or error.used + error.requested <= at.used:
        return
    room = error.used + error.free - at.used
    if training:
        room -= sum(p.data.nbytes for p in at.model.parameters() if p.grad is None)
    error.images = at.images
    error.batch_size = max(room, 0) * at.images // (error.used + error.requested - at.used)
