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
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from gpucnn.autograd import Function, enable_grad, tape
from gpucnn.cpu import alone, get_num_threads, new_scratch, scratch_bytes
from gpucnn.device import CPU, Array, to_device, working_on
from gpucnn.distributed.sync_batch_norm import unsynchronized
from gpucnn.errors import ArgumentError, GraphError
from gpucnn.graph_memory import base, saved_arrays
from gpucnn.nn import Module
from gpucnn.nn.summary import device_and_dtype
from gpucnn.precision import autocast_of
from gpucnn.random import default_generator
from gpucnn.tensor import Tensor

_SIZES = (2, 3)  # images in the two batches whose tapes are walked
_LARGE = 1 << 12  # images
TRACED = 1 << 27  # bytes of activations that blocks of full size need

Stage = tuple[str, int, int]  # a node's op, bytes of saved arrays, bytes of gradients


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a training step, by purpose."""

    batch_size: int
    parameters: int  # with buffers, and half-precision copies of weights on a GPU
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
    model: Module,
    input_shape: tuple[int, ...],
    batch_size: int,
    optimizer_states: int = 1,
    precision: str | None = None,
) -> Memory:
    """Predict the peak memory of one training step on `batch_size` images of input_shape (H, W, C).

    optimizer_states is the number of arrays that the optimizer keeps per parameter: 1 for SGD's
    velocity (always allocated), 2 for Adam's moments.  precision is the Trainer's.  In "bf16" and
    "fp16" most of a GPU's activations and their gradients take half the bytes, and copies of
    weights in half precision count as parameters; the CPU computes in float32 and saves little.

    The prediction excludes images that a loader prefetches, what Python, NumPy, BLAS and CuPy
    allocate for themselves, and fragmentation; on a GPU also the temporary memory of operations.
    benchmarks/training_memory.py compares it with the growth of a process.  On one thread and on
    two, for four models, it was 1 to 12 % below that in fp32, and 5 to 19 % below in bf16.  The
    model is left unchanged.

    Raises ArgumentError for batch_size < 1, optimizer_states < 0 or an unknown precision;
    DtypeError for "bf16" without the package ml_dtypes; GraphError if the model's output does not
    depend on a parameter.
    """
    if batch_size < 1 or optimizer_states < 0:
        raise ArgumentError(
            "training_memory: expected batch_size >= 1 and optimizer_states >= 0, "
            f"got {batch_size}, {optimizer_states}"
        )
    growth = Growth(model, input_shape, precision)
    weights = sum(parameter.data.nbytes for parameter in model.parameters())
    buffers = sum(buffer.data.nbytes for _, buffer in model.named_buffers())
    work = 0
    if growth.device == CPU:
        n = min(batch_size, max(2, TRACED // growth.per_image))
        temporary, scratch = growth.measure(n)
        work = temporary + get_num_threads() * scratch
    name, activations, gradients = growth.stage(batch_size)
    return Memory(
        batch_size,
        weights + buffers + growth.copies,
        weights * optimizer_states,
        batch_size * growth.image,
        activations,
        gradients,
        work,
        name,
    )


class Growth:
    """The memory of a training step as a function of the batch size.

    device    the model's
    image     the bytes of one image
    copies    the bytes of half-precision copies of weights, kept from step to step
    per_image the bytes of activations that one more image of a large batch adds

    precision is the Trainer's.
    """

    def __init__(
        self, model: Module, input_shape: tuple[int, ...], precision: str | None = None
    ) -> None:
        self._model, self._input_shape, self._precision = model, input_shape, precision
        self.device, dtype = device_and_dtype(model)
        with autocast_of(precision, self.device):
            measured = [_live_bytes(model, input_shape, size) for size in _SIZES]
        self._stages = [stages for stages, _ in measured]
        self.copies = measured[0][1]
        # Not the activations over the images: rounded weights, which the CPU saves, are constant.
        self.per_image = max(1, (self.stage(_LARGE)[1] - self.stage(2)[1]) // (_LARGE - 2))
        self.image = int(np.prod(input_shape)) * np.dtype(dtype).itemsize

    def stage(self, n: int) -> Stage:
        """For n images, the stage at which most bytes are alive."""

        def extrapolate(a: int, b: int) -> int:
            return a + (b - a) * (n - _SIZES[0])

        return max(
            (
                (one[0], extrapolate(one[1], other[1]), extrapolate(one[2], other[2]))
                for one, other in zip(*self._stages, strict=True)
            ),
            key=lambda stage: stage[1] + stage[2],
        )

    def measure(self, n: int) -> tuple[int, int]:
        """Run a step on n images on the CPU: (bytes of temporaries, scratch bytes of a thread)."""
        with autocast_of(self._precision, CPU):
            allocated, scratch = _trace_step(self._model, self._input_shape, n)
        return max(0, allocated - sum(self.stage(n)[1:])), scratch


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
        with new_scratch():
            return step_twice()
    finally:
        if started_here:
            tracemalloc.stop()
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient


def _live_bytes(model: Module, input_shape: tuple[int, ...], n: int) -> tuple[list[Stage], int]:
    """The bytes alive during each node's backward pass, in the order of the pass.

    And, not included, the bytes of the half-precision copies that the forward pass keeps beside
    weights (ops/_half.py).
    """
    device, dtype = device_and_dtype(model)
    x = Tensor(to_device(np.zeros((n, *input_shape), dtype), device))
    with _training_mode(model), enable_grad():
        y = model(x)
    if not isinstance(y, Tensor) or y._node is None:
        raise GraphError("training_memory: the model's output does not depend on a parameter")
    nodes = tape(y)
    results = {t._node: t for node in nodes for t in node.inputs if isinstance(t, Tensor)}
    results[y._node] = y
    copies = _half_copies(model)  # first: reading .data drops them
    kept = [x.data, *(t.data for _, t in model._named_tensors()), *copies]
    excluded = {id(base(array)) for array in kept}
    saved = _bytes_saved(nodes, results, y, excluded)
    gradients = _bytes_of_gradients(nodes, results, y)
    stages = [(node.name, a, b) for node, a, b in zip(nodes, saved, gradients, strict=True)]
    return stages, sum(int(copy.nbytes) for copy in copies)


Results = dict[Function | None, Tensor]  # {node: its result}


def _bytes_saved(
    nodes: list[Function], results: Results, y: Tensor, excluded: set[int]
) -> list[int]:
    """At each node: bytes held by it and the remaining nodes, without the arrays `excluded`.

    The caller holds the logits y, and the backward pass holds a node's result during its turn.
    """
    size = {id(base(y.data)): int(base(y.data).nbytes)}
    references = Counter(size.keys())
    held = []
    for node in nodes:
        arrays = {
            id(a): int(a.nbytes) for a in map(base, _saved_arrays(node)) if id(a) not in excluded
        }
        size |= arrays
        references.update(list(arrays))
        held.append(arrays)
    totals = []
    for node, arrays in zip(nodes, held, strict=True):
        own = base(results[node].data)
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
            elif base(results[node].data) is base(x.data):  # a view: its gradient is a view of dy
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


def _half_copies(model: Module) -> list[Array]:
    caches = [parameter._cache or {} for parameter in model.parameters()]
    return [copy for cache in caches for key, copy in cache.items() if _is_half_copy(key)]


def _is_half_copy(key: object) -> bool:
    return isinstance(key, tuple) and key[:1] == ("half",)


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
        with unsynchronized():
            yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        with working_on(device):
            for tensor, values in buffers:
                tensor.data[...] = values
        for generator, state in zip(generators, states, strict=True):
            generator.bit_generator.state = state
