"""Replay a step that went wrong, and find the first value that is not finite."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from gpucnn import nn
from gpucnn.autograd import Function, Operand, enable_grad, no_grad
from gpucnn.device import Array, working_on
from gpucnn.distributed.sync_batch_norm import unsynchronized
from gpucnn.errors import ArgumentError
from gpucnn.nn.finite import damaged_layer, owners_of
from gpucnn.optim.finite import is_finite
from gpucnn.out_of_memory import ModuleContext, module_context
from gpucnn.random import default_generator
from gpucnn.tensor import Tensor
from gpucnn.watching import Watcher, watching

Loss = Callable[[Tensor, Tensor], Tensor]

_FIRST = "is the first that is not finite"


def generators_of(model: nn.Module) -> dict[str, np.random.Generator]:
    """The default generator, "", and those of the dropout layers, by the layers' names."""
    found = {"": default_generator()}
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and module.generator is not None:
            found[name] = module.generator
    return found


class Snapshot:
    """What a forward pass changes besides its outputs: buffers and random generators."""

    def __init__(self, model: nn.Module) -> None:
        self._buffers = model.buffers()
        self._generators = list(generators_of(model).values())
        self.take()

    def take(self) -> None:
        """Keep the current state."""
        self._arrays = [buffer._data.copy() for buffer in self._buffers]
        self._states = [generator.bit_generator.state for generator in self._generators]

    def restore_buffers(self) -> None:
        for buffer, array in zip(self._buffers, self._arrays, strict=True):
            buffer.data[...] = array

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Inside the block, generators are as they were; afterwards as they are now.

        Buffers are restored afterwards.
        """
        now = [generator.bit_generator.state for generator in self._generators]
        self._set(self._states)
        try:
            yield
        finally:
            self._set(now)
            self.restore_buffers()

    def _set(self, states: list[Any]) -> None:
        for generator, state in zip(self._generators, states, strict=True):
            generator.bit_generator.state = state


def replay(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    loss: Loss | None = None,
    snapshot: Snapshot | None = None,
) -> str:
    """Run a batch again and describe the first value that is not finite; "" if all are.

    Checks the images, then parameters, results and, with a loss, gradients in the order of
    execution, in the model's current mode.  snapshot was taken before the step; None takes one now.
    Buffers and generators are not changed, and every gradient is None afterwards.

    Raises ArgumentError for labels out of range, which no other check finds on a GPU.
    """
    if not is_finite(images.data):
        return "the images of the batch are not finite: check the data set and the transform"
    search = _Search(model)
    snapshot = snapshot or Snapshot(model)
    model.zero_grad()
    with (
        working_on(images.device),
        np.errstate(all="ignore"),
        snapshot.undisturbed(),
        no_grad() if loss is None else enable_grad(),
        unsynchronized(),  # other ranks may have nothing to search for
        watching(search),
    ):
        logits = model(images)
        if not search.found:
            _check_labels(labels, logits.shape[1])
        if loss is not None and not search.found:
            result = loss(logits, labels)
            if is_finite(result.data):
                result.backward()
    found = search.found or search.fallback
    for name, parameter in model.named_parameters():
        if not found and parameter.grad is not None and not is_finite(parameter.grad):
            found = f"parameter {name}: the sum of its gradients {_FIRST}"
    model.zero_grad()
    return found


def _check_labels(labels: Tensor, classes: int) -> None:
    if not len(labels):
        return
    low, high = int(labels.data.min()), int(labels.data.max())
    if not 0 <= low <= high < classes:
        raise ArgumentError(
            f"labels must be in 0..{classes - 1}, got {low}..{high}\n"
            "  build the model with the number of classes of the data"
        )


class _Search(Watcher):
    """Finds the first operation whose inputs are finite and whose result or gradient is not.

    fallback describes the first that is not finite, whatever its inputs: a mask may hold
    infinities.
    """

    def __init__(self, model: nn.Module) -> None:
        self.found = self.fallback = ""
        self._model = model
        self._owners = owners_of(model)
        modules = {id(module): module for _, module in model.named_modules()}
        self._owner = {
            id(tensor): (modules[key], name)
            for key, tensors in self._owners.items()
            for name, tensor in tensors
        }

    def forward(self, node: Function, inputs: tuple[Operand, ...], y: Array) -> None:
        if self.found:
            return
        tensors = [x for x in inputs if isinstance(x, Tensor)]
        for tensor in tensors:
            if id(tensor) in self._owner:
                module, _ = self._owner[id(tensor)]
                self.found = self.found or damaged_layer(self._model, module, self._owners)
        if self.found or is_finite(y):
            return
        context = module_context()
        if context is not None:  # running statistics are no inputs
            self.found = damaged_layer(self._model, context.layer, self._owners)
        what = f"the result of {node.name}"
        self._note(
            f"{_where(context)}, forward: {what} {_FIRST}",
            all(is_finite(tensor.data) for tensor in tensors),
        )

    def backward(self, node: Function, dy: Array, gradients: list[Array | None]) -> None:
        if self.found:
            return
        for x, gradient in zip(node.inputs, gradients, strict=True):
            if gradient is None or is_finite(gradient):
                continue
            _, name = self._owner.get(id(x), (None, ""))
            of = f"parameter {name}" if name else "its input"
            what = f"the gradient of {of} in {node.name}"
            self._note(f"{_where(node.context)}, backward: {what} {_FIRST}", is_finite(dy))
            return

    def _note(self, text: str, arose_here: bool) -> None:
        if arose_here and not self.found:
            self.found = text
        self.fallback = self.fallback or text


def _where(context: ModuleContext | None) -> str:
    return "loss function" if context is None else str(context)
