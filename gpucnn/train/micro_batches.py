"""A step in parts: gradients of micro-batches add up, in the memory of one of them.

batch of 8 images     | 0 1 2 | 3 4 5 | 6 7 |     micro_batches=3
forward, backward       grad  += grad  += grad    then one update
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpucnn import nn
from gpucnn.device import Array, array_module
from gpucnn.errors import ArgumentError
from gpucnn.integers import is_int
from gpucnn.optim import Optimizer
from gpucnn.tensor import Tensor
from gpucnn.train.metrics import Totals, batch_totals

Forward = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # images, labels -> logits, loss


class MicroBatches:
    """Divides each batch of a Trainer into `count` parts.

    Raises ArgumentError unless count is a positive int, and 1 in one of several processes.
    """

    def __init__(self, count: int, alone: bool) -> None:
        """alone: whether one process trains."""
        if not is_int(count) or count < 1:
            raise ArgumentError(f"Trainer: micro_batches must be a positive int, got {count!r}")
        if count > 1 and not alone:
            raise ArgumentError(
                f"Trainer: micro_batches={count} with comm: a process has a part of each batch "
                "already\n  start more processes, or choose a smaller batch"
            )
        self.count = count

    def rows(self, images: int) -> Iterator[slice]:
        """The rows of each part of a batch; a part without an image is left out."""
        for i in range(self.count):
            part = slice(images * i // self.count, images * (i + 1) // self.count)
            if part.start < part.stop:
                yield part

    def gradients(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        images: Tensor,
        labels: Tensor,
        forward: Forward,
        scale: Callable[[Tensor], Array | None],
    ) -> Totals:
        """Forward and backward of all parts: the totals of the batch.

        Gradients are those of the batch's mean loss, times scale(loss).  Each part normalises with
        its own statistics; running statistics become the mean of what each part makes of them.
        """
        optimizer.zero_grad()
        total, statistics = len(labels), _running_statistics(model)
        before = [buffer.data.copy() for buffer in statistics]
        sums: list[Any] = [0.0] * len(statistics)
        loss_sum: Any = 0.0
        correct: Any = 0
        for rows in self.rows(total):
            count = rows.stop - rows.start
            for buffer, value in zip(statistics, before, strict=True):
                buffer.data[...] = value
            own = labels[rows]
            logits, loss = forward(images[rows], own)
            part = batch_totals(loss, logits, own)
            loss.backward(_start(loss, count / total, scale(loss)))
            del logits, loss  # free the graph
            loss_sum, correct = loss_sum + part.loss.reshape(()), correct + part.correct
            for i, buffer in enumerate(statistics):
                sums[i] = sums[i] + buffer.data.astype(np.float64) * (count / total)
        for buffer, value in zip(statistics, sums, strict=True):
            buffer.data[...] = value
        return Totals(total, loss_sum, correct, loss_sum / total)


def _start(loss: Tensor, weight: float, scale: Array | None) -> Array:
    """Where backward starts: the part's share of the mean."""
    gradient = array_module(loss.data).full_like(loss.data, weight)
    return gradient if scale is None else gradient * scale


def _running_statistics(model: nn.Module) -> list[Tensor]:
    return [
        buffer
        for _, module in model.named_modules()
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.training
        for buffer in module.buffers()
    ]
