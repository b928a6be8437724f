"""One run of a training script: train, write the run's files, print the result."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpucnn import optim
from gpucnn._version import __version__
from gpucnn.arguments import output_folder
from gpucnn.checkpoint import Checkpoint
from gpucnn.data import Normalize
from gpucnn.device import Device
from gpucnn.errors import CheckpointError, MissingExtra, OutputError
from gpucnn.files import write_whole
from gpucnn.nn import Module
from gpucnn.optim import lr_scheduler
from gpucnn.train.callbacks import (
    Checkpoints,
    Curves,
    EpochLine,
    MetricsFile,
    ProgressBar,
)
from gpucnn.train.metrics import Evaluation, evaluate
from gpucnn.train.run_folder import LAST, new_folder
from gpucnn.train.trainer import Callback, Trainer


class Job:
    """One run of a script.

    settings     an attribute per flag: --save-every is settings.save_every.  The script may assign
                 to them before it calls `train`, which records them.
    device       where to train
    checkpoint   the checkpoint to resume from, or None
    """

    def __init__(
        self,
        recorded: Callable[[argparse.Namespace], dict[str, Any]],
        settings: argparse.Namespace,
        device: Device,
        checkpoint: Checkpoint | None,
    ) -> None:
        self._recorded = recorded
        self.settings = settings
        self.device = device
        self.checkpoint = checkpoint

    def say(self, text: str) -> None:
        """Print `text`, unless --quiet."""
        if not self.settings.quiet:
            print(text)

    def optimizer(self, model: Module, nesterov: bool = True) -> optim.Optimizer:
        """Build the optimizer of --optimizer, --lr and --weight-decay; SGD has momentum 0.9."""
        s = self.settings
        return OPTIMIZERS[s.optimizer](model, s.lr, s.weight_decay, nesterov)

    def scheduler(self, optimizer: optim.Optimizer, steps: int) -> lr_scheduler.LRScheduler | None:
        """Build the scheduler of --schedule for `steps` steps; None for a constant rate."""
        return SCHEDULES[self.settings.schedule](optimizer, steps)

    def train(
        self,
        model: Module,
        loader: Any,
        test_loader: Any = None,
        *,
        optimizer: optim.Optimizer | None = None,
        config: Mapping[str, Any] | None = None,
        classes: Sequence[str] = (),
        normalize: Normalize | None = None,
    ) -> Evaluation | None:
        """Train for --epochs, or resume the run, and print the result.

        model must equal models.build(settings.model, **config), on the job's device.  loader and
        test_loader are as for a Trainer.  optimizer None means `self.optimizer(model)`.  classes
        and normalize are stored in the checkpoints for `gpucnn predict`.

        Returns the evaluation on the test set, or None without one.  Raises OutputError if a file
        of the run cannot be written, DivergenceError if the loss is not finite.
        """
        s = self.settings
        if optimizer is None:
            optimizer = self.optimizer(model)
        scheduler = self.scheduler(optimizer, s.epochs * len(loader))
        self._check_classes(classes)
        out = new_folder(s.out) if self.checkpoint is None else output_folder(s.out)
        kept = self._recorded(s)
        info = {
            "model": {"name": s.model, "config": dict(config or {})},
            "classes": list(classes),
            **kept,
        }
        if normalize is not None:
            info["normalize"] = {"mean": list(normalize.mean), "std": list(normalize.std)}
        trainer = Trainer(
            model,
            optimizer,
            loader,
            test_loader,
            scheduler,
            callbacks=make_callbacks(s, out, self.device),
            info=info,
        )
        if self.checkpoint is not None:
            trainer.resume(self.checkpoint)
            self.say(f"resumed after epoch {trainer.epoch}, step {trainer.step}")
        config_file = {
            **kept["settings"],
            "device": str(self.device),
            "gpucnn": __version__,
        }
        write_whole(out / "config.json", json.dumps(config_file, indent=2) + "\n")
        self.say(f"out: {out}")
        _fit(trainer, s.epochs, out / LAST)
        return self._say_result(trainer, classes, out / "best.safetensors")

    def _check_classes(self, classes: Sequence[str]) -> None:
        known = self.checkpoint.info["classes"] if self.checkpoint else list(classes)
        if known != list(classes):
            raise CheckpointError(
                f"--resume: the run has the classes {', '.join(known)}\n"
                f"  the data here has {', '.join(classes)}; resume with the run's data"
            )

    def _say_result(
        self, trainer: Trainer, classes: Sequence[str], best: Path
    ) -> Evaluation | None:
        result = trainer.evaluation
        if result is None and trainer.test_loader is not None:
            result = evaluate(trainer.model, trainer.test_loader)
        if result is not None:
            print(f"test accuracy {result.accuracy:.2%}, test loss {result.loss:.4f}")
            for name, accuracy in zip(classes, result.per_class, strict=False):
                self.say(f"  {name:<12} {accuracy:7.2%}")
        if best.exists():
            self.say(f"classify your own images: gpucnn predict {best} IMAGE...")
        return result


def make_callbacks(settings: argparse.Namespace, out: Path, device: Device) -> list[Callback]:
    """A run's callbacks.  Checkpoints saves first: if another file fails, no epoch is lost."""
    callbacks: list[Callback] = [Checkpoints(out, settings.save_every)]
    if not settings.quiet:
        # Reading the metrics makes the host wait for a GPU
        callbacks += [ProgressBar(refresh=1 if device.kind == "cpu" else 20), EpochLine()]
    callbacks += [MetricsFile(out / "metrics.csv")]
    try:
        callbacks += [Curves(out / "curves.png")]
    except MissingExtra as error:
        if not settings.quiet:
            print(f"no curves.png: {error}")
    return callbacks


def _fit(trainer: Trainer, epochs: int, last: Path) -> None:
    """Train; on a stop or an OutputError, name the checkpoint to resume from, if there is one."""
    resume = f"resume with --resume {last}"
    try:
        trainer.fit(epochs)
    except KeyboardInterrupt:
        print(
            f"\nstopped in epoch {trainer.epoch + 1}, after step {trainer.step}; "
            + (resume if last.exists() else "nothing was saved"),
            file=sys.stderr,
        )
        raise
    except OutputError as error:
        if not last.is_file():
            raise
        raise OutputError(f"{error}, then {resume}") from error


OPTIMIZERS: dict[str, Callable[[Module, float, float, bool], optim.Optimizer]] = {
    "sgd": lambda model, lr, decay, nesterov: optim.SGD(
        model.parameters(), lr, momentum=0.9, nesterov=nesterov, weight_decay=decay
    ),
    "adam": lambda model, lr, decay, _: optim.Adam(model.parameters(), lr, weight_decay=decay),
    "adamw": lambda model, lr, decay, _: optim.AdamW(model.parameters(), lr, weight_decay=decay),
}
SCHEDULES: dict[str, Callable[[optim.Optimizer, int], lr_scheduler.LRScheduler | None]] = {
    "one-cycle": lr_scheduler.TriangularLR,
    "cosine": lr_scheduler.CosineAnnealingLR,
    "step": lambda optimizer, steps: lr_scheduler.StepLR(optimizer, max(steps // 3, 1)),
    "constant": lambda optimizer, steps: None,
}
