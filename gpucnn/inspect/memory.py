"""The memory of a training step, foretold from the tape of two tiny batches.

The forward pass is run for 2 and for 3 images.  Each time the tape is walked as the backward pass
walks it, and every array that is alive at each of its nodes is weighed: what nodes have saved,
their inputs, gradients on their way.  Each sum is a fixed part and a part per image, so any batch
size follows.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn.autograd import Function, enable_grad
from gpucnn.device import Array, array_module, to_device
from gpucnn.errors import ArgumentError, GraphError
from gpucnn.nn import Module
from gpucnn.nn.summary import _place
from gpucnn.random import default_generator
from gpucnn.tensor import Tensor


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a training step, and what they are."""

    batch_size: int
    parameters: int  # buffers included
    optimizer: int
    images: int
    activations: int  # what the forward pass keeps, as far as still alive at the peak
    gradients: int  # of parameters and activations, at the peak
    at: str  # the op whose backward pass is the peak

    @property
    def peak(self) -> int:
        return self.parameters + self.optimizer + self.images + self.activations + self.gradients


def training_memory(
    model: Module, input_shape: tuple[int, ...], batch_size: int, optimizer_states: int = 1
) -> Memory:
    """The peak of one training step on `batch_size` images of input_shape (H, W, C).

    optimizer_states counts the arrays that the optimizer keeps for each parameter: 1 for SGD's
    velocity (always kept), 2 for Adam's moments.

    A prediction: work space inside an op, the loss, images that a loader makes ahead, and what
    Python, NumPy or CuPy take themselves are not in it.  For alexnet_cifar10 and its _bn variant
    in batches of 16 to 128 on the CPU it is 4 to 7 % below the peak that tracemalloc measured,
    leaving aside the scratch memory that convolutions keep in each thread (about 60 MiB a thread
    at 64 images and more), and 17 to 25 % below it with that.  The model is left as it was.
    """
    if batch_size < 1 or optimizer_states < 0:
        raise ArgumentError(
            "training_memory: expected batch_size >= 1 and optimizer_states >= 0, "
            f"got {batch_size}, {optimizer_states}"
        )
    sizes = (2, 3)
    small, large = (_weigh(model, input_shape, size) for size in sizes)
    weights = sum(parameter.data.nbytes for parameter in model.parameters())
    buffers = sum(buffer.data.nbytes for _, buffer in model.named_buffers())

    def grown(a: int, b: int) -> int:
        return a + (b - a) * (batch_size - sizes[0])

    name, activations, gradients = max(
        (
            (one[0], grown(one[1], other[1]), grown(one[2], other[2]))
            for one, other in zip(small, large, strict=True)
        ),
        key=lambda stage: stage[1] + stage[2],
    )
    _, dtype = _place(model)
    image = int(np.prod(input_shape)) * np.dtype(dtype).itemsize
    return Memory(
        batch_size,
        weights + buffers,
        weights * optimizer_states,
        batch_size * image,
        activations,
        gradients,
        name,
    )


Stage = tuple[str, int, int]  # op, bytes of kept arrays, bytes of gradients


def _weigh(model: Module, input_shape: tuple[int, ...], n: int) -> list[Stage]:
    """The bytes alive during each node's backward pass, in the order of the pass."""
    device, dtype = _place(model)
    x = Tensor(to_device(np.zeros((n, *input_shape), dtype), device))
    with _as_if_training(model), enable_grad():
        y = model(x)
    if not isinstance(y, Tensor) or y._node is None:
        raise GraphError("training_memory: the model's output does not depend on a parameter")
    elsewhere = {id(_base(x.data))} | {id(_base(t.data)) for _, t in model._named_tensors()}
    nodes = _tape(y)
    result = {id(t._node): t for node in nodes for t in node.inputs if isinstance(t, Tensor)}
    result[id(y._node)] = y
    weight: dict[int, int] = {id(_base(y.data)): _base(y.data).nbytes}
    holders: dict[int, int] = {id(_base(y.data)): 1}  # the caller keeps the logits
    held: dict[int, list[int]] = {}
    for node in nodes:
        arrays = [a for a in map(_base, _kept(node)) if id(a) not in elsewhere]
        held[id(node)] = list({id(a) for a in arrays})
        weight |= {id(a): int(a.nbytes) for a in arrays}
        for key in held[id(node)]:
            holders[key] = holders.get(key, 0) + 1
    stages = []
    finished = 0  # bytes of the parameters' gradients
    seen: set[int] = set()  # parameters that have theirs
    pending = {id(y._node): int(y.data.nbytes)}
    for node in nodes:
        own = result[id(node)].data
        coming = 0  # bytes that this node's backward pass makes for others to take up
        for wanted, needed in zip(node.inputs, node.needs, strict=True):
            if not needed or not isinstance(wanted, Tensor):
                continue
            size = int(wanted.data.nbytes)
            if wanted._node is None:
                finished += 0 if id(wanted) in seen else size
                seen.add(id(wanted))
            elif _base(own) is _base(wanted.data):  # a view's gradient is a view of dy
                pending[id(wanted._node)] = pending.pop(id(node), size)
            else:
                if id(wanted._node) not in pending:
                    pending[id(wanted._node)] = size
                else:
                    coming += size  # added to what is there, then dropped
        alive = sum(weight[key] for key in holders)
        if id(_base(own)) not in holders and id(_base(own)) not in elsewhere:
            alive += int(_base(own).nbytes)  # backward still holds the node's result
        stages.append((node.name, alive, finished + sum(pending.values()) + coming))
        pending.pop(id(node), None)
        for key in held[id(node)]:
            holders[key] -= 1
            if holders[key] == 0:
                del holders[key]
    return stages


def _tape(root: Tensor) -> list[Function]:
    """Every node behind `root`, newest first: the order of the backward pass."""
    found: dict[int, Function] = {}
    waiting = [root._node]
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in found:
            continue
        found[id(node)] = node
        waiting += [t._node for t in node.inputs if isinstance(t, Tensor)]
    return sorted(found.values(), key=lambda node: -node.order)


def _kept(node: Function) -> Iterator[Array]:
    """The arrays that a node keeps alive: saved ones, and its inputs'."""
    yield from (t.data for t in node.inputs if isinstance(t, Tensor))
    waiting: list[Any] = [node.saved]
    while waiting:
        value = waiting.pop()
        if isinstance(value, tuple | list):
            waiting += value
        elif hasattr(value, "nbytes") and hasattr(value, "ndim") and value.ndim:
            yield value


def _base(x: Array) -> Array:
    """The array that owns x's memory."""
    xp = array_module(x)
    while isinstance(x.base, xp.ndarray):
        x = x.base
    return x


@contextmanager
def _as_if_training(model: Module) -> Iterator[None]:
    """Training mode inside the block; modes, buffers and generators put back after it."""
    modules = [module for _, module in model.named_modules()]
    modes = [module.training for module in modules]
    buffers = [(tensor, tensor.data.copy()) for _, tensor in model.named_buffers()]
    generators = [default_generator()]
    generators += [
        g for m in modules for g in vars(m).values() if isinstance(g, type(generators[0]))
    ]
    states = [copy.deepcopy(g.bit_generator.state) for g in generators]
    try:
        model.train()
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        for tensor, values in buffers:
            tensor.data[...] = values
        for generator, state in zip(generators, states, strict=True):
            generator.bit_generator.state = state
