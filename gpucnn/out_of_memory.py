"""Explains an OutOfMemory: the layer that caused it, and a batch size that would fit.

Each thread stores which module it is running, and each recorded op keeps that for its backward
pass.  Names and sizes are computed only when memory has run out.
"""

import threading
from dataclasses import dataclass
from typing import Any

from gpucnn.device import Device
from gpucnn.errors import OutOfMemory

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


def explain(
    error: OutOfMemory, what: str, at: ModuleContext | None, training: bool = False
) -> None:
    """Add to `error` the op `what`, its layer, and an estimate of the batch size that would fit.

    The estimate assumes that memory in use before the model was called stays in use, that each
    parameter gets a gradient in training, and that the rest, including the failed allocation, is
    proportional to the number of images.  It does not include layers that have not run yet.
    """
    if error.where:
        return  # explained by an op inside this one
    error.where = what if at is None else f"{what} in {at}"
    if at is None or at.images == 0 or error.used + error.requested <= at.used:
        return
    available = error.used + error.free - at.used
    if training:
        available -= sum(p.data.nbytes for p in at.model.parameters() if p.grad is None)
    error.images = at.images
    error.batch_size = max(available, 0) * at.images // (error.used + error.requested - at.used)
