"""What a Trainer does together with those of the other ranks."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn import nn
from gpucnn.checkpoint import Checkpoint
from gpucnn.device import Array, array_module, to_host, working_on
from gpucnn.distributed import Communicator, DistributedOptimizer, SyncBatchNorm
from gpucnn.distributed.optimizer import is_quiet
from gpucnn.errors import ArgumentError, CheckpointError, DistributedError, kind
from gpucnn.nn import Module
from gpucnn.optim import Optimizer
from gpucnn.random import BatchPart, batch_part
from gpucnn.tensor import Tensor
from gpucnn.train.metrics import Evaluation, Metric, Totals, batch_totals, evaluate

_CHECK_EVERY = 100  # steps


class OneRank:
    """A Trainer alone: its batches are whole."""

    rank = 0
    exchanges = False  # whether a step needs sums over the ranks: between two graphs
    place: BatchPart | None = None  # of this step's images in the batch; None: they are all
    elsewhere = ""  # why another rank runs this step eagerly

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer

    def part(self, loader: Any) -> Any:
        """A loader of this rank's part of the batches."""
        return loader

    def start(self, trainer: Any, epochs: int) -> None:
        """Take over the state of rank 0's trainer; DistributedError if the ranks are not alike."""

    def begin(self, step: int, loader: Any, count: int, stop: int | None, eager: str = "") -> bool:
        """Agree on step number `step`, whose batch holds `count` images here, and on a stop.

        stop is the exit status with which this rank was asked to stop; None: it was not.
        eager says why this rank replays no graph; "": it may.
        Returns whether the whole batch holds an image.
        """
        return True

    def agree(self, stop: int | None) -> None:
        """Agree on a stop between two epochs."""

    def stopping(self, stop: int | None) -> int | None:
        """The exit status with which all ranks stop now; None: they go on."""
        return stop

    def drawing(self) -> AbstractContextManager[None]:
        """Inside the block, dropout draws as for the whole batch."""
        return nullcontext()

    def totals(self, loss: Tensor, logits: Tensor, labels: Tensor) -> Totals:
        """The sums over the whole batch; running statistics become those of all ranks."""
        return batch_totals(loss, logits, labels)

    def backward(self, loss: Tensor, scale: Array | None = None) -> None:
        """Give each parameter the gradient of the whole batch's mean loss, times `scale`.

        scale has the loss's shape and dtype; None is 1.
        """
        self._optimizer.zero_grad()
        loss.backward(scale)

    # --- a captured step: gradients() in a graph, exchange(), finished() in a graph ---

    def unfit(self) -> str:
        """Why no step can be captured; "" if nothing is known."""
        return ""

    def owns(self, hook: Any) -> bool:
        """Whether a parameter's hook is one of these ranks', which captured steps do not need."""
        return False

    def gradients(
        self, loss: Tensor, logits: Tensor, labels: Tensor, scale: Array | None = None
    ) -> Any:
        """`totals` and `backward` without the other ranks: what they need is in the result."""
        totals = batch_totals(loss, logits, labels)
        self.backward(loss, scale)
        return totals

    def exchange(self, own: Any) -> None:
        """Add what gradients() has returned, and the gradients, over the ranks, in place."""

    def finished(self, own: Any) -> Totals:
        """What `totals` returns, after the exchange."""
        totals: Totals = own
        return totals

    def first(self, text: str) -> str:
        """The first rank's text that is not empty."""
        return text

    def here(self, text: str) -> str:
        """What this rank alone has found."""
        return text

    def evaluate(
        self, model: Module, loader: Any, metrics: Mapping[str, Metric] | None = None
    ) -> Evaluation:
        """Evaluate on the images of all ranks."""
        return evaluate(model, loader, None, metrics)

    def any(self, flag: bool) -> bool:
        """Whether `flag` is True on any rank."""
        return flag

    def barrier(self) -> None:
        """Wait for all ranks."""

    def end_alike(self) -> None:
        """Note that all ranks end now, for the same reason."""


class ManyRanks(OneRank):
    """One rank of several, each with a part of every batch.

    model and optimizer are this rank's copies; `grad_dtype` is as for DistributedOptimizer.
    """

    exchanges = True

    def __init__(
        self,
        comm: Communicator,
        model: Module,
        optimizer: Optimizer,
        grad_dtype: str | None = None,
    ) -> None:
        super().__init__(optimizer)
        self.comm = comm
        self.rank = comm.rank
        self._model = model
        self._reducer = DistributedOptimizer(optimizer, comm, grad_dtype=grad_dtype)
        self._reducer._sync = False  # a callback's backward pass is rank 0's alone
        self.place = self._part = BatchPart(0, 0, 0)
        self._stopping: int | None = None
        self._statistics = [
            buffer
            for _, module in model.named_modules()
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
            and not isinstance(module, SyncBatchNorm)
            for buffer in module.buffers()
        ]

    def part(self, loader: Any) -> Any:
        if not hasattr(loader, "part"):
            raise ArgumentError(
                f"Trainer: expected a data.DataLoader to divide among {self.comm.size} ranks, "
                f"got {kind(loader)}"
            )
        return loader.part(self.comm.rank, self.comm.size)

    def start(self, trainer: Any, epochs: int) -> None:
        found = self.comm.gather(_terms(trainer, epochs))
        for rank, terms in enumerate(found):
            for what, value in terms.items():
                if value != found[0][what]:
                    self.end_alike()
                    raise DistributedError(
                        f"fit: {what} is {value} on rank {rank}, {found[0][what]} on rank 0\n"
                        "  build the same Trainer on all ranks, and call fit alike"
                    )
        state = None
        if self.rank == 0:
            tensors, info = trainer._state()
            arrays = {name: to_host(x) for name, x in tensors.items()}
            state = Checkpoint(Path("rank 0"), arrays, info)
        try:
            trainer.resume(self.comm.share(state))
        except CheckpointError as error:
            raise DistributedError(
                f"fit: rank {self.rank} cannot start from rank 0's model, optimizer, scheduler and "
                f"data\n  {error}"
            ) from error

    def begin(self, step: int, loader: Any, count: int, stop: int | None, eager: str = "") -> bool:
        self.comm.ending = False  # a program may train on after an error
        if step % _CHECK_EVERY == 0:
            self._check_alike(step)
        found = self.comm.gather((0 if loader.filled else count, stop, eager))
        counts, stops, reasons = zip(*found, strict=True)
        self._part = BatchPart(sum(counts[: self.rank]), counts[self.rank], sum(counts))
        self.place = self._part
        others = (f"rank {r}: {why}" for r, why in enumerate(reasons) if why and r != self.rank)
        self.elsewhere = next(others, "")
        self._stopping = _first_status(stops)
        return self._part.total > 0

    def agree(self, stop: int | None) -> None:
        self._stopping = _first_status(self.comm.gather(stop))

    def stopping(self, stop: int | None) -> int | None:
        return self._stopping

    def drawing(self) -> AbstractContextManager[None]:
        return batch_part(self._part.start, self._part.count, self._part.total)

    def totals(self, loss: Tensor, logits: Tensor, labels: Tensor) -> Totals:
        sums = self._own_sums(loss, logits, labels)
        self.comm.allreduce(sums)
        return self.finished(sums)

    def _own_sums(self, loss: Tensor, logits: Tensor, labels: Tensor) -> Array:
        """This rank's part of the loss, the correct predictions and the running statistics."""
        count = self._part.count
        size = 2 + sum(buffer.size for buffer in self._statistics)
        sums = array_module(loss.data).zeros(size, np.float64)
        if count:
            own = batch_totals(loss, logits, labels)
            sums[0], sums[1] = own.loss.reshape(()), own.correct
            for place, buffer in self._places():
                sums[place] = buffer.data
                sums[place] *= count
        return sums

    def finished(self, own: Array) -> Totals:
        sums, total = own, self._part.total
        for place, buffer in self._places():
            buffer.data[...] = sums[place] / total
        return Totals(total, sums[0], sums[1], sums[0] / total)

    def _places(self) -> Iterator[tuple[slice, Tensor]]:
        """Each running statistic and its place in the sums of a step."""
        start = 2
        for buffer in self._statistics:
            yield slice(start, start + buffer.size), buffer
            start += buffer.size

    def backward(self, loss: Tensor, scale: Array | None = None) -> None:
        self._reducer.zero_grad()
        with self._reducer._syncing(True):
            loss.backward(self._start(loss, scale))
        self._reducer.reduce()
        self._reducer._forget()

    def _start(self, loss: Tensor, scale: Array | None) -> Array:
        """The gradient of the loss."""
        # The mean over ranks of these is the mean over images.
        weight = self._part.count * self.comm.size / self._part.total
        with working_on(loss.device):
            gradient = array_module(loss.data).full_like(loss.data, weight)
            if scale is not None:
                gradient *= scale
        return gradient

    # --- a captured step ---

    def unfit(self) -> str:
        if any(isinstance(module, SyncBatchNorm) for module in self._model.modules()):
            return "SyncBatchNorm adds over the ranks in the middle of the step"
        return ""

    def owns(self, hook: Any) -> bool:
        return is_quiet(hook)

    def gradients(
        self, loss: Tensor, logits: Tensor, labels: Tensor, scale: Array | None = None
    ) -> Array:
        sums = self._own_sums(loss, logits, labels)
        self._reducer.zero_grad()
        loss.backward(self._start(loss, scale))
        self._reducer._take_all()
        self._reducer._forget()
        return sums

    def exchange(self, own: Array) -> None:
        self.comm.allreduce(own)
        self._reducer._reduce_taken()

    def first(self, text: str) -> str:
        found = enumerate(self.comm.gather(text))
        return next((f"rank {rank}: {text}" for rank, text in found if text), "")

    def here(self, text: str) -> str:
        return f"rank {self.rank}: {text}"

    def evaluate(
        self, model: Module, loader: Any, metrics: Mapping[str, Metric] | None = None
    ) -> Evaluation:
        return evaluate(model, loader, self.comm, metrics)

    def any(self, flag: bool) -> bool:
        return any(self.comm.gather(flag))

    def barrier(self) -> None:
        self.comm.barrier()

    def end_alike(self) -> None:
        self.comm.ending = True

    def _check_alike(self, step: int) -> None:
        """Raise DistributedError, naming rank and parameter, if the ranks' parameters differ."""
        named = list(self._model.named_parameters())
        sums = [parameter.data.sum(dtype=np.float64) for _, parameter in named]
        own = [float(value.item()).hex() for value in sums]  # as text: NaN equals NaN
        for (name, _), values in zip(named, zip(*self.comm.gather(own), strict=True), strict=True):
            usual = max(values, key=values.count)
            others = [rank for rank, value in enumerate(values) if value != usual]
            if others:
                self.end_alike()
                raise DistributedError(
                    f"step {step}: parameter {name} of rank {others[0]} differs from the other "
                    "ranks'\n  change parameters on all ranks alike, or resume from a checkpoint"
                )


def _first_status(stops: Iterable[int | None]) -> int | None:
    return next((status for status in stops if status is not None), None)


def _terms(trainer: Any, epochs: int) -> dict[str, Any]:
    """What the ranks must agree on besides the state of a checkpoint."""
    return {
        "epochs": epochs,
        "on_nan": trainer._guard.mode,
        "precision": trainer._precision.name,
        "the training set": _described(trainer.loader),
        "the test set": _described(trainer.test_loader),
        "the test metrics": ", ".join(trainer.test_metrics) or "None",
    }


def _described(loader: Any) -> str:
    if loader is None:
        return "None"
    text = f"{len(loader.dataset)} images in batches of {loader.batch_size}"
    classes = getattr(loader.dataset, "classes", None)
    if isinstance(classes, tuple | list):
        text += f", classes {', '.join(map(str, classes))[:60]}"
    return text
