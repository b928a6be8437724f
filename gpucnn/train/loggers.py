"""Loggers: a run's numbers for TensorBoard, for Weights & Biases, and as lines of JSON."""

import json
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpucnn.errors import ArgumentError, missing_extra
from gpucnn.files import write_whole, writing
from gpucnn.integers import is_int
from gpucnn.train.callbacks import Log
from gpucnn.train.readback import Numbers
from gpucnn.train.trainer import Trainer


class Logger(Log):
    """Record the numbers of a run: subclasses say where, in `write`.

    After each epoch that is its row of Trainer.history.  After every `every`-th step, counted over
    the run, it is the loss of its batch, its learning rate, and the `values` of the Trainer's
    callbacks, such as GradientNorm; 0: no steps.  The host does not wait for a GPU: a step is
    written once its numbers have arrived, a few steps later.

    Raises ArgumentError if every is negative.
    """

    def __init__(self, every: int = 0) -> None:
        if not is_int(every) or every < 0:
            raise ArgumentError(
                f"{type(self).__name__}: every must be a number of steps, or 0; got {every!r}"
            )
        self.every = every
        self._numbers = Numbers()

    def write(self, step: int, epoch: int, values: dict[str, float]) -> None:
        """Record `values` of the run after step number `step`, in epoch number `epoch`, from 1."""
        raise NotImplementedError

    def close(self) -> None:
        """Write whatever is buffered: the fit has ended."""

    def on_start(self, trainer: Trainer, epochs: int) -> None:
        self._numbers = Numbers()

    def on_batch_end(self, trainer: Trainer) -> None:
        if self.every and trainer.step % self.every == 0:
            values = {"loss": trainer.metrics.last_loss, "lr": trainer._lr}
            for callback in trainer.callbacks:
                values |= callback.values(trainer)
            self._send(trainer.step, trainer.epoch + 1, values)
        self._write_arrived()

    def on_epoch_end(self, trainer: Trainer) -> None:
        row = dict(trainer.history[-1])
        self._send(trainer.step, row.pop("epoch"), row)
        self._write_arrived(wait=True)

    def on_interrupt(self, trainer: Trainer) -> None:
        self._end()

    def on_error(self, trainer: Trainer) -> None:
        self._end()

    def on_end(self, trainer: Trainer) -> None:
        self._end()

    def _end(self) -> None:
        try:
            self._write_arrived(wait=True)
        finally:
            self.close()

    def _send(self, step: int, epoch: int, values: Mapping[str, Any]) -> None:
        found = {name: value for name, value in values.items() if value is not None}
        self._numbers.send((step, epoch, list(found)), list(found.values()))

    def _write_arrived(self, wait: bool = False) -> None:
        for (step, epoch, names), numbers in self._numbers.arrived(wait):
            self.write(step, epoch, dict(zip(names, numbers, strict=True)))


class TensorBoard(Logger):
    """Write an event file for TensorBoard: run `tensorboard --logdir LOG_DIR`.

    Scalars have the names of metrics.csv, and "loss" for the steps; the axis is the step.  A
    resumed run adds a file, which tells TensorBoard to forget the steps that are run again; a new
    run hides the one before it in the same folder.

    Raises MissingExtra without tensorboardX.
    """

    def __init__(self, log_dir: str | Path, every: int = 50) -> None:
        super().__init__(every)
        try:
            import tensorboardX  # noqa: F401
        except ImportError as error:
            raise missing_extra("TensorBoard", "tensorboardX", "tensorboard") from error
        self.log_dir = Path(log_dir)
        self._writer: Any = None

    def on_start(self, trainer: Trainer, epochs: int) -> None:
        from tensorboardX import SummaryWriter

        super().on_start(trainer, epochs)
        self.close()
        # The name of a file has the time in seconds only, and two fits may start in one.
        suffix = f".{trainer.step:09d}.{secrets.token_hex(4)}"
        with writing(self.log_dir):
            self._writer = SummaryWriter(
                str(self.log_dir), purge_step=trainer.step + 1, filename_suffix=suffix
            )

    def on_epoch_end(self, trainer: Trainer) -> None:
        super().on_epoch_end(trainer)
        with writing(self.log_dir):
            self._writer.flush()

    def write(self, step: int, epoch: int, values: dict[str, float]) -> None:
        with writing(self.log_dir):
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            with writing(self.log_dir):
                writer.close()


class WandbLogger(Logger):
    """Record a run with Weights & Biases.

    project, name    as for wandb.init
    id               of the run; pass the same one to continue it after a resume.  None: a new run
                     for every fit
    options          further arguments of wandb.init, such as mode="offline"

    The config is Trainer.info.  WANDB_MODE=offline keeps everything on this machine.

    Raises MissingExtra without wandb.
    """

    def __init__(
        self,
        project: str | None = None,
        name: str | None = None,
        id: str | None = None,
        every: int = 50,
        **options: Any,
    ) -> None:
        super().__init__(every)
        try:
            import wandb  # noqa: F401
        except ImportError as error:
            raise missing_extra("WandbLogger", "wandb", "wandb") from error
        self._options = {"project": project, "name": name, "id": id, **options}
        if id is not None:
            self._options.setdefault("resume", "allow")
        self.run: Any = None

    def on_start(self, trainer: Trainer, epochs: int) -> None:
        import wandb

        super().on_start(trainer, epochs)
        self.close()
        self.run = wandb.init(**{"config": trainer.info, **self._options})

    def write(self, step: int, epoch: int, values: dict[str, float]) -> None:
        self.run.log({"epoch": epoch, **values}, step=step)

    def close(self) -> None:
        if self.run is not None:
            run, self.run = self.run, None
            run.finish()


class JSONLines(Logger):
    """Append a line of JSON for each epoch, and with `every` for steps, to the file `path`.

        {"step": 100, "epoch": 1, "loss": 1.91, "lr": 0.05}
        {"epoch": 1, "train_loss": 1.62, "train_accuracy": 0.41, "test_loss": 1.5, ...}

    A line is written at once and in one piece, so a killed run leaves whole lines.  A resumed run
    removes the lines after its checkpoint and continues; a new run replaces the file.  A number
    that is not finite is null.
    """

    def __init__(self, path: str | Path, every: int = 0) -> None:
        super().__init__(every)
        self.path = Path(path)
        self._epochs: set[int] = set()  # that have a line

    def on_start(self, trainer: Trainer, epochs: int) -> None:
        super().on_start(trainer, epochs)
        self._epochs = set()
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.is_file() else []
        kept = [line for line in lines if self._is_past(line, trainer)]
        if kept != lines or not self.path.is_file():
            write_whole(self.path, b"".join(kept))
        self._write_missing(trainer.history)

    def on_epoch_end(self, trainer: Trainer) -> None:
        self._write_arrived(wait=True)
        self._write_missing(trainer.history[:-1])  # the disk may have been full
        super().on_epoch_end(trainer)

    def write(self, step: int, epoch: int, values: dict[str, float]) -> None:
        where = {"epoch": epoch} if _OF_EPOCH in values else {"step": step, "epoch": epoch}
        numbers = {name: x if math.isfinite(x) else None for name, x in values.items()}
        _append(self.path, json.dumps(where | numbers).encode() + b"\n")
        if _OF_EPOCH in values:
            self._epochs.add(epoch)

    def _write_missing(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if row["epoch"] not in self._epochs:
                values = {name: value for name, value in row.items() if value is not None}
                self.write(0, values.pop("epoch"), values)

    def _is_past(self, line: bytes, trainer: Trainer) -> bool:
        """Whether a line is whole, and about what the trainer has done; notes its epoch."""
        try:
            found = json.loads(line)
            step, epoch = found.get("step"), found["epoch"]
            if not line.endswith(b"\n"):
                return False
            if step is not None:
                return bool(step <= trainer.step)
            past = epoch <= trainer.epoch and epoch not in self._epochs
        except (ValueError, TypeError, AttributeError, KeyError):  # half a line, or another file's
            return False
        if past:
            self._epochs.add(epoch)
        return bool(past)


_OF_EPOCH = "train_loss"  # which only the values of an epoch have


def _append(path: Path, line: bytes) -> None:
    """Append the whole line, or nothing; OutputError if that fails."""
    with writing(path):
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            size = os.fstat(number).st_size
            try:
                while line:
                    line = line[os.write(number, line) :]
            except OSError:
                os.ftruncate(number, size)
                raise
        finally:
            os.close(number)
