"""Divergence: detect a loss that is not finite without waiting, and trace it to a layer."""

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

_MOST = 64  # pending losses: a host further ahead of its GPU waits for the oldest


class Loss(NamedTuple):
    """The loss of one step."""

    step: int
    lr: float
    value: float


class _Sent(NamedTuple):
    step: int
    lr: float
    value: np.ndarray[Any, Any]  # (): on a GPU, pinned memory
    arrived: Any  # event recorded after the copy; None on the CPU


class LossWatch:
    """Find the first loss that is not finite.

    On a GPU the loss is copied to pinned memory asynchronously, and read once the copy's event has
    completed: the host does not wait, and learns of a bad loss some steps late.
    """

    def __init__(self) -> None:
        self._sent: deque[_Sent] = deque()  # oldest first
        self._free: list[np.ndarray[Any, Any]] = []  # pinned, () each
        # CuPy would reuse the pinned memory while a copy still writes to it.
        weakref.finalize(self, _finish, self._sent).atexit = False

    def add(self, loss: Array, step: int, lr: float) -> None:
        """Watch the loss of a step: one element, computed on the current stream."""
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
        """The first non-finite loss among those that have arrived; with wait, among all."""
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
    """Whether x, of any dtype, has no NaN and no infinity.  The host waits for a GPU."""
    if x.dtype.kind != "f":
        return True
    with working_on(device_of(x)):
        return bool(array_module(x).isfinite(x).all())


def damaged(model: nn.Module) -> str:
    """Describe the first parameter or running statistic that is not finite; "" if all are."""
    owners = _owners(model)
    for _, module in model.named_modules():
        found = _damaged(model, module, owners)
        if found:
            return found
    return ""


def _owners(model: nn.Module) -> dict[int, list[tuple[str, Tensor]]]:
    """{id(module): its own parameters and running statistics}, without those of submodules."""
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
    """Find where values stop being finite when `model` runs on this batch; "" if nowhere.

    Runs the layers in the model's current mode and checks each in the order of execution.  Running
    statistics and generators are restored.  Raises ArgumentError for labels out of range, which no
    other check finds on a GPU.
    """
    if not is_finite(images.data):
        return "the images of the batch are not finite: check the data set and the transform"
    owners = _owners(model)
    found: list[str] = []
    names = {id(module) for _, module in model.named_modules()}

    def check(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if found or id(module) not in names:
            return
        text = _damaged(model, module, owners)
        if not text and isinstance(output, Tensor) and not is_finite(output.data):
            text = f"{_layer(model, module)}: its output is the first that is not finite"
        if text:
            found.append(text)

    with working_on(images.device):
        with _undisturbed(model), no_grad(), nn.observe(check):
            logits = model(images)
        if found:
            return found[0]
        low, high = int(labels.data.min()), int(labels.data.max())
    if not 0 <= low <= high < logits.shape[1]:
        raise ArgumentError(
            f"labels must be in 0..{logits.shape[1] - 1}, got {low}..{high}\n"
            "  build the model with the number of classes of the data"
        )
    return damaged(model)


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Restore buffers and generators after the forward pass inside the block."""
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
