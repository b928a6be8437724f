"""The training loop."""

import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpucnn import ops
from gpucnn.cuda import Timer
from gpucnn.device import Array, working_on
from gpucnn.errors import CheckpointError, DivergenceError
from gpucnn.nn import Dropout, Module
from gpucnn.optim import Constant, Optimizer, Schedule
from gpucnn.random import default_generator
from gpucnn.tensor import Tensor
from gpucnn.train.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from gpucnn.train.metrics import Evaluation, RunningMetrics, evaluate
from gpucnn.train.random_state import generator_state, restore_generator
from gpucnn.train.signals import stop_signals

if TYPE_CHECKING:
    from gpucnn.train.callbacks import Callback


class Trainer:
    """Trains `model` on `loader`, evaluates it on `test_loader` after every epoch.

    Loaders yield (images, labels) as tensors on the model's device: data.DataLoader with a
    device.  `schedule` maps the step, counted from 0 over all epochs, to a learning rate; None
    keeps the optimizer's.  `loss` is called as loss(logits, labels).  `info` is kept in
    checkpoints: plain JSON data.

        trainer = train.Trainer(model, optimizer, loader, test_loader)
        trainer.fit(epochs=8)
        print(trainer.evaluation.accuracy)

    `epoch` counts finished epochs, `step` finished steps; `history` has a dict per epoch.
    """

    def __init__(
        self,
        model: Module,
        optimizer: Optimizer,
        loader: Any,
        test_loader: Any = None,
        schedule: Schedule | None = None,
        loss: Callable[[Tensor, Array], Tensor] = ops.softmax_cross_entropy,
        callbacks: Sequence["Callback"] = (),
        info: dict[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.loader = loader
        self.test_loader = test_loader
        self.schedule = schedule or Constant(optimizer.lr)
        self.loss = loss
        self.callbacks = list(callbacks)
        self.info = info or {}
        self.epoch = 0
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.metrics = RunningMetrics()
        self.evaluation: Evaluation | None = None
        self._seconds = 0.0  # training time of the current epoch, earlier sittings included
        self._stop = threading.Event()

    def train_step(self, images: Tensor, labels: Tensor) -> None:
        """Learn from one batch."""
        self.optimizer.lr = self.schedule(self.step)

        with working_on(images.device):
            logits = self.model(images)
            loss = self.loss(logits, labels.data)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.metrics.add(loss, logits, labels.data)
        self.step += 1

    def fit(self, epochs: int) -> list[dict[str, Any]]:
        """Train until `epochs` epochs are done in all, those before a resume included.

        Returns `history`.  Ctrl-C or SIGTERM lets the current step (or evaluation) finish, runs the
        callbacks' on_interrupt, where Checkpoints saves, and raises KeyboardInterrupt; a second one
        raises it at once and nothing is saved.  Raises DivergenceError at the end of an epoch
        whose loss is not finite.
        """
        self._tell("on_start", epochs)
        with stop_signals() as self._stop:
            while self.epoch < epochs:
                self._fit_epoch()
                if self.epoch < epochs:
                    self._stop_if_asked()
        self._tell("on_end")
        return self.history

    def _stop_if_asked(self) -> None:
        if self._stop.is_set():
            self._tell("on_interrupt")
            self.loader.load_state_dict(self.loader.state_dict())  # a later fit goes on from here
            raise KeyboardInterrupt

    def _fit_epoch(self) -> None:
        self.model.train()
        self._tell("on_epoch_start")
        started = time.perf_counter() - self._seconds
        timer: Timer | None = None
        for images, labels in self.loader:
            timer = timer or Timer(images.device)
            with timer:
                self.train_step(images, labels)
            self._seconds = time.perf_counter() - started
            self._tell("on_batch_end")
            self._stop_if_asked()
        if not math.isfinite(self.metrics.loss):
            raise DivergenceError(
                f"epoch {self.epoch + 1}: the training loss is {self.metrics.loss}; "
                "the parameters have overflowed\n"
                "  start again with a lower learning rate, or from an earlier checkpoint"
            )
        row = {
            "epoch": self.epoch + 1,
            "train_loss": self.metrics.loss,
            "train_accuracy": self.metrics.accuracy,
            "test_loss": None,
            "test_accuracy": None,
            "lr": self.optimizer.lr,
            "seconds": time.perf_counter() - started,
            "images_per_second": self.metrics.count / (time.perf_counter() - started),
            "step_ms": timer.seconds / timer.count * 1e3 if timer else None,
        }
        if self.test_loader is not None:
            self.evaluation = evaluate(self.model, self.test_loader)
            row["test_loss"] = self.evaluation.loss
            row["test_accuracy"] = self.evaluation.accuracy
        self.history.append(row)
        self.epoch += 1
        self.metrics = RunningMetrics()
        self._seconds = 0.0
        self._tell("on_epoch_end")

    def _tell(self, event: str, *details: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self, *details)

    # --- going on later ---

    def save(self, path: str | Path) -> None:
        """Write everything that is needed to go on from here to the same bits."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        optimizer = self.optimizer.state_dict()
        plain = {k: optimizer.pop(k) for k in ("steps", "hyperparameters")}
        tensors |= {f"optimizer.{k}": v for k, v in optimizer.items()}
        info = {
            **self.info,
            "optimizer": {"name": type(self.optimizer).__name__, **plain},
            "epoch": self.epoch,
            "step": self.step,
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
            name = info["optimizer"]["name"]
            if name != type(self.optimizer).__name__:
                raise CheckpointError(
                    f"resume: the run was trained with {name}, "
                    f"the trainer has {type(self.optimizer).__name__}"
                )
            own = self._generators()
            if own.keys() != info["generators"].keys():
                raise CheckpointError("resume: the model's dropout generators are not the run's")
            self.model.load_state_dict(checkpoint.part("model"))
            self.optimizer.load_state_dict(info["optimizer"] | checkpoint.part("optimizer"))
            self.loader.load_state_dict(info["loader"])
            for key, generator in own.items():
                restore_generator(generator, info["generators"][key])
            self.metrics.load_state_dict(info["metrics"])
            self.epoch, self.step = info["epoch"], info["step"]
            self.history, self._seconds = info["history"], info["seconds"]
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
