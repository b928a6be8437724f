"""The memory of a training step, foretold from the tape of two tiny batches.

The forward pass is run for 2 and for 3 images.  Each time the tape is walked as the backward pass
walks it, and every array that is alive at each of its nodes is weighed: what nodes have saved,
their inputs, gradients on their way.  Each sum is a fixed part and a part per image, so any batch
size follows.

What operations need besides, inside, follows no straight line: they cut large batches into
pieces.  On a CPU it is traced in a step on as many images as are worth 128 MiB, by which pieces
have their full size or nearly so.
"""

import copy
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn.autograd import Function, enable_grad, tape
from gpucnn.cpu import alone, get_num_threads, scratch_bytes
from gpucnn.device import CPU, Array, array_module, to_device, working_on
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
    work: int  # what operations need inside, in all threads; 0, unknown, on a GPU
    at: str  # the op whose backward pass is the peak

    @property
    def peak(self) -> int:
        kept = self.parameters + self.optimizer + self.images
        return kept + self.activations + self.gradients + self.work


def training_memory(
    model: Module, input_shape: tuple[int, ...], batch_size: int, optimizer_states: int = 1
) -> Memory:
    """The peak of one training step on `batch_size` images of input_shape (H, W, C).

    optimizer_states counts the arrays that the optimizer keeps for each parameter: 1 for SGD's
    velocity (always kept), 2 for Adam's moments.

    A prediction.  Images that a loader makes ahead are not in it, nor is what Python, NumPy, BLAS
    or CuPy take themselves, nor the gaps that the allocator leaves between arrays; on a GPU
    neither is what operations need inside.  benchmarks/training_memory.py compares it with what a
    process grows by.  On one thread and two it was within 2 % for alexnet_keras, 9 % below for
    alexnet_cifar10_bn and 15 % below for alexnet_cifar10; for lenet 5 % below on one thread and
    9 % above on two.  The model is left as it was.
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

    def peak(n: int) -> tuple[str, int, int]:
        """Where most is alive of n images; the bytes of kept arrays and of gradients there."""

        def grown(a: int, b: int) -> int:
            return a + (b - a) * (n - sizes[0])

        return max(
            (
                (one[0], grown(one[1], other[1]), grown(one[2], other[2]))
                for one, other in zip(small, large, strict=True)
            ),
            key=lambda stage: stage[1] + stage[2],
        )

    device, dtype = _place(model)
    image = int(np.prod(input_shape)) * np.dtype(dtype).itemsize
    work = 0
    if device == CPU:
        n = min(batch_size, max(2, _TRACED // max(1, peak(2)[1] // 2)))
        asked, scratch = _trace(model, input_shape, n)
        work = max(0, asked - sum(peak(n)[1:])) + get_num_threads() * scratch
    name, activations, gradients = peak(batch_size)
    return Memory(
        batch_size,
        weights + buffers,
        weights * optimizer_states,
        batch_size * image,
        activations,
        gradients,
        work,
        name,
    )


def _trace(model: Module, input_shape: tuple[int, ...], n: int) -> tuple[int, int]:
    """The most bytes that a step on n images has at once, beyond what was there before it, and
    without its scratch memory; and that, of one thread."""
    x = Tensor(np.zeros((n, *input_shape), _place(model)[1]))
    parameters = model.parameters()
    before = [parameter.grad for parameter in parameters]

    def step_twice() -> tuple[int, int]:
        with _as_if_training(model), enable_grad(), alone():
            for _ in range(2):  # the first makes the scratch memory
                tracemalloc.reset_peak()
                y = model(x)
                for parameter in parameters:
                    parameter.grad = None
                y.backward(np.ones_like(y.data))
                del y
        scratch = scratch_bytes()
        return tracemalloc.get_traced_memory()[1] - start - scratch, scratch

    ours = not tracemalloc.is_tracing()
    if ours:
        tracemalloc.start()
    start = tracemalloc.get_traced_memory()[0]
    try:
        with ThreadPoolExecutor(1) as thread:  # one that has no scratch memory yet
            return thread.submit(step_twice).result()
    finally:
        if ours:
            tracemalloc.stop()
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient


_TRACED = 1 << 27  # bytes of activations in the step that is traced

Stage = tuple[str, int, int]  # op, bytes of kept arrays, bytes of gradients


def _weigh(model: Module, input_shape: tuple[int, ...], n: int) -> list[Stage]:
    """The bytes alive during each node's backward pass, in the order of the pass."""
    device, dtype = _place(model)
    x = Tensor(to_device(np.zeros((n, *input_shape), dtype), device))
    with _as_if_training(model), enable_grad():
        y = model(x)
    if not isinstance(y, Tensor) or y._node is None:
        raise GraphError("training_memory: the model's output does not depend on a parameter")
    nodes = tape(y)
    results = {t._node: t for node in nodes for t in node.inputs if isinstance(t, Tensor)}
    results[y._node] = y
    elsewhere = {id(_base(x.data))} | {id(_base(t.data)) for _, t in model._named_tensors()}
    kept = _bytes_kept(nodes, results, y, elsewhere)
    gradients = _bytes_of_gradients(nodes, results, y)
    return [(node.name, a, b) for node, a, b in zip(nodes, kept, gradients, strict=True)]


Results = dict[Function | None, Tensor]  # a node: what it computed


def _bytes_kept(
    nodes: list[Function], results: Results, y: Tensor, elsewhere: set[int]
) -> list[int]:
    """At each node: what it and the nodes still to come hold, without the arrays `elsewhere`.

    The caller keeps the logits y, and the backward pass a node's result while it is at the node.
    """
    weight = {id(_base(y.data)): int(_base(y.data).nbytes)}
    holders = Counter(weight.keys())
    held = []
    for node in nodes:
        arrays = {id(a): int(a.nbytes) for a in map(_base, _kept(node)) if id(a) not in elsewhere}
        weight |= arrays
        holders.update(list(arrays))
        held.append(arrays)
    sizes = []
    for node, arrays in zip(nodes, held, strict=True):
        own = _base(results[node].data)
        extra = 0 if holders[id(own)] or id(own) in elsewhere else int(own.nbytes)
        sizes.append(extra + sum(weight[key] for key, count in holders.items() if count))
        holders.subtract(list(arrays))
    return sizes


def _bytes_of_gradients(nodes: list[Function], results: Results, y: Tensor) -> list[int]:
    """At each node: the parameters' gradients so far, and those on their way to other nodes."""
    finished: dict[int, int] = {}  # by parameter
    pending: dict[Function | None, int] = {y._node: int(y.data.nbytes)}
    sizes = []
    for node in nodes:
        added = 0  # to a gradient that is there already, and dropped
        for wanted, needed in zip(node.inputs, node.needs, strict=True):
            if not needed or not isinstance(wanted, Tensor):
                continue
            size = int(wanted.data.nbytes)
            if wanted._node is None:
                finished[id(wanted)] = size
            elif _base(results[node].data) is _base(wanted.data):  # a view's gradient is one of dy
                pending[wanted._node] = pending.pop(node, size)
            elif wanted._node in pending:
                added += size
            else:
                pending[wanted._node] = size
        sizes.append(sum(finished.values()) + sum(pending.values()) + added)
        pending.pop(node, None)
    return sizes


def _kept(node: Function) -> Iterator[Array]:
    """The arrays that a node keeps alive: saved ones, and its inputs'."""
    yield from (t.data for t in node.inputs if isinstance(t, Tensor))
    waiting: list[Any] = [node.saved]
    while waiting:
        value = waiting.pop()
        if isinstance(value, tuple | list):
            waiting += value
        elif isinstance(value, dict):
            waiting += value.values()
        elif hasattr(value, "nbytes") and hasattr(value, "ndim") and value.ndim:
            yield value
        elif hasattr(value, "__dict__"):  # an object that holds arrays
            waiting += vars(value).values()


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
    device = _place(model)[0]
    with working_on(device):
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
        with working_on(device):
            for tensor, values in buffers:
                tensor.data[...] = values
        for generator, state in zip(generators, states, strict=True):
            generator.bit_generator.state = state
