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

_NO_LAYER = "every layer is finite: look at the loss function, and at that batch"
_REMEDY = "start again with a lower learning rate, or go on from an earlier checkpoint"


class Callback:
    """Gets a word at every turn of a Trainer; override what you need."""

    def on_start(self, trainer: "Trainer", epochs: int) -> None:
        """Before the first step; `epochs` is the number to reach."""

    def on_epoch_start(self, trainer: "Trainer") -> None:
        """Before an epoch's first batch, or the first after a resume."""

    def on_batch_end(self, trainer: "Trainer") -> None:
        """After every step."""

    def on_epoch_end(self, trainer: "Trainer") -> None:
        """After the evaluation; trainer.history[-1] is the epoch's row."""

    def on_end(self, trainer: "Trainer") -> None:
        """After the last epoch."""

    def on_interrupt(self, trainer: "Trainer") -> None:
        """When Ctrl-C or SIGTERM stops the run; the trainer stands between two steps."""

    def on_error(self, trainer: "Trainer") -> None:
        """When an error ends the run, before it is raised."""


class Trainer:
    """Trains `model` on `loader`, evaluates it on `test_loader` after every epoch.

    Loaders yield (images, labels) as tensors on the model's device: data.DataLoader with a
    device.  `scheduler`, of `optimizer`, is stepped once per training step; None keeps the
    optimizer's rates.  `loss` is called as loss(logits, labels).  `info` is kept in checkpoints:
    plain JSON data.

        trainer = train.Trainer(model, optimizer, loader, test_loader)
        trainer.fit(epochs=8)
        print(trainer.evaluation.accuracy)

    `epoch` counts finished epochs, `step` finished steps; `history` has a dict per epoch.

    Training stops with DivergenceError at the first step whose loss is not finite: it names the
    step, the learning rate, and the first layer whose numbers are not finite.  On the CPU the
    parameters have not taken that step.  On a GPU, where reading the loss would make every step
    wait, the stop comes once the loss has arrived: as many steps late as the host is ahead of
    the GPU, and no later than the next `save` or the end of the epoch.  `save` refuses what is not
    finite, so the last good checkpoint stays.

    Raises ArgumentError, ShapeError, DtypeError or DeviceMismatch for a loader, batch, model or
    loss that is none of this; ShapeError if loader.dataset has other classes than the model
    outputs.
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
        self._seconds = 0.0  # training time of the current epoch, before a resume too
        self._lr = optimizer.lr  # of the last step
        self._stop = threading.Event()
        self._losses = LossWatch()

    def train_step(self, images: Tensor, labels: Tensor) -> None:
        """Learn from one batch."""
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
        """Train until `epochs` epochs are done in all, those before a resume included.

        Returns `history`.  Ctrl-C or SIGTERM lets the current step (or evaluation) finish, runs the
        callbacks' on_interrupt, where Checkpoints saves, and raises KeyboardInterrupt; a second one
        raises it at once and nothing is saved.  Raises DivergenceError if the numbers are no
        longer finite: see the class.
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
            if hasattr(self.loader, "load_state_dict"):  # a later fit goes on from here
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
            raise ArgumentError("Trainer: the loader gave no batch")
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

    # --- numbers that are no longer finite ---

    def _stop_if_diverged(
        self, batch: tuple[Tensor, Tensor] | None = None, wait: bool = False
    ) -> None:
        """DivergenceError if a loss that has arrived, or with `wait` any, is not finite.

        batch is the latest one, if the parameters have not been updated since.
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
        """DivergenceError if the last update was one too many, whatever its loss was."""
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

    # --- going on later ---

    def save(self, path: str | Path) -> None:
        """Write everything that is needed to go on from here to the same bits.

        Raises DivergenceError, and leaves the file as it was, if a loss, parameter, running
        statistic or optimizer state is not finite; OutputError if it cannot be written.
        """
        if not hasattr(self.loader, "state_dict"):
            raise CheckpointError(
                f"save: {kind(self.loader)} does not tell where it stands, and a run could not go "
                "on\n  train with a data.DataLoader"
            )
        self._stop_if_diverged(wait=True)
        self._check_finite(f"epoch {self.epoch + 1}, step {self.step}, {path} not written")
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        optimizer = self.optimizer.state_dict()
        plain = {k: optimizer.pop(k) for k in ("steps", "param_groups")}
        tensors |= {f"optimizer.{k}": v for k, v in optimizer.items()}
        info = {
            **self.info,
            "optimizer": {"name": type(self.optimizer).__name__, **plain},
            "scheduler": self.scheduler
            and {
                "name": type(self.scheduler).__name__,
                **self.scheduler.state_dict(),
            },
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
        """Go on from what `save` wrote, with the same model, optimizer and loader built anew.

        Raises CheckpointError if the file is damaged or belongs to something else.
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
                raise CheckpointError("resume: the model's dropout generators are not the run's")
            self.model.load_state_dict(checkpoint.part("model"))
            self.optimizer.load_state_dict(info["optimizer"] | checkpoint.part("optimizer"))
            if self.scheduler is not None:
                state = dict(info["scheduler"])
                del state["name"]
                self.scheduler.load_state_dict(state)
            self.loader.load_state_dict(info["loader"])
            for key, generator in generators.items():
                restore_generator(generator, info["generators"][key])
            self.metrics.load_state_dict(info["metrics"])
            self.epoch, self.step = info["epoch"], info["step"]
            self._lr = info["lr"]
            self.history, self._seconds = info["history"], info["seconds"]
            self._losses = LossWatch()  # nothing of an earlier try
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"resume: the checkpoint lacks what a run needs to go on ({error}); "
                "it may hold a model only"
            ) from error

    def _generators(self) -> dict[str, Any]:
        """Every generator that training draws from, outside the loader."""
        found = {"": default_generator()}
        for name, module in self.model.named_modules():
            if isinstance(module, Dropout) and module.generator is not None:
                found[name] = module.generator
        return found


def _quiet() -> np.errstate:
    """NumPy does not warn of overflows: the trainer itself looks for what they lead to."""
    return np.errstate(over="ignore", invalid="ignore")
