"""Batch normalisation by the statistics of all ranks' images."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import numpy as np

from gpucnn import ops
from gpucnn.autograd import Function
from gpucnn.device import Array, array_module
from gpucnn.distributed.communicator import Communicator, check_communicator
from gpucnn.errors import ArgumentError
from gpucnn.nn import BatchNorm1d, BatchNorm2d, Module
from gpucnn.ops._exact import narrowed, wide
from gpucnn.ops.batch_norm.op import (
    check_count,
    checked,
    contiguous,
    gradient_sums,
    input_gradient,
    normalized,
    parameter,
    statistics,
)
from gpucnn.ops.batch_norm.portable import move
from gpucnn.random import current_part
from gpucnn.tensor import Tensor

_Model = TypeVar("_Model", bound=Module)

_state = threading.local()


@contextmanager
def unsynchronized() -> Iterator[None]:
    """Inside the block, SyncBatchNorm is BatchNorm in this thread: a rank may compute alone."""
    outer = getattr(_state, "unsynchronized", False)
    _state.unsynchronized = True
    try:
        yield
    finally:
        _state.unsynchronized = outer


class SyncBatchNorm(BatchNorm2d):
    """A BatchNorm1d or BatchNorm2d that normalises by the statistics of all ranks' images.

    layer   takes the place of this layer: with its parameters, buffers, settings, hooks and mode
    comm    the ranks; with only one the results are the layer's, bit for bit

    In training, mean and variance are those of the values of all ranks, and the running statistics
    are the same on all of them; backward takes into account that each result depends on the images
    of all ranks.  The gradients of weight and bias are this rank's share: their sum over the ranks
    is the gradient for the whole batch.  A filler image (`gpucnn.random.batch_part` with count 0)
    counts in no statistic, and every gradient that passes it is 0.  Evaluation is BatchNorm's.

    Each forward pass in training is one reduction of 2 C + 1 float64 numbers per rank, each
    backward pass one of 2 C.  All ranks must run the same passes.

    Raises ArgumentError for a layer of another class or another communicator; when called, as
    that layer does, and ShapeError where all ranks together have fewer than two values a channel.
    """

    _shapes = BatchNorm1d._shapes | BatchNorm2d._shapes
    _other = "its channels are the last axis"

    def __init__(self, layer: BatchNorm1d | BatchNorm2d, comm: Communicator) -> None:
        if type(layer) not in _CONVERTIBLE:
            raise ArgumentError(
                "SyncBatchNorm: expected a BatchNorm1d or BatchNorm2d, got a "
                f"{type(layer).__name__}"
            )
        check_communicator("SyncBatchNorm", comm)
        vars(self).update(vars(layer))
        self.comm = comm

    def _normalize(self, x: Tensor, relu: bool, gelu: bool) -> Tensor:
        alone = self.comm.size == 1 or getattr(_state, "unsynchronized", False)
        if alone or not self.training:
            return super()._normalize(x, relu, gelu)
        running = self.running_mean.data, self.running_var.data
        x = checked(x, self.weight, self.bias, *running)
        y = _SyncBatchNorm(running, self.momentum, self.eps, self.comm)(x, self.weight, self.bias)
        return ops.relu(y) if relu else ops.gelu(y) if gelu else y


# Subclasses may compute something else.
_CONVERTIBLE = (BatchNorm1d, BatchNorm2d, SyncBatchNorm)


def convert_sync_batchnorm(model: _Model, comm: Communicator) -> _Model:
    """Replace each BatchNorm1d and BatchNorm2d in `model` by a SyncBatchNorm; return the model.

    The model changes in place; only if it is itself such a layer, the result is another module.
    Parameters, buffers and their names stay, so optimizers and checkpoints fit before and after.

    Raises ArgumentError for a layer of a subclass, whose forward pass is not known; the model is
    unchanged then.
    """
    layers: dict[int, Module] = {}  # by the id of the layer that each replaces
    for name, module in model.named_modules():
        if not isinstance(module, BatchNorm1d | BatchNorm2d):
            continue
        if type(module) not in _CONVERTIBLE:
            raise ArgumentError(
                "convert_sync_batchnorm: expected layers of BatchNorm1d and BatchNorm2d, "
                f"{name or 'the model'} is a {type(module).__name__}\n"
                "  replace it by one of them, or by a layer of your own that is synchronised"
            )
        layers[id(module)] = SyncBatchNorm(module, comm)
    return cast(_Model, _replaced(model, layers))


def _replaced(value: Any, layers: dict[int, Module]) -> Any:
    """value, with each module in it that `layers` has by its id replaced; containers in place."""
    if isinstance(value, Module):
        if id(value) in layers:
            return layers[id(value)]
        for name, part in list(vars(value).items()):
            if (new := _replaced(part, layers)) is not part:
                setattr(value, name, new)
    elif isinstance(value, list | deque | dict):
        for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
            if (new := _replaced(item, layers)) is not item:
                value[key] = new
    elif isinstance(value, tuple):
        items = [_replaced(item, layers) for item in value]
        if any(new is not item for new, item in zip(items, value, strict=True)):
            return type(value)._make(items) if hasattr(value, "_make") else type(value)(items)
    return value


class _SyncBatchNorm(Function):
    """Batch normalisation whose sums run over all ranks."""

    name = "batch_norm"

    def __init__(
        self, running: tuple[Array, Array], momentum: float, eps: float, comm: Communicator
    ) -> None:
        self.running, self.momentum, self.eps, self.comm = running, momentum, eps, comm
        part = current_part()
        self.filler = part is not None and part.count == 0

    def forward(self, x: Array, weight: Array, bias: Array) -> Array:
        values = contiguous(x)
        count, mean, var = self._statistics(values)
        scale = 1 / array_module(x).sqrt(var + self.eps)
        unbiased = var * (count / (count - 1))
        mean, scale, unbiased = (a.astype(wide(x.dtype)) for a in (mean, scale, unbiased))
        y = normalized(values, parameter(weight), parameter(bias), mean, scale)
        move(self.running, (mean, unbiased), self.momentum)
        self.saved = (x, weight, mean, scale, count)
        return narrowed(y, x.dtype)

    def _statistics(self, x: Array) -> tuple[Array, Array, Array]:
        """Over all ranks, in float64: a channel's count of values (1,), means and variances (C,).

        Each rank fills its row of a table that is 0 elsewhere, so the reduction rounds nothing.
        """
        channels = x.shape[-1]
        mine = 0 if self.filler else x.size // max(channels, 1)
        table = array_module(x).zeros((self.comm.size, 1 + 2 * channels), np.float64)
        counts, rest = table[:, :1], table[:, 1:]
        means, variances = rest[:, :channels], rest[:, channels:]
        if mine:
            rank = self.comm.rank
            counts[rank] = mine
            means[rank], variances[rank], _ = statistics(x, self.eps)
        self.comm.allreduce(table)
        count = counts.sum(axis=0)
        if mine < 2:  # elsewhere the host need not wait for a GPU
            check_count(int(count.item()), x.shape)
        mean = (counts * means).sum(axis=0) / count
        squares = counts * (variances + (means - mean) ** 2)
        return count, mean, squares.sum(axis=0) / count

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        x, weight, mean, scale, count = self.saved
        xp, wide_dy, x = array_module(x), contiguous(dy), contiguous(x)
        sums = xp.zeros((2, x.shape[-1]), mean.dtype)
        if x.size and not self.filler:
            sums = gradient_sums(wide_dy, x, mean, scale)
        dx = None
        if self.needs[0]:
            total = sums.astype(np.float64)
            self.comm.allreduce(total)
            if self.filler:
                dx = xp.zeros_like(dy)
            else:
                means = (total / count).astype(mean.dtype)
                dx = input_gradient(wide_dy, x, parameter(weight), mean, scale, means, 1)
                dx = narrowed(dx, dy.dtype)
        return dx, narrowed(sums[1], weight.dtype), narrowed(sums[0], weight.dtype)
