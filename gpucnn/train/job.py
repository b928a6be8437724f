"""One run of a training script: train, write the run's files, print the result."""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpucnn import ops, optim
from gpucnn._version import __version__
from gpucnn.arguments import output_folder, printable, report
from gpucnn.checkpoint import Checkpoint
from gpucnn.data import Normalize
from gpucnn.device import Device
from gpucnn.distributed import Communicator, convert_sync_batchnorm
from gpucnn.errors import ArgumentError, CheckpointError, MissingExtra, OutputError
from gpucnn.integers import ceil_div
from gpucnn.nn import Module
from gpucnn.optim import lr_scheduler
from gpucnn.tensor import Tensor
from gpucnn.train.callbacks import Curves, EpochLine, MetricsFile, SettingsFile, TimeLimit
from gpucnn.train.checkpoints import Checkpoints
from gpucnn.train.lock import FolderLock
from gpucnn.train.loggers import TensorBoard
from gpucnn.train.memory_limit import check_memory_limit
from gpucnn.train.metrics import Evaluation
from gpucnn.train.monitors import EarlyStopping
from gpucnn.train.progress import ProgressBar
from gpucnn.train.reporters import STEPS
from gpucnn.train.run_folder import BEST, LAST, new_folder, newest_readable, refuse_to_overwrite
from gpucnn.train.trainer import Callback, Trainer
from gpucnn.train.trainer_state import reschedule


class Job:
    """One run of a script.

    settings     an attribute per flag: --save-every is settings.save_every.  The script may assign
                 to them before it calls `train`, which records them.
    device       where to train
    checkpoint   the checkpoint to resume from, or None
    comm         the processes that train together, or None
    rank         the number of this process; 0 prints and writes files
    """

    def __init__(
        self,
        recorded: Callable[[argparse.Namespace], dict[str, Any]],
        settings: argparse.Namespace,
        device: Device,
        checkpoint: Checkpoint | None,
        lock: FolderLock | None = None,
        comm: Communicator | None = None,
    ) -> None:
        """lock: of settings.out, if the run resumes in its own folder."""
        self.comm = comm
        self.rank = 0 if comm is None else comm.rank
        self._lock = lock
        self._started = time.monotonic()
        self._recorded = recorded
        self.settings = settings
        self.device = device
        self.checkpoint = checkpoint

    def say(self, text: str) -> None:
        """Print `text`, with control characters escaped, unless --quiet."""
        if not self.settings.quiet:
            print(printable(text))

    def warn(self, text: str) -> None:
        """Print `text` to standard error, once for all processes."""
        if self.rank == 0:
            report(text)

    def close(self) -> None:
        """Let other processes use the folder of the run."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

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
        scheduler: Callable[[optim.Optimizer, int], lr_scheduler.LRScheduler] | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] = ops.cross_entropy,
        config: Mapping[str, Any] | None = None,
        classes: Sequence[str] = (),
        normalize: Normalize | None = None,
    ) -> Evaluation | None:
        """Train for --epochs, or resume the run until then, and print the result.

        model must equal models.build(settings.model, **config), on the job's device.  loader and
        test_loader and loss are as for a Trainer.  optimizer None means `self.optimizer(model)`;
        scheduler is called as scheduler(optimizer, steps), None means `self.scheduler`.  classes
        and normalize are stored in the checkpoints for `gpucnn predict`.

        Returns the evaluation on the test set, or None without one.  Raises OutputError if a
        checkpoint cannot be written, ArgumentError if another process uses the folder of the run,
        DivergenceError if training diverges.
        """
        try:
            make = self.scheduler if scheduler is None else scheduler
            return self._train(
                model, loader, test_loader, optimizer, make, loss, config, classes, normalize
            )
        finally:
            self.close()

    def _train(
        self,
        model: Module,
        loader: Any,
        test_loader: Any,
        optimizer: optim.Optimizer | None,
        make_scheduler: Callable[[optim.Optimizer, int], lr_scheduler.LRScheduler | None],
        loss: Callable[[Tensor, Tensor], Tensor],
        config: Mapping[str, Any] | None,
        classes: Sequence[str],
        normalize: Normalize | None,
    ) -> Evaluation | None:
        s = self.settings
        if s.graph and self.device.kind == "cpu":
            raise ArgumentError(
                "--graph: steps are replayed on a GPU only, and the device is the CPU\n"
                "  use --no-graph, or choose --device cuda"
            )
        if s.sync_bn and self.comm is not None:
            model = convert_sync_batchnorm(model, self.comm)
        if optimizer is None:
            optimizer = self.optimizer(model)
        scheduler = make_scheduler(optimizer, s.epochs * len(loader))
        self._check_classes(classes)
        if s.memory_limit is not None:
            ranks = 1 if self.comm is None else self.comm.size
            _check_memory(
                model, optimizer, loader, s.memory_limit, ranks, s.precision, s.micro_batches
            )
        kept = self._recorded(s)
        out, callbacks = Path(), list[Callback]()
        if self.rank == 0:
            out = self._locked_folder()
            tested = test_loader is not None
            callbacks = make_callbacks(s, kept["settings"], out, self.device, self._started, tested)
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
            loss,
            callbacks=callbacks,
            info=info,
            on_nan=s.on_nan,
            comm=self.comm,
            grad_dtype=None if self.comm is None else s.grad_dtype,
            graph=s.graph,
            precision=s.precision,
            micro_batches=s.micro_batches,
            verbose=False,
        )
        if self.checkpoint is not None:
            self._resume(trainer, self.checkpoint)
        self.say(f"out: {out}")
        epochs = max(0, s.epochs - trainer.epoch)  # --epochs counts those before a resume too
        if self.rank == 0:
            _fit(trainer, epochs, out)
        else:
            trainer.fit(epochs)
        if trainer.epoch < s.epochs:
            self.say(f"stopped after epoch {trainer.epoch}: no improvement for {s.patience} epochs")
        return self._say_result(trainer, classes, out / BEST)

    def _resume(self, trainer: Trainer, checkpoint: Checkpoint) -> None:
        """Continue from the checkpoint, with the schedule of --epochs if that has changed."""
        epochs, before = self.settings.epochs, checkpoint.info["settings"].get("epochs")
        planned = None if trainer.scheduler is None else trainer.scheduler.state_dict()
        trainer.resume(checkpoint)
        text = f"resumed after epoch {trainer.epoch}, step {trainer.step}"
        if epochs != before and before is not None:
            text += f"; {epochs} epochs in all instead of {before}"
            if planned is not None:
                name = getattr(self.settings, "schedule", "script's")
                text += f", with the {name} schedule of {epochs} epochs"
                reschedule(trainer, planned)
        elif trainer.epoch >= epochs:
            text += f": all {epochs} epochs are completed; --epochs with a larger number trains on"
        self.say(text)

    def _locked_folder(self) -> Path:
        """The folder of the run, which this process alone may write to."""
        out = self.settings.out
        if self._lock is not None:  # a run resumed in its own folder
            return Path(out)
        folder = new_folder(out) if self.checkpoint is None else output_folder(out)
        self._lock = FolderLock(folder)
        refuse_to_overwrite(folder)  # a run that has ended just now
        return folder

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
            result = trainer._evaluate()
        if result is not None and self.rank == 0:
            print(f"test accuracy {result.accuracy:.2%}, test loss {result.loss:.4f}")
            for name, accuracy in zip(classes, result.per_class, strict=False):
                self.say(f"  {name:<12} {accuracy:7.2%}")
        if self.rank == 0 and best.exists():
            self.say(f"classify your own images: gpucnn predict {best} IMAGE...")
        return result


def make_callbacks(
    settings: argparse.Namespace,
    recorded: Mapping[str, Any],
    out: Path,
    device: Device,
    started: float,
    tested: bool,
) -> list[Callback]:
    """A run's callbacks: checkpoints, logs and the time limit, counted from `started`.

    tested: the run has a test set.
    """
    every, keep, seconds = settings.save_every, settings.keep, settings.checkpoint_every
    config = {**recorded, "device": str(device), "gpucnn": __version__}
    callbacks: list[Callback] = [
        Checkpoints(out, every, keep, seconds),
        SettingsFile(out / "config.json", config),
    ]
    if settings.max_time:
        callbacks += [TimeLimit(settings.max_time, started)]
    if not settings.quiet:
        callbacks += [ProgressBar(refresh=1 if device.kind == "cpu" else STEPS), EpochLine()]
    callbacks += [MetricsFile(out / "metrics.csv")]
    if settings.tensorboard:
        callbacks += [TensorBoard(out / "tensorboard")]
    if settings.patience is not None:
        callbacks += [EarlyStopping("test_loss" if tested else "train_loss", settings.patience)]
    try:
        callbacks += [Curves(out / "curves.png")]
    except MissingExtra as error:
        if not settings.quiet:
            print(f"no curves.png: {error}")
    return callbacks


def _fit(trainer: Trainer, epochs: int, out: Path) -> None:
    """Train `epochs` more epochs.

    On a stop or an OutputError, name the checkpoint to resume from, if there is one.
    """
    try:
        trainer.fit(epochs)
    except KeyboardInterrupt:
        report(
            f"\nstopped in epoch {trainer.epoch + 1}, after step {trainer.step}; "
            + (_way_on(trainer, out) or "nothing was saved")
        )
        raise
    except OutputError as error:
        way_on = _way_on(trainer, out)
        if not way_on:
            raise
        raise OutputError(f"{error}, then {way_on}") from error


def _way_on(trainer: Trainer, out: Path) -> str:
    """How to resume from what is on disk; "" if no checkpoint is."""
    try:
        found = newest_readable(out / LAST)
    except CheckpointError:
        return ""
    text = f"resume with --resume {found.path}"
    if found.checkpoint.info.get("step") != trainer.step:
        text += f", which continues {found.where()}"
    return text


def _check_memory(
    model: Module,
    optimizer: optim.Optimizer,
    loader: Any,
    limit: int,
    ranks: int,
    precision: str | None,
    micro_batches: int = 1,
) -> None:
    """Refuse a batch of which a rank's part needs more than `limit` bytes.

    The loader's position is unchanged.
    """
    state = loader.state_dict()
    for images, _ in loader:
        loader.load_state_dict(state)
        shape, prefetch = tuple(images.shape[1:]), getattr(loader, "prefetch", 0)
        del images  # the prediction counts it
        own = ceil_div(loader.batch_size, ranks)
        try:
            check_memory_limit(
                model, optimizer, shape, own, limit, prefetch, precision, micro_batches
            )
        except ArgumentError as error:
            if ranks == 1:
                raise
            raise ArgumentError(
                f"{error}\n  these are images of one of {ranks} processes, --batch-size counts all"
            ) from error
        return


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
