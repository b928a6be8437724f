"""Predict the memory of a training step from the tape of two tiny batches.

The forward pass runs on 2 and on 3 images.  For each, the tape is walked in the order of the
backward pass, and the arrays alive at each node are summed: saved arrays, inputs and pending
gradients.  Each sum is linear in the batch size, so two batches determine it for all sizes.

The temporary memory inside operations is not linear, because operations split large batches into
blocks.  On a CPU it is measured in a traced step.  That step's batch has 128 MiB of activations, so
that blocks have their full size or nearly so.
"""

import copy
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from gpucnn.autograd import Function, enable_grad, saved_arrays, tape
from gpucnn.cpu import alone, get_num_threads, scratch_bytes
from gpucnn.device import CPU, Array, array_module, to_device, working_on
from gpucnn.errors import ArgumentError, GraphError
from gpucnn.nn import Module
from gpucnn.nn.summary import device_and_dtype
from gpucnn.random import default_generator
from gpucnn.tensor import Tensor


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a training step, by purpose."""

    batch_size: int
    parameters: int  # buffers included
    optimizer: int
    images: int
    activations: int  # saved by the forward pass and still alive at the peak
    gradients: int  # of parameters and activations, at the peak
    work: int  # temporary memory of operations, in all threads; 0 on a GPU, where it is unknown
    at: str  # the op whose backward pass is the peak

    @property
    def peak(self) -> int:
        """Bytes in total."""
        kept = self.parameters + self.optimizer + self.images
        return kept + self.activations + self.gradients + self.work


def training_memory(
    model: Module, input_shape: tuple[int, ...], batch_size: int, optimizer_states: int = 1
) -> Memory:
    """Predict the peak memory of one training step on `batch_size` images of input_shape (H, W, C).

    optimizer_states is the number of arrays that the optimizer keeps per parameter: 1 for SGD's
    velocity (always allocated), 2 for Adam's moments.

    The prediction excludes images that a loader prefetches, what Python, NumPy, BLAS and CuPy
    allocate for themselves, and fragmentation; on a GPU also the temporary memory of operations.
    benchmarks/training_memory.py compares it with the growth of a process.  On one thread and on
    two it was within 2 % for alexnet_keras, 9 % below for alexnet_cifar10_bn and 15 % below for
    alexnet_cifar10; for lenet 5 % below on one thread and 9 % above on two.  The model is left
    unchanged.

    Raises ArgumentError for batch_size < 1 or optimizer_states < 0; GraphError if the model's
    output does not depend on a parameter.
    """
    if batch_size < 1 or optimizer_states < 0:
        raise ArgumentError(
            "training_memory: expected batch_size >= 1 and optimizer_states >= 0, "
            f"got {batch_size}, {optimizer_states}"
        )
    sizes = (2, 3)
    small, large = (_live_bytes(model, input_shape, size) for size in sizes)
    weights = sum(parameter.data.nbytes for parameter in model.parameters())
    buffers = sum(buffer.data.nbytes for _, buffer in model.named_buffers())

    def peak(n: int) -> Stage:
        """For n images, the stage at which most bytes are alive."""

        def extrapolate(a: int, b: int) -> int:
            return a + (b - a) * (n - sizes[0])

        return max(
            (
                (one[0], extrapolate(one[1], other[1]), extrapolate(one[2], other[2]))
                for one, other in zip(small, large, strict=True)
            ),
            key=lambda stage: stage[1] + stage[2],
        )

    device, dtype = device_and_dtype(model)
    image = int(np.prod(input_shape)) * np.dtype(dtype).itemsize
    work = 0
    if device == CPU:
        n = min(batch_size, max(2, _TRACED // max(1, peak(2)[1] // 2)))
        allocated, scratch = _trace_step(model, input_shape, n)
        work = max(0, allocated - sum(peak(n)[1:])) + get_num_threads() * scratch
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


def _trace_step(model: Module, input_shape: tuple[int, ...], n: int) -> tuple[int, int]:
    """Bytes of a step on n images: (peak without scratch memory, scratch memory of one thread)."""
    x = Tensor(np.zeros((n, *input_shape), device_and_dtype(model)[1]))
    parameters = model.parameters()
    before = [parameter.grad for parameter in parameters]

    def step_twice() -> tuple[int, int]:
        with _training_mode(model), enable_grad(), alone():
            for _ in range(2):  # the first step allocates the scratch memory
                tracemalloc.reset_peak()
                y = model(x)
                for parameter in parameters:
                    parameter.grad = None
                y.backward(np.ones_like(y.data))
                del y
        scratch = scratch_bytes()
        return tracemalloc.get_traced_memory()[1] - start - scratch, scratch

    started_here = not tracemalloc.is_tracing()
    if started_here:
        tracemalloc.start()
    start = tracemalloc.get_traced_memory()[0]
    try:
        with ThreadPoolExecutor(1) as thread:  # a new one has no scratch memory
            return thread.submit(step_twice).result()
    finally:
        if started_here:
            tracemalloc.stop()
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient


_TRACED = 1 << 27  # bytes of activations in the traced step

Stage = tuple[str, int, int]  # a node's op, bytes of saved arrays, bytes of gradients


def _live_bytes(model: Module, input_shape: tuple[int, ...], n: int) -> list[Stage]:
    """The bytes alive during each node's backward pass, in the order of the pass."""
    device, dtype = device_and_dtype(model)
    x = Tensor(to_device(np.zeros((n, *input_shape), dtype), device))
    with _training_mode(model), enable_grad():
        y = model(x)
    if not isinstance(y, Tensor) or y._node is None:
        raise GraphError("training_memory: the model's output does not depend on a parameter")
    nodes = tape(y)
    results = {t._node: t for node in nodes for t in node.inputs if isinstance(t, Tensor)}
    results[y._node] = y
    excluded = {id(_base(x.data))} | {id(_base(t.data)) for _, t in model._named_tensors()}
    saved = _bytes_saved(nodes, results, y, excluded)
    gradients = _bytes_of_gradients(nodes, results, y)
    return [(node.name, a, b) for node, a, b in zip(nodes, saved, gradients, strict=True)]


Results = dict[Function | None, Tensor]  # {node: its result}


def _bytes_saved(
    nodes: list[Function], results: Results, y: Tensor, excluded: set[int]
) -> list[int]:
    """At each node: bytes held by it and the remaining nodes, without the arrays `excluded`.

    The caller holds the logits y, and the backward pass holds a node's result during its turn.
    """
    size = {id(_base(y.data)): int(_base(y.data).nbytes)}
    references = Counter(size.keys())
    held = []
    for node in nodes:
        arrays = {
            id(a): int(a.nbytes) for a in map(_base, _saved_arrays(node)) if id(a) not in excluded
        }
        size |= arrays
        references.update(list(arrays))
        held.append(arrays)
    totals = []
    for node, arrays in zip(nodes, held, strict=True):
        own = _base(results[node].data)
        extra = 0 if references[id(own)] or id(own) in excluded else int(own.nbytes)
        totals.append(extra + sum(size[key] for key, count in references.items() if count))
        references.subtract(list(arrays))
    return totals


def _bytes_of_gradients(nodes: list[Function], results: Results, y: Tensor) -> list[int]:
    """At each node: bytes of the parameters' gradients so far, and of gradients not yet used."""
    finished: dict[int, int] = {}  # by parameter
    pending: dict[Function | None, int] = {y._node: int(y.data.nbytes)}
    totals = []
    for node in nodes:
        added = 0  # temporaries: summed into an existing gradient, then freed
        for x, needed in zip(node.inputs, node.needs, strict=True):
            if not needed or not isinstance(x, Tensor):
                continue
            size = int(x.data.nbytes)
            if x._node is None:
                finished[id(x)] = size
            elif _base(results[node].data) is _base(x.data):  # a view: its gradient is a view of dy
                pending[x._node] = pending.pop(node, size)
            elif x._node in pending:
                added += size
            else:
                pending[x._node] = size
        totals.append(sum(finished.values()) + sum(pending.values()) + added)
        pending.pop(node, None)
    return totals


def _saved_arrays(node: Function) -> Iterator[Array]:
    """The arrays that a node keeps alive: its inputs, and those anywhere in its saved state."""
    yield from (t.data for t in node.inputs if isinstance(t, Tensor))
    yield from (array for array in saved_arrays(node) if array.ndim)


def _base(x: Array) -> Array:
    """The array that owns x's memory."""
    xp = array_module(x)
    while isinstance(x.base, xp.ndarray):
        x = x.base
    return x


@contextmanager
def _training_mode(model: Module) -> Iterator[None]:
    """Training mode inside the block; restores modes, buffers and generators afterwards."""
    modules = [module for _, module in model.named_modules()]
    modes = [module.training for module in modules]
    device = device_and_dtype(model)[0]
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
