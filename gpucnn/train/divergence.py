"""Divergence: detect values that are not finite, on a GPU without waiting for it."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gpucnn import nn
from gpucnn.device import Array, array_module
from gpucnn.nn.finite import layer_name, owners_of
from gpucnn.optim import Optimizer
from gpucnn.optim.finite import Overflow, is_finite
from gpucnn.train.readback import Readback


class Fault(NamedTuple):
    """A step whose loss, gradients or update are not finite."""

    step: int
    lr: float
    what: str  # for the first line of an error


class StepWatch:
    """Find the first step on a GPU whose loss or update is not finite, without waiting for it.

    The loss and the optimizer's guard are read back asynchronously: the host learns of a fault some
    steps late.
    """

    def __init__(self) -> None:
        self._readback = Readback()
        self._guard: Array | None = None

    def update(
        self, optimizer: Optimizer, step: Callable[[Optimizer], None] = Optimizer.step
    ) -> Array:
        """Call step(optimizer), which makes a step; return the guard, (1,) int32.

        A parameter's or state's element whose new value is not finite keeps the old one.  The guard
        is 1 after the first such element.
        """
        if self._guard is None:
            self._guard = array_module(optimizer._flat).zeros(1, np.int32)
        optimizer.guard = self._guard
        try:
            step(optimizer)
        finally:
            optimizer.guard = None
        return self._guard

    def send(self, lr: float, step: int, *arrays: Array) -> None:
        """Watch step number `step`: arrays hold its loss and the guard after it."""
        self._readback.send((step, lr), *arrays)

    def first(self, wait: bool = False) -> Fault | None:
        """The first fault among the steps that have arrived; with wait, among all."""
        while (found := self._readback.take(wait)) is not None:
            (step, lr), (value, refused) = found
            if not math.isfinite(value):
                return Fault(step, lr, f"the loss is {value}")
            if refused:
                return Fault(step, lr, "a gradient is not finite, or the update overflows")
        return None


def damaged_state(optimizer: Optimizer) -> str:
    """Describe the first state that is not finite; "" if all are."""
    for name, value in optimizer.state_dict().items():
        if hasattr(value, "dtype") and not is_finite(value):
            return f"{type(optimizer).__name__}: its {name} is not finite"
    return ""


def overflowing(model: nn.Module, overflow: Overflow) -> str:
    """Describe an update that was not made, by layer and parameter."""
    of = "" if overflow.what == "value" else f"the {overflow.what} of "
    owners = owners_of(model)
    for _, module in model.named_modules():
        for name, tensor in owners.get(id(module), []):
            if tensor is overflow.parameter:
                where = layer_name(model, module)
                return f"{where}: {of}its parameter {name} would not be finite"
    return f"{of}a parameter outside of the model would not be finite"
