"""The training loop."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn import ops
from gpucnn.arguments import Stopped, report
from gpucnn.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from gpucnn.cuda import Timer
from gpucnn.device import Array, Device, working_on
from gpucnn.distributed import Communicator
from gpucnn.distributed.communicator import check_communicator
from gpucnn.errors import ArgumentError, CheckpointError, GpucnnError, kind
from gpucnn.nn import Module
from gpucnn.optim import Optimizer
from gpucnn.optim.lr_scheduler import LRScheduler
from gpucnn.tensor import Tensor
from gpucnn.train.batches import check_loader, checked_batch, closing_batches, device_of_model
from gpucnn.train.guard import Guard
from gpucnn.train.metrics import Evaluation, Metric, RunningMetrics, check_metrics
from gpucnn.train.plausible import check_epoch, check_epochs, check_start
from gpucnn.train.ranks import ManyRanks, OneRank
from gpucnn.train.signals import StopRequest, stop_signals
from gpucnn.train.step_precision import StepPrecision
from gpucnn.train.trainer_state import restore, state_of


class Callback:
    """Hooks that a Trainer calls; override those you need.

    first      call it before callbacks that are not `first`, whatever their order
    required   an exception ends training; False: the first one in a fit is a warning
    """

    first = False
    required = True

    def on_start(self, trainer: "Trainer", epochs: int) -> None:
        """Before the first step; `epochs` is the number of this fit's last epoch."""

    def on_epoch_start(self, trainer: "Trainer") -> None:
        """Before the first batch of an epoch, or the first after a resume."""

    def on_batch_end(self, trainer: "Trainer") -> None:
        """After every step."""

    def on_epoch_end(self, trainer: "Trainer") -> None:
        """After the epoch's evaluation; trainer.history[-1] is its row."""

    def on_end(self, trainer: "Trainer") -> None:
        """After the last epoch."""

    def on_interrupt(self, trainer: "Trainer") -> None:
        """When a signal or `Trainer.stop` stops the run, between two steps."""

    def on_error(self, trainer: "Trainer") -> None:
        """When an exception ends the run, before it propagates."""

    def values(self, trainer: "Trainer") -> dict[str, Any]:
        """What loggers record of a step besides its loss: numbers, or arrays () on its device."""
        return {}


class Trainer:
    """Train `model` on `loader` and evaluate it on `test_loader` after every epoch.

    loader, test_loader   yield (images, labels) as tensors on the model's device, such as
                          data.DataLoader(..., device=...)
    scheduler             a scheduler of `optimizer`, stepped once per training step; None keeps
                          the optimizer's rates
    loss                  called as loss(logits, labels); returns a scalar Tensor
    info                  plain JSON data to store in checkpoints
    on_nan                what to do about a step that is not finite: "stop", "skip", "halve-lr"
    comm                  a distributed.Communicator: train together with the other ranks
    grad_dtype            with comm, what gradients are sent as: "fp32", "fp16" or "bf16"
    graph                 on a GPU, replay steps as a CUDA graph: see below
    precision             "fp32", "tf32", "bf16", "fp16" or "auto": see below
    micro_batches         compute each step in so many parts of its batch: see below
    test_metrics          {name: metric} for `evaluate`; history has test_<name>
    verbose               print a line after each epoch and, on a terminal, a progress bar, unless
                          callbacks holds an EpochLine or a ProgressBar of your own

        trainer = train.Trainer(model, optimizer, loader, test_loader)
        trainer.fit(epochs=8)
        print(trainer.evaluation.accuracy)

    `epoch` counts completed epochs, `step` completed steps; `history` has a dict per epoch.  A
    callback that sets `should_stop` to True makes the epoch under way the last one of this fit.

    A step is not finite if its loss or a gradient is NaN or infinite, or if its update would make a
    parameter or a state of the optimizer so.  The update is then left out: parameters, states and
    running statistics are as before the step.  The batch runs again to find the layer and the
    operation, forward or backward, where the first such value arises.

    on_nan="stop"       raise DivergenceError.  On a GPU the host does not wait for each step:
                        training stops once the fault has arrived, as many steps late as the host is
                        ahead, at the latest at the next `save` or the end of the epoch
    on_nan="skip"       go on with the next batch; `skipped` counts.  The scheduler steps as usual.
                        Stops after 50 such steps in a row
    on_nan="halve-lr"   also halve the learning rates, for the rest of the run and in its
                        checkpoints.  Stops after ten halvings without a good step between

    The first skipped step of a run warns (TrainingWarning).  With "skip" and "halve-lr" the host
    waits for a GPU in every step.  `save` refuses values that are not finite, so the last good
    checkpoint survives.

    With a graph, the third step is captured, and the steps after it are one launch each; the bits
    are the same.  graph=None captures on "cuda" if all code of model and loss is gpucnn's.
    graph=True also captures your own modules, whose Python then runs in the first steps only: every
    step must do the same.  Changes of parameters, groups, modes, hooks and of the attributes of
    modules and of objects in them are noticed, and so are those of the loss's variables, but not
    of global ones.  Where a step cannot be captured, steps run as with graph=False, and a note says
    why: with on_nan other than "stop", with hooks, or for a step that reads a value.  With comm a
    step is two launches, with the sums over the ranks between them; all ranks replay, or none.

    precision is that of products, in training and evaluation; parameters and the optimizer's states
    stay float32.  "fp32" and "tf32" are set_float32_precision's "highest" and "high"; "bf16" and
    "fp16" run model and loss under autocast, and "fp16" scales the loss by `scaler`, an
    optim.GradScaler, whose skipped steps are no fault for on_nan.  "auto" is bf16 on GPUs with
    compute capability 8.0 or newer, fp16 on 7.x, and fp32 elsewhere.  None keeps what is set.

    With micro_batches, forward and backward run on one part of the batch after another, in the
    memory of a part; batch normalisation uses a part's own statistics.  Not with comm.

    With comm, each rank builds the same Trainer, with loaders of whole batches.  A rank gets its
    part of each batch, and the steps are those of one process with the whole batches, within
    rounding, if the loss is a mean over the images.  `fit` starts from rank 0's state.  Batch
    normalisation uses the statistics of a rank's own part, unless the model has
    distributed.SyncBatchNorm.  Only rank 0 calls callbacks, which therefore must not change model
    or optimizer.  An exception on one rank does not reach the others: start the processes with
    `python -m mpi4py`, which then ends them all.

    Raises ArgumentError, ShapeError, DtypeError or DeviceMismatch for any other loader, batch,
    model, loss or comm, and for outputs that do not match the classes of loader.dataset.
    """

    # What verbose adds.  gpucnn.train sets it: callbacks import Trainer.
    _reporters: Callable[[Sequence[Callback], Any, Device], list[Callback]]

    def __init__(
        self,
        model: Module,
        optimizer: Optimizer,
        loader: Any,
        test_loader: Any = None,
        scheduler: LRScheduler | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] = ops.cross_entropy,
        callbacks: Sequence[Callback] = (),
        info: dict[str, Any] | None = None,
        on_nan: str = "stop",
        comm: Communicator | None = None,
        grad_dtype: str | None = None,
        graph: bool | None = None,
        precision: str | None = None,
        test_metrics: Mapping[str, Metric] | None = None,
        verbose: bool = True,
        micro_batches: int = 1,
    ) -> None:
        if not isinstance(model, Module):
            raise ArgumentError(f"Trainer: expected a Module to train, got {kind(model)}")
        if not isinstance(optimizer, Optimizer):
            raise ArgumentError(f"Trainer: expected an Optimizer, got {kind(optimizer)}")
        if scheduler is not None and not isinstance(scheduler, LRScheduler):
            raise ArgumentError(
                f"Trainer: expected a scheduler of optim.lr_scheduler, got {kind(scheduler)}"
            )
        if scheduler is not None and scheduler.optimizer is not optimizer:
            raise ArgumentError("Trainer: the scheduler belongs to another optimizer")
        check_loader("Trainer", loader)
        if test_loader is not None:
            check_loader("Trainer", test_loader)
        elif test_metrics:
            raise ArgumentError("Trainer: test_metrics needs a test_loader")
        if grad_dtype is not None and comm is None:
            raise ArgumentError("Trainer: grad_dtype needs comm: one process sends no gradients")
        self.ranks = OneRank(optimizer)
        if comm is not None:
            check_communicator("Trainer", comm)
            if comm.size > 1:
                self.ranks = ManyRanks(comm, model, optimizer, grad_dtype)
        self.model = model
        self.optimizer = optimizer
        self.loader = self.ranks.part(loader)
        self.test_loader = None if test_loader is None else self.ranks.part(test_loader)
        self.scheduler = scheduler
        self.loss = loss
        self.info = info or {}
        self.epoch = 0
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.metrics = RunningMetrics()
        self.evaluation: Evaluation | None = None
        self.test_metrics = check_metrics("Trainer", test_metrics)
        self.should_stop = False
        self._seconds = 0.0  # of training in this epoch, also before a resume
        self._lr = optimizer.lr  # of the last step
        self._stop = StopRequest()
        self._warned: set[int] = set()  # ids of the callbacks that failed in this fit
        self._stuck = False  # an epoch's loss was that of guessing
        device = device_of_model(model)
        if graph and device is not None and device.kind == "cpu":
            raise ArgumentError(
                "Trainer: graph=True needs a model on a GPU, this one is on the CPU\n"
                "  move it before its optimizer is built: model.to(device)"
            )
        device = device or optimizer.parameters[0].device
        self.callbacks = list(callbacks)
        if verbose and self.ranks.rank == 0:
            self.callbacks = [*self._reporters(callbacks, loader, device), *callbacks]
        self._precision = StepPrecision(precision, device)
        self.scaler = self._precision.scaler
        self._guard = Guard(self, on_nan, self._precision, graph, micro_batches)

    @property
    def skipped(self) -> int:
        """The steps of this run whose update was left out: see on_nan."""
        return self._guard.skipped

    def train_step(self, images: Tensor, labels: Tensor) -> None:
        """Run one training step: forward, backward, update, scheduler.

        With comm, images and labels are this rank's part of the batch; the step is left out if no
        part holds an image that counts.
        """
        with _quiet(), working_on(images.device):
            count, status, why = len(labels), self._stop.status, self._guard.graph.reason
            if not self.ranks.begin(self.step, self.loader, count, status, why):
                return
            self._lr = self.optimizer.lr
            self._guard.step(images, labels)
        self.step += 1
        if self.scheduler is not None:
            self.scheduler.step()
            self._guard.scheduled()

    def fit(self, epochs: int) -> list[dict[str, Any]]:
        """Train `epochs` more epochs: fit(3) and then fit(2) train five.

        The epoch under way, after a stop or a resume, counts as the first of them.  To train until
        N epochs in all, also after a resume, call fit(max(0, N - trainer.epoch)).

        Returns `history`.  On Ctrl-C, SIGTERM, SIGHUP or `stop` the current step (or evaluation)
        finishes, the callbacks' on_interrupt runs (Checkpoints saves), and a KeyboardInterrupt is
        raised, whose `status` is the exit status.  Ctrl-C after a signal raises it at once, and
        nothing more is saved.  Raises DivergenceError if training diverges: see the class;
        DistributedError if the ranks call fit differently, or their parameters drift apart.
        """
        check_epochs(epochs)
        self._warned.clear()
        self.should_stop = False
        self.ranks.start(self, epochs)
        last = self.epoch + epochs
        self._tell("on_start", last)
        with stop_signals() as self._stop:
            try:
                while self.epoch < last and not self.ranks.any(self.should_stop):
                    self._fit_epoch()
                    if self.epoch < last:
                        self.ranks.agree(self._stop.status)
                        self._stop_if_asked()
            except Exception:
                self._tell("on_error")
                raise
        self._tell("on_end")
        self.ranks.barrier()
        return self.history

    def stop(self, status: int = 130) -> None:
        """Let fit stop as on Ctrl-C, after the current step; for callbacks.

        status is the exit status of the training script.
        """
        self._stop.set(status)

    def _stop_if_asked(self) -> None:
        status = self.ranks.stopping(self._stop.status)
        if status is not None:
            self._tell("on_interrupt")
            if hasattr(self.loader, "load_state_dict"):  # a later fit continues from here
                self.loader.load_state_dict(self.loader.state_dict())
            self.ranks.barrier()
            self.ranks.end_alike()
            raise Stopped(status)

    def _fit_epoch(self) -> None:
        self.model.train()
        self._guard.start_epoch()
        self._tell("on_epoch_start")
        started = time.perf_counter() - self._seconds
        timer: Timer | None = None
        device, dataset = device_of_model(self.model), getattr(self.loader, "dataset", None)
        with closing_batches(self.loader) as batches:
            for batch in batches:
                images, labels = checked_batch("Trainer", batch, device)
                timer = timer or Timer(images.device)
                if self.step == 0:
                    check_start(images, dataset)
                with timer:
                    self.train_step(images, labels)
                self._seconds = time.perf_counter() - started
                self._tell("on_batch_end")
                self._stop_if_asked()
        if timer is None and self.metrics.count == 0:
            raise ArgumentError("Trainer: the loader yielded no batch")
        self._guard.end_epoch()
        seconds = time.perf_counter() - started
        row = {
            "epoch": self.epoch + 1,
            "train_loss": self.metrics.loss,
            "train_accuracy": self.metrics.accuracy,
            "test_loss": None,
            "test_accuracy": None,
            "lr": self._lr,
            "seconds": seconds,
            "images_per_second": self.metrics.count / seconds,
            "step_ms": timer.seconds / timer.count * 1e3 if timer else None,
        }
        if self.test_loader is not None:
            evaluation = self._evaluate()
            if not math.isfinite(evaluation.loss):
                self._guard.test_failed(evaluation.loss, self.test_loader)
            self.evaluation = evaluation
            row["test_loss"] = evaluation.loss
            row["test_accuracy"] = evaluation.accuracy
            for name, value in evaluation.metrics.items():
                row[f"test_{name}"] = value if math.isfinite(value) else None
        self.history.append(row)
        self.epoch += 1
        count, self.metrics = self.metrics.count, RunningMetrics()
        self._seconds = 0.0
        self._tell("on_epoch_end")
        if not self._stuck:
            self._stuck = check_epoch(row, count, self._guard.classes, dataset)

    def _evaluate(self) -> Evaluation:
        """Evaluate on the test set, in the precision of the training."""
        with _quiet(), self._precision.products(), self._precision.forward():
            return self.ranks.evaluate(self.model, self.test_loader, self.test_metrics)

    def _tell(self, event: str, *details: Any) -> None:
        if self.ranks.rank > 0:
            return
        for callback in sorted(self.callbacks, key=lambda callback: not callback.first):
            try:
                getattr(callback, event)(self, *details)
            except Exception as error:
                if callback.required:
                    raise
                self._warn(callback, error)

    def _warn(self, callback: Callback, error: Exception) -> None:
        """Report the first failure of a callback that training does not need."""
        if id(callback) not in self._warned:
            self._warned.add(id(callback))
            known = isinstance(error, GpucnnError)
            what = str(error) if known else f"{type(callback).__name__} failed ({error!r})"
            report(f"warning: {what}; training continues, and retries this after each epoch")

    # --- checkpoints ---

    def save(self, path: str | Path) -> None:
        """Write a checkpoint; a run resumed from it ends with the same bits.

        Raises DivergenceError if a loss, parameter, running statistic or optimizer state is not
        finite, OutputError if the file cannot be written; the previous file stays intact.  Raises
        CheckpointError if the loader has no state_dict.
        """
        if not hasattr(self.loader, "state_dict"):
            raise CheckpointError(
                f"save: {kind(self.loader)} has no state_dict, so the run could not be resumed\n"
                "  train with a data.DataLoader"
            )
        self._guard.check(f"epoch {self.epoch + 1}, step {self.step}, {path} not written")
        write_checkpoint(path, *self._state())

    def _state(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """The arrays and the plain JSON data of a checkpoint."""
        return state_of(self)

    def resume(self, checkpoint: str | Path | Checkpoint) -> None:
        """Continue from a checkpoint that `save` wrote.

        Model, optimizer, scheduler and loader must be built as for that run.  Raises
        CheckpointError if the file is damaged, holds only a model, or belongs to another model,
        optimizer, scheduler or loader.  The trainer may then hold a part of the state: resume it
        from another checkpoint.
        """
        if not isinstance(checkpoint, Checkpoint):
            checkpoint = read_checkpoint(checkpoint, self.model)
        restore(self, checkpoint)


def _quiet() -> np.errstate:
    """Silence NumPy's warnings: the trainer checks for divergence itself."""
    return np.errstate(over="ignore", invalid="ignore", divide="ignore")
