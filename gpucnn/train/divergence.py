"""Training whose numbers are no longer finite: noticed without waiting, and traced to a layer."""

import math
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from gpucnn import nn
from gpucnn.autograd import no_grad
from gpucnn.device import Array, array_module, device_of, working_on
from gpucnn.errors import ArgumentError
from gpucnn.out_of_memory import ModuleContext
from gpucnn.random import default_generator
from gpucnn.tensor import Tensor

_MOST = 64  # losses under way: a host that is further ahead of its GPU waits for the oldest


class Loss(NamedTuple):
    """One step's loss."""

    step: int
    lr: float
    value: float


class _Sent(NamedTuple):
    step: int
    lr: float
    value: np.ndarray[Any, Any]  # (): on a GPU, pinned memory
    arrived: Any  # the event behind the copy; None on the CPU


class LossWatch:
    """Finds the first loss that is not finite.

    A GPU's loss is copied into pinned memory behind the step that computes it, and looked at once
    the copy's event has passed: the host does not wait, and learns of it some steps late.
    """

    def __init__(self) -> None:
        self._sent: deque[_Sent] = deque()  # the oldest first
        self._free: list[np.ndarray[Any, Any]] = []  # pinned, () each
        # CuPy would give pinned memory to somebody else while a copy still writes it.
        weakref.finalize(self, _finish, self._sent).atexit = False

    def add(self, loss: Array, step: int, lr: float) -> None:
        """Watch the loss of a step, of one element, which the current stream computes."""
        if isinstance(loss, np.ndarray):
            self._sent.append(_Sent(step, lr, loss, None))
            return
        cuda = array_module(loss).cuda
        value = self._slot(cuda, loss.dtype)
        loss.reshape(()).get(out=value, blocking=False)
        event = cuda.Event(disable_timing=True)
        event.record()
        self._sent.append(_Sent(step, lr, value, event))

    def first(self, wait: bool = False) -> Loss | None:
        """The first loss that is not finite among those that have arrived; of all with wait."""
        while self._sent:
            sent = self._sent[0]
            if sent.arrived is not None and not sent.arrived.done:
                if not wait and len(self._sent) < _MOST:
                    return None
                sent.arrived.synchronize()
            self._sent.popleft()
            value = float(sent.value.item())
            if sent.arrived is not None:
                self._free.append(sent.value)
            if not math.isfinite(value):
                return Loss(sent.step, sent.lr, value)
        return None

    def _slot(self, cuda: Any, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        if self._free and self._free[-1].dtype == dtype:
            return self._free.pop()
        return np.frombuffer(cuda.alloc_pinned_memory(dtype.itemsize), dtype, 1).reshape(())


def _finish(sent: deque[_Sent]) -> None:
    for loss in sent:
        if loss.arrived is not None and not loss.arrived.done:
            loss.arrived.synchronize()


def is_finite(x: Array) -> bool:
    """Whether x, of any dtype, holds neither NaN nor infinity.  A GPU's host waits."""
    if x.dtype.kind != "f":
        return True
    with working_on(device_of(x)):
        return bool(array_module(x).isfinite(x).all())


def damaged(model: nn.Module) -> str:
    """The first parameter or running statistic of `model` that is not finite; "" if all are."""
    owners = _owners(model)
    for _, module in model.named_modules():
        found = _damaged(model, module, owners)
        if found:
            return found
    return ""


def _owners(model: nn.Module) -> dict[int, list[tuple[str, Tensor]]]:
    """By id(module): what must stay finite there, without what belongs to a module inside it."""
    owners: dict[int, tuple[int, str, Tensor]] = {}
    for _, module in model.named_modules():  # the innermost owner comes last
        tensors: list[tuple[str, Tensor]] = list(module.named_parameters())
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            tensors += module.named_buffers()
        for name, tensor in tensors:
            owners[id(tensor)] = (id(module), name, tensor)
    found: dict[int, list[tuple[str, Tensor]]] = {}
    for owner, name, tensor in owners.values():
        found.setdefault(owner, []).append((name, tensor))
    return found


def _damaged(
    model: nn.Module, module: nn.Module, owners: dict[int, list[tuple[str, Tensor]]]
) -> str:
    for name, tensor in owners.get(id(module), []):
        if not is_finite(tensor.data):
            what = "its parameter" if isinstance(tensor, nn.Parameter) else "its"
            also = tensor.grad is not None and not is_finite(tensor.grad)
            return (
                f"{_layer(model, module)}: {what} {name} is not finite"
                f"{', and neither is the gradient' if also else ''}"
            )
    return ""


def _layer(model: nn.Module, module: nn.Module) -> str:
    return str(ModuleContext(model, module, 0, 0))


def trace(model: nn.Module, images: Tensor, labels: Tensor) -> str:
    """Where the numbers stop being finite when `model` sees this batch; "" if they do not.

    The layers are asked in the order in which they run, in the mode that the model is in; running
    statistics and generators are left as they were.  Raises ArgumentError for labels that the
    model has no outputs for: on a GPU nothing else says so.
    """
    if not is_finite(images.data):
        return "the images of the batch are not finite: look at the data set and the transform"
    owners = _owners(model)
    found: list[str] = []
    names = {id(module) for _, module in model.named_modules()}

    def look(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if found or id(module) not in names:
            return
        text = _damaged(model, module, owners)
        if not text and isinstance(output, Tensor) and not is_finite(output.data):
            text = f"{_layer(model, module)}: its output is the first that is not finite"
        if text:
            found.append(text)

    with working_on(images.device):
        with _undisturbed(model), no_grad(), nn.observe(look):
            logits = model(images)
        if found:
            return found[0]
        low, high = int(labels.data.min()), int(labels.data.max())
    if not 0 <= low <= high < logits.shape[1]:
        raise ArgumentError(
            f"labels must be in 0..{logits.shape[1] - 1}, got {low}..{high}\n"
            "  the model has as many outputs; build it for the classes of the data"
        )
    return damaged(model)


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """What a forward pass changes beside its result is put back: buffers and generators."""
    buffers = [(buffer, buffer.data.copy()) for _, buffer in model.named_buffers()]
    generators = [default_generator()]
    generators += [
        module.generator
        for _, module in model.named_modules()
        if isinstance(module, nn.Dropout) and module.generator is not None
    ]
    states = [generator.bit_generator.state for generator in generators]
    try:
        with np.errstate(all="ignore"):
            yield
    finally:
        for buffer, before in buffers:
            buffer.data[...] = before
        for generator, state in zip(generators, states, strict=True):
            generator.bit_generator.state = state
