"""The training loop."""

import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from gpucnn import ops
from gpucnn.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from gpucnn.cuda import Timer
from gpucnn.device import working_on
from gpucnn.errors import ArgumentError, CheckpointError, DivergenceError, kind
from gpucnn.nn import Dropout, Module
from gpucnn.optim import Optimizer
from gpucnn.optim.lr_scheduler import LRScheduler
from gpucnn.random import default_generator
from gpucnn.tensor import Tensor
from gpucnn.train.batches import (
    check_loader,
    check_logits,
    check_loss,
    checked_batch,
    device_of_model,
)
from gpucnn.train.divergence import LossWatch, damaged, is_finite, trace
from gpucnn.train.metrics import Evaluation, RunningMetrics, evaluate
from gpucnn.train.random_state import generator_state, restore_generator
from gpucnn.train.signals import stop_signals

_NO_LAYER = "every layer is finite: check the loss function and the batch"
_REMEDY = "restart with a lower learning rate, or resume from an earlier checkpoint"


class Callback:
    """Hooks that a Trainer calls; override those you need."""

    def on_start(self, trainer: "Trainer", epochs: int) -> None:
        """Before the first step; `epochs` is the argument of fit."""

    def on_epoch_start(self, trainer: "Trainer") -> None:
        """Before the first batch of an epoch, or the first after a resume."""

    def on_batch_end(self, trainer: "Trainer") -> None:
        """After every step."""

    def on_epoch_end(self, trainer: "Trainer") -> None:
        """After the epoch's evaluation; trainer.history[-1] is its row."""

    def on_end(self, trainer: "Trainer") -> None:
        """After the last epoch."""

    def on_interrupt(self, trainer: "Trainer") -> None:
        """When Ctrl-C or SIGTERM stops the run, between two steps."""

    def on_error(self, trainer: "Trainer") -> None:
        """When an exception ends the run, before it propagates."""


class Trainer:
    """Train `model` on `loader` and evaluate it on `test_loader` after every epoch.

    loader, test_loader   yield (images, labels) as tensors on the model's device, such as
                          data.DataLoader(..., device=...)
    scheduler             a scheduler of `optimizer`, stepped once per training step; None keeps
                          the optimizer's rates
    loss                  called as loss(logits, labels); returns a scalar Tensor
    info                  plain JSON data to store in checkpoints

        trainer = train.Trainer(model, optimizer, loader, test_loader)
        trainer.fit(epochs=8)
        print(trainer.evaluation.accuracy)

    `epoch` counts completed epochs, `step` completed steps; `history` has a dict per epoch.

    Training stops with DivergenceError at the first step whose loss is not finite.  The error
    names the step, the learning rate, and the first layer with values that are not finite.  On the
    CPU the parameters are not updated by that step.  On a GPU the host does not wait for each
    loss: training stops once the loss has arrived, as many steps late as the host is ahead of the
    GPU, and at the latest at the next `save` or the end of the epoch.  `save` refuses values that
    are not finite, so the last good checkpoint survives.

    Raises ArgumentError, ShapeError, DtypeError or DeviceMismatch for any other loader, batch,
    model or loss; ShapeError if the model's outputs do not match the classes of loader.dataset.
    """

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
        self.model = model
        self.optimizer = optimizer
        self.loader = loader
        self.test_loader = test_loader
        self.scheduler = scheduler
        self.loss = loss
        self.callbacks = list(callbacks)
        self.info = info or {}
        self.epoch = 0
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.metrics = RunningMetrics()
        self.evaluation: Evaluation | None = None
        self._seconds = 0.0  # of training in this epoch, also before a resume
        self._lr = optimizer.lr  # of the last step
        self._stop = threading.Event()
        self._losses = LossWatch()

    def train_step(self, images: Tensor, labels: Tensor) -> None:
        """Run one training step: forward, backward, update, scheduler."""
        with _quiet(), working_on(images.device):
            logits = self.model(images)
            check_logits("Trainer", logits, images, self.loader)
            loss = self.loss(logits, labels)
            check_loss("Trainer", loss)
            self._lr = self.optimizer.lr
            self._losses.add(loss.data, self.step, self._lr)
            self._stop_if_diverged((images, labels))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.metrics.add(loss, logits, labels)
        self.step += 1
        if self.scheduler is not None:
            self.scheduler.step()

    def fit(self, epochs: int) -> list[dict[str, Any]]:
        """Train until `epochs` epochs are completed in total, those before a resume included.

        Returns `history`.  On Ctrl-C or SIGTERM the current step (or evaluation) finishes, the
        callbacks' on_interrupt runs (Checkpoints saves), and KeyboardInterrupt is raised.  A second
        signal raises it at once, and nothing is saved.  Raises DivergenceError if training
        diverges: see the class.
        """
        if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 0:
            raise ArgumentError(f"fit: epochs must be an int of at least 0, got {epochs!r}")
        self._tell("on_start", epochs)
        with stop_signals() as self._stop:
            try:
                while self.epoch < epochs:
                    self._fit_epoch()
                    if self.epoch < epochs:
                        self._stop_if_asked()
            except Exception:
                self._tell("on_error")
                raise
        self._tell("on_end")
        return self.history

    def _stop_if_asked(self) -> None:
        if self._stop.is_set():
            self._tell("on_interrupt")
            if hasattr(self.loader, "load_state_dict"):  # a later fit continues from here
                self.loader.load_state_dict(self.loader.state_dict())
            raise KeyboardInterrupt

    def _fit_epoch(self) -> None:
        self.model.train()
        self._tell("on_epoch_start")
        started = time.perf_counter() - self._seconds
        timer: Timer | None = None
        device = device_of_model(self.model)
        for batch in self.loader:
            images, labels = checked_batch("Trainer", batch, device)
            timer = timer or Timer(images.device)
            with timer:
                self.train_step(images, labels)
            self._seconds = time.perf_counter() - started
            self._tell("on_batch_end")
            self._stop_if_asked()
        if self.metrics.count == 0:
            raise ArgumentError("Trainer: the loader yielded no batch")
        self._stop_if_diverged(wait=True)
        self._check_finite(f"epoch {self.epoch + 1}, step {self.step}")
        row = {
            "epoch": self.epoch + 1,
            "train_loss": self.metrics.loss,
            "train_accuracy": self.metrics.accuracy,
            "test_loss": None,
            "test_accuracy": None,
            "lr": self._lr,
            "seconds": time.perf_counter() - started,
            "images_per_second": self.metrics.count / (time.perf_counter() - started),
            "step_ms": timer.seconds / timer.count * 1e3 if timer else None,
        }
        if self.test_loader is not None:
            with _quiet():
                evaluation = evaluate(self.model, self.test_loader)
            if not math.isfinite(evaluation.loss):
                self._explain_test_loss(evaluation.loss)
            self.evaluation = evaluation
            row["test_loss"] = self.evaluation.loss
            row["test_accuracy"] = self.evaluation.accuracy
        self.history.append(row)
        self.epoch += 1
        self.metrics = RunningMetrics()
        self._seconds = 0.0
        self._tell("on_epoch_end")

    # --- divergence ---

    def _stop_if_diverged(
        self, batch: tuple[Tensor, Tensor] | None = None, wait: bool = False
    ) -> None:
        """Raise DivergenceError if a loss that has arrived, or with `wait` any, is not finite.

        batch is the latest batch, if its update has not been made.
        """
        bad = self._losses.first(wait)
        if bad is None:
            return
        where = damaged(self.model) if batch is None else trace(self.model, *batch)
        raise DivergenceError(
            f"epoch {self.epoch + 1}, step {bad.step + 1}: the loss is {bad.value}, at a learning "
            f"rate of {bad.lr:g}\n  {where or _NO_LAYER}\n  {_REMEDY}"
        )

    def _check_finite(self, when: str) -> None:
        """Raise DivergenceError if a parameter, statistic or state is not finite."""
        where = self._not_finite()
        if where:
            raise DivergenceError(
                f"{when}: training has diverged, at a learning rate of {self._lr:g}\n"
                f"  {where}\n  {_REMEDY}"
            )

    def _not_finite(self) -> str:
        where = damaged(self.model)
        if where:
            return where
        for name, value in self.optimizer.state_dict().items():
            if hasattr(value, "dtype") and not is_finite(value):
                return f"{type(self.optimizer).__name__}: its {name} is not finite"
        if self.metrics.count and not math.isfinite(self.metrics.loss):
            return f"the training loss is {self.metrics.loss}"
        return ""

    def _explain_test_loss(self, loss: float) -> NoReturn:
        self.model.eval()
        found = (trace(self.model, images, labels) for images, labels in self.test_loader)
        where = next(filter(None, found), _NO_LAYER)
        raise DivergenceError(
            f"epoch {self.epoch + 1}, step {self.step}: the test loss is {loss}\n"
            f"  {where}\n  {_REMEDY}"
        )

    def _tell(self, event: str, *details: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self, *details)

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
        self._stop_if_diverged(wait=True)
        self._check_finite(f"epoch {self.epoch + 1}, step {self.step}, {path} not written")
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        optimizer = self.optimizer.state_dict()
        plain = {k: optimizer.pop(k) for k in ("steps", "param_groups")}
        tensors |= {f"optimizer.{k}": v for k, v in optimizer.items()}
        scheduler = None
        if self.scheduler is not None:
            state = self.scheduler.state_dict()
            scheduler = {"name": type(self.scheduler).__name__, "state": state}
        info = {
            **self.info,
            "optimizer": {"name": type(self.optimizer).__name__, **plain},
            "scheduler": scheduler,
            "epoch": self.epoch,
            "step": self.step,
            "lr": self._lr,
            "history": self.history,
            "metrics": self.metrics.state_dict(),
            "seconds": self._seconds,
            "loader": self.loader.state_dict(),
            "generators": {k: generator_state(g) for k, g in self._generators().items()},
        }
        write_checkpoint(path, tensors, info)

    def resume(self, checkpoint: str | Path | Checkpoint) -> None:
        """Continue from a checkpoint that `save` wrote.

        Model, optimizer, scheduler and loader must be built as for that run.  Raises
        CheckpointError if the file is damaged, or belongs to another model, optimizer, scheduler
        or loader.
        """
        if not isinstance(checkpoint, Checkpoint):
            checkpoint = read_checkpoint(checkpoint)
        info = checkpoint.info
        try:
            for part, own in (("optimizer", self.optimizer), ("scheduler", self.scheduler)):
                saved = info[part]["name"] if info[part] else "no scheduler"
                ours = type(own).__name__ if own is not None else "no scheduler"
                if saved != ours:
                    raise CheckpointError(
                        f"resume: the run was trained with {saved}, the trainer has {ours}"
                    )
            generators = self._generators()
            if generators.keys() != info["generators"].keys():
                raise CheckpointError(
                    "resume: the model's dropout generators differ from the run's"
                )
            self.model.load_state_dict(checkpoint.part("model"))
            self.optimizer.load_state_dict(info["optimizer"] | checkpoint.part("optimizer"))
            if self.scheduler is not None:
                self.scheduler.load_state_dict(info["scheduler"]["state"])
            self.loader.load_state_dict(info["loader"])
            for key, generator in generators.items():
                restore_generator(generator, info["generators"][key])
            self.metrics.load_state_dict(info["metrics"])
            self.epoch, self.step = info["epoch"], info["step"]
            self._lr = info["lr"]
            self.history, self._seconds = info["history"], info["seconds"]
            self._losses = LossWatch()  # drop pending losses of the run so far
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"resume: the checkpoint lacks state of a training run ({error}); "
                "it may hold only a model"
            ) from error

    def _generators(self) -> dict[str, Any]:
        """Every random generator of training, except the loader's."""
        found = {"": default_generator()}
        for name, module in self.model.named_modules():
            if isinstance(module, Dropout) and module.generator is not None:
                found[name] = module.generator
        return found


def _quiet() -> np.errstate:
    """Silence NumPy's overflow warnings: the trainer checks for divergence itself."""
    return np.errstate(over="ignore", invalid="ignore")
