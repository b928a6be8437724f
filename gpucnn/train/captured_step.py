"""One captured step: what its graph reads and writes, and what Python does in each replay.

    one process         copy of what changes -> graph of the whole step

    several processes   copy -> graph of forward and backward
                             -> host: sums of loss, running statistics and gradients over the ranks
                        copy -> graph of the update

The sums stay outside of the graphs, so a rank that replays and one that runs eagerly make the same
calls.
"""

import traceback
import weakref
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gpucnn import cuda, nn, optim
from gpucnn.cuda.graph import Graph
from gpucnn.cuda.step_values import NotCapturable
from gpucnn.data.on_device import DrawnBatch, OnDevice, drawn_batch
from gpucnn.device import Array
from gpucnn.optim.half_copies import HalfCopy
from gpucnn.tensor import Tensor
from gpucnn.train.dependencies import Dependencies, Trace, Undo
from gpucnn.train.divergence import StepWatch
from gpucnn.train.metrics import RunningMetrics, Totals
from gpucnn.train.ranks import OneRank
from gpucnn.watching import watching

_ROOM = 64 * 1024  # bytes for what changes from step to step, besides the batch

Key = tuple[Any, ...]


class Run(Protocol):
    """What a captured step uses of its Trainer."""

    model: nn.Module
    optimizer: optim.Optimizer
    loader: Any
    loss: Any
    metrics: RunningMetrics
    ranks: OneRank
    step: int


class Work(Protocol):
    """What it uses of the Trainer's Guard."""

    watch: StepWatch

    def gradients(self, images: Tensor, labels: Tensor) -> Any:
        """Forward and backward on this rank: what `ranks.exchange` takes."""

    def update(self) -> Array:
        """The update: the guard."""


class _Current:
    """The batch of the step that is about to be replayed."""

    batch: DrawnBatch


class CapturedStep:
    """One captured step, for batches of one shape."""

    def __init__(self, key: Key, run: Run, images: Tensor, labels: Tensor) -> None:
        device = images.device
        xp = device.xp
        self._key = key
        self._parts = _parts(run)
        drawn = drawn_batch(images, labels)
        self._source: OnDevice | None = drawn.source if drawn else None
        self._current = _Current()
        self._images = self._labels = None  # static arrays for batches from elsewhere
        size = _ROOM
        if drawn is not None:
            size += drawn.draws.nbytes + drawn.labels.nbytes
            self._draws = drawn.draws.shape
        else:
            self._images = xp.empty(images.shape, images.dtype)
            self._labels = xp.empty(labels.shape, labels.dtype)
        self._sums = (xp.zeros((), np.float64), xp.zeros((), np.int64))
        self._report = xp.zeros(2, np.float64)  # the mean loss, and the guard
        self._owner: weakref.ref[RunningMetrics] | None = None  # of the sums
        self._gradients: list[tuple[Tensor, Array | None]] = []
        self._versions: list[tuple[Tensor, int]] = []
        self._copies: list[HalfCopy] = []  # that the step reads and writes
        self.replays = 0
        self.graph = Graph(device, size)
        # With several ranks, graph is forward and backward, and this the update.
        self._update = Graph(device, _ROOM) if run.ranks.exchanges else None

    def takes(self, key: Key, images: Tensor, labels: Tensor) -> bool:
        """Whether a batch fits."""
        if key != self._key or images.requires_grad:
            return False
        drawn = drawn_batch(images, labels)
        return (drawn.source if drawn else None) is self._source or self._source is None

    def changed(self, run: Run, guard: Work) -> str:
        """What the graph depends on and has changed; "" if nothing has."""
        if any(a is not b for a, b in zip(_parts(run), self._parts, strict=True)):
            return "the trainer's model, optimizer, loss, loader or ranks"
        return "the guard" if guard.watch is not self._watch else self._dependencies.changed()

    def capture(self, run: Run, guard: Work, before: Trace) -> tuple[str, bool]:
        """Capture a step like the traced one; return why that is impossible, or "".

        Nothing is computed, and on the host everything is as before.  The second result is False
        if another attempt may succeed.
        """
        differs = ""
        xp = self.graph.device.xp
        self._dependencies = Dependencies(run.model, run.optimizer, run.loss, self.graph.device)
        self._watch = guard.watch
        self._copies = run.optimizer.offered_copies()
        undo = Undo(run.model, run.optimizer)
        trace = Trace(self.graph.keep)
        one = xp.zeros((), np.float64)
        for correct in (xp.zeros((), np.int64), one):  # compiled
            self._add(Totals(0, one, correct, one), xp.zeros(1, np.int32))
        xp.get_default_memory_pool().free_all_blocks()  # for the graph's own pool
        try:
            with self.graph.capturing():
                with watching(trace):
                    self._own = guard.gradients(*self._batch())
                if self._update is None:
                    self._finish(run, guard)
            if self._update is not None:
                with self._update.capturing():
                    self._finish(run, guard)
            reason = undo.why_not()
            differs = "" if reason else trace.difference(before)
            self._versions = undo.versions()
            self._gradients = [(p, p.grad) for p in run.optimizer.parameters]
        except MemoryError:
            raise
        except NotCapturable as error:
            reason = str(error)
        except Exception as error:
            reason = _explained(error)
        finally:
            undo.restore()
            for parameter in run.optimizer.parameters:
                parameter.grad = None
        return reason or differs, not differs

    def _batch(self) -> tuple[Tensor, Tensor]:
        """The tensors that the captured step reads."""
        if self._source is None:
            return Tensor(self._images), Tensor(self._labels)
        shapes, current = (self._draws, self._key[2]), self._current
        draws = cuda.step_value(lambda: current.batch.draws, np.int64, shapes[0])
        labels = cuda.step_value(lambda: current.batch.labels, self._key[3], shapes[1])
        return Tensor(self._source.batch(draws)), Tensor(labels)

    def _finish(self, run: Run, guard: Work) -> None:
        """What the step does once the sums over the ranks are there."""
        totals = run.ranks.finished(self._own)
        self._add(totals, guard.update())
        self._count = totals.count

    def _add(self, totals: Totals, refused: Array) -> None:
        """Add a batch to the sums, and report its loss."""
        loss, correct = self._sums
        loss += totals.loss.reshape(())
        correct += totals.correct.astype(np.int64, copy=False)
        self._report[0] = totals.mean.reshape(())
        self._report[1] = refused[0]

    # --- replay ---

    def replay(self, run: Run, guard: Work, images: Tensor, labels: Tensor) -> None:
        """Do a step: what Python does in an eager step, a copy, and the launch.

        With several ranks there are two of each, with `ranks.exchange` between them.
        """
        optimizer, lr = run.optimizer, run.optimizer.lr
        optimizer._check_groups()
        self._take_over(run.metrics)
        if self._source is None:
            self._images[...] = images._data  # type: ignore[index]
            self._labels[...] = labels._data  # type: ignore[index]
        else:
            drawn = drawn_batch(images, labels)
            assert drawn is not None  # takes() has checked
            self._current.batch = drawn
        for copy in self._copies:
            copy.refresh()
        self.graph.replay()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        if self._update is not None:
            run.ranks.exchange(self._own)
            self._update.replay()
        self.replays += 1
        optimizer.steps += 1
        optimizer._bounds = None
        for tensor, by in self._versions:
            tensor._version += by
            tensor._cache = None
        for copy in self._copies:
            copy.offer()
        run.metrics.count += self._count
        run.metrics.last_loss = self._report[:1]
        guard.watch.send(lr, run.step, self._report)

    def _take_over(self, metrics: RunningMetrics) -> None:
        """Let the graph add to `metrics`."""
        if metrics.has(self._sums):
            return
        owner = None if self._owner is None else self._owner()
        if owner is not None and owner.has(self._sums):
            owner.copy_sums()
        metrics.move_to(self._sums)
        self._owner = weakref.ref(metrics)


def _parts(run: Run) -> tuple[Any, ...]:
    return run.model, run.optimizer, run.loss, run.loader, run.ranks


def _explained(error: Exception) -> str:
    """Why the step cannot be captured, where it says so."""
    text = str(error).partition("\n")[0]
    if "transfers are disallowed" in text:
        text = "it copies a value from or to the host"
    elif isinstance(error, NotImplementedError):
        text = "it uses a matrix product of CuPy's"
    else:
        text = f"{type(error).__name__}: {text}"
    frames = traceback.extract_tb(error.__traceback__)
    ours = str(Path(cuda.__file__).parent.parent)
    users = [f for f in frames if ours not in f.filename and "cupy" not in f.filename]
    where = (users or frames)[-1]
    return f"{text} ({Path(where.filename).name}:{where.lineno})"
