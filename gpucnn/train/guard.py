"""A Trainer's steps, with values that are not finite kept out of them."""

import math
import weakref
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

from gpucnn.device import Array
from gpucnn.errors import DivergenceError
from gpucnn.nn import Module
from gpucnn.nn.finite import damaged
from gpucnn.optim import Optimizer
from gpucnn.optim.finite import Overflow, forget_bounds, step_if_finite
from gpucnn.tensor import Tensor
from gpucnn.train.batches import check_logits, check_loss
from gpucnn.train.divergence import Fault, StepWatch, damaged_state, overflowing
from gpucnn.train.metrics import RunningMetrics, Totals
from gpucnn.train.micro_batches import MicroBatches
from gpucnn.train.on_nan import REMEDY, OnNan
from gpucnn.train.ranks import OneRank
from gpucnn.train.replay import Snapshot, replay
from gpucnn.train.step_graph import StepGraph
from gpucnn.train.step_precision import StepPrecision

_NOT_FOUND = "the latest batch, run again, is finite in every layer, forward and backward"


class Run(Protocol):
    """What a Guard uses of its Trainer."""

    model: Module
    optimizer: Optimizer
    loader: Any
    loss: Callable[[Tensor, Tensor], Tensor]
    metrics: RunningMetrics
    ranks: OneRank
    epoch: int
    step: int
    _lr: float


class Guard:
    """Runs the steps of a Trainer, and finds those that are not finite.

    On the CPU, and on a GPU with "skip" or "halve-lr", each step is checked before it changes the
    parameters.  On a GPU with "stop" the kernels leave out what is not finite, and a StepWatch
    learns of it later.  A step that is left out because its scaled gradients overflow is no fault.
    """

    def __init__(
        self,
        run: Run,
        on_nan: str,
        precision: StepPrecision,
        graph: bool | None = None,
        micro_batches: int = 1,
    ) -> None:
        self._run: Run = weakref.proxy(run)  # a cycle would keep a deleted Trainer's memory
        self._precision = precision
        self._on_nan = OnNan(on_nan)
        self.parts = MicroBatches(micro_batches, alone=not run.ranks.exchanges)
        self.watch = StepWatch()
        self.graph = StepGraph(self._run, weakref.proxy(self), graph)
        self._snapshot: Snapshot | None = None  # from before the latest step
        self._latest: tuple[Tensor, Tensor] | None = None  # batch on a GPU
        self.classes = 0  # outputs of the model in the latest step

    @property
    def skipped(self) -> int:
        return self._on_nan.skipped

    @property
    def mode(self) -> str:
        return self._on_nan.mode

    def start_epoch(self) -> None:
        """Forget the model's buffers and the parameters' bounds: both may have changed."""
        self._snapshot = None
        forget_bounds(self._run.optimizer)

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Forward, backward and update; the update is left out if it is not finite."""
        with self._precision.products():
            if images.device.kind == "cpu" or self.mode != "stop":
                self.graph.refuse(f"on_nan={self.mode!r} waits for every step", images.device)
                self._checked_step(images, labels)
            else:
                self._watched_step(images, labels)

    def scheduled(self) -> None:
        """After the scheduler has set the learning rates."""
        self._on_nan.scheduled(self._run.optimizer)

    def _forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and loss, checked."""
        run = self._run
        with self._precision.forward():
            with run.ranks.drawing():
                logits = run.model(images)
            check_logits("Trainer", logits, images, run.loader)
            loss = run.loss(logits, labels)
        check_loss("Trainer", loss)
        self.classes = logits.shape[1]
        return logits, loss

    def _checked_step(self, images: Tensor, labels: Tensor) -> None:
        """Check everything before the parameters change.  The host waits for a GPU."""
        run = self._run
        if self._snapshot is None:
            self._snapshot = Snapshot(run.model)
        self._snapshot.take()
        loss: Tensor | None = None  # whose graph is to be run backward
        if self.parts.count > 1:
            totals = self._gradients_of_parts(images, labels)
        else:
            logits, loss = self._forward(images, labels)
            totals = run.ranks.totals(loss, logits, labels)
            del logits
        value = float(totals.mean.item())
        refused = None
        if math.isfinite(value):
            if loss is not None:
                run.ranks.backward(loss, self._precision.start(loss))
            if self._precision.overflowed(run.optimizer):
                run.metrics.add_totals(totals)
                return
            refused = step_if_finite(run.optimizer)
            if refused is None:
                run.metrics.add_totals(totals)
                self._on_nan.good_step()
                return
        del loss  # free the graph: the replay records another
        if isinstance(refused, Overflow):
            what = "the update overflows"
            where = overflowing(run.model, refused)
        else:
            what = f"the loss is {value}"
            if refused is not None:
                what = f"a gradient is not finite, while the loss is {value:.4g}"
            where = run.ranks.first(self._replay(images, labels, self._snapshot))
        self._snapshot.restore_buffers()
        broken = run.ranks.first(self.damaged())
        text = self._report(Fault(run.step, run._lr, what), where or broken)
        try:
            self._on_nan.bad_step(text, bool(broken), run.optimizer)
        except DivergenceError:
            run.ranks.end_alike()
            raise

    def _watched_step(self, images: Tensor, labels: Tensor) -> None:
        """Step on a GPU that the host does not wait for."""
        run = self._run
        if not self.graph.step(images, labels):
            lr = run.optimizer.lr
            with self.graph.tracing():
                totals, refused = self.work(images, labels)
            self.watch.send(lr, run.step, totals.mean.reshape(()), refused.reshape(()))
            run.metrics.add_totals(totals)
        self._latest = images, labels
        self.stop_if_diverged()

    def work(self, images: Tensor, labels: Tensor) -> tuple[Totals, Array]:
        """Forward, backward and update: the batch's totals, and the guard."""
        if self.parts.count > 1:
            return self._gradients_of_parts(images, labels), self.update()
        run = self._run
        logits, loss = self._forward(images, labels)
        totals = run.ranks.totals(loss, logits, labels)
        run.ranks.backward(loss, self._precision.start(loss))
        return totals, self.update()

    def _gradients_of_parts(self, images: Tensor, labels: Tensor) -> Totals:
        """Forward and backward of all micro-batches, in one process."""
        run, start = self._run, self._precision.start
        return self.parts.gradients(run.model, run.optimizer, images, labels, self._forward, start)

    def gradients(self, images: Tensor, labels: Tensor) -> Any:
        """Forward and backward on this rank, for a graph: see OneRank.gradients."""
        if self.parts.count > 1:
            return self._gradients_of_parts(images, labels)
        logits, loss = self._forward(images, labels)
        return self._run.ranks.gradients(loss, logits, labels, self._precision.start(loss))

    def update(self) -> Array:
        """The optimizer's step; returns its guard."""
        return self.watch.update(self._run.optimizer, self._precision.step)

    def stop_if_diverged(self, wait: bool = False) -> None:
        """Raise DivergenceError if a step that has arrived, or with `wait` any, had a fault."""
        fault = self.watch.first(wait)
        if fault is None:
            return
        self.watch = StepWatch()  # drop the steps after it
        where = ""
        if self._latest is not None:
            where = self._replay(*self._latest)
        where = self._run.ranks.here(where or self.damaged() or _NOT_FOUND)
        raise DivergenceError(f"{self._report(fault, where)}\n  {REMEDY}")

    def _replay(self, images: Tensor, labels: Tensor, snapshot: Snapshot | None = None) -> str:
        run = self._run
        with run.ranks.drawing(), self._precision.products(), self._precision.forward():
            found = (
                replay(run.model, images[rows], labels[rows], run.loss, snapshot)
                for rows in self.parts.rows(len(labels))
            )
            return next(filter(None, found), "")

    def _report(self, fault: Fault, where: str) -> str:
        return (
            f"epoch {self._run.epoch + 1}, step {fault.step + 1}: {fault.what}, at a learning "
            f"rate of {fault.lr:g}\n  {where or _NOT_FOUND}"
        )

    def damaged(self) -> str:
        """Describe the first parameter, running statistic or state that is not finite, or ""."""
        return damaged(self._run.model) or damaged_state(self._run.optimizer)

    def check(self, when: str) -> None:
        """Raise DivergenceError, beginning with `when`, if anything to be saved is not finite."""
        run = self._run
        self.stop_if_diverged(wait=True)
        where = self.damaged()
        if not where and run.metrics.count and not math.isfinite(run.metrics.loss):
            where = f"the training loss is {run.metrics.loss}"
        if where:
            raise DivergenceError(
                f"{when}: training has diverged, at a learning rate of {run._lr:g}\n"
                f"  {where}\n  {REMEDY}"
            )

    def end_epoch(self) -> None:
        """Raise DivergenceError if the epoch has left anything not finite, or has no good step."""
        run = self._run
        self.check(f"epoch {run.epoch + 1}, step {run.step}")
        self._latest = None
        if run.metrics.count == 0:
            run.ranks.end_alike()
            raise DivergenceError(f"epoch {run.epoch + 1}: no step was finite\n  {REMEDY}")

    def test_failed(self, loss: float, test_loader: Any) -> NoReturn:
        """Raise DivergenceError for a test loss that is not finite."""
        run = self._run
        run.model.eval()
        with self._precision.products(), self._precision.forward():
            found = (replay(run.model, images, labels) for images, labels in test_loader)
            where = run.ranks.first(next(filter(None, found), "")) or _NOT_FOUND
        run.ranks.end_alike()
        raise DivergenceError(
            f"epoch {run.epoch + 1}, step {run.step}: the test loss is {loss}\n"
            f"  {where}\n  {REMEDY}"
        )

    def state_dict(self) -> dict[str, Any]:
        return self._on_nan.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._on_nan.load_state_dict(state)
        self.watch = StepWatch()  # drop pending steps of the run so far
