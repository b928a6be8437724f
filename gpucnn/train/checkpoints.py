"""The callback that saves checkpoints."""

import math
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpucnn.checkpoint import read_checkpoint
from gpucnn.errors import ArgumentError, CheckpointError
from gpucnn.files import sync_folder, write_whole, writing
from gpucnn.train.run_folder import BEST, LAST, before_last, kept
from gpucnn.train.trainer import Callback, Trainer


class Checkpoints(Callback):
    """Write last.safetensors after each epoch and on an interrupt.

    every     also every so many steps; 0: not
    seconds   also this long after the previous save; 0: not
    keep      keep so many checkpoints: last.safetensors, and those before it as
              last-1.safetensors, last-2.safetensors, ...

    At every instant, even during kill -9, last.safetensors is complete.  best.safetensors is the
    checkpoint of the epoch with the best test accuracy (without a test set, training loss).  It is
    written once: last.safetensors is then a second name (a hard link) of the same file, where the
    file system has links.  So a run holds at most keep + 1 files, and one more during a save.

    A Trainer calls this callback before all others.  Raises OutputError if a file cannot be
    written; the previous one stays intact.
    """

    first = True

    def __init__(
        self, folder: str | Path, every: int = 0, keep: int = 2, seconds: float = 0
    ) -> None:
        if every < 0:
            raise ArgumentError(f"Checkpoints: every must not be negative, got {every}")
        if keep < 1:
            raise ArgumentError(f"Checkpoints: keep must be at least 1, got {keep}")
        if not seconds >= 0:
            raise ArgumentError(f"Checkpoints: seconds must not be negative, got {seconds}")
        self.folder = Path(folder)
        self.every = every
        self.keep = keep
        self.seconds = seconds
        self._saved: tuple[int, int] | None = None  # (epoch, step) of the last save
        self._saved_at = time.monotonic()

    def on_start(self, trainer: Trainer, epochs: int) -> None:
        self._saved = None
        self._saved_at = time.monotonic()

    def on_batch_end(self, trainer: Trainer) -> None:
        if (self.every and trainer.step % self.every == 0) or (
            self.seconds and time.monotonic() - self._saved_at >= self.seconds
        ):
            self._save(trainer)

    def on_epoch_end(self, trainer: Trainer) -> None:
        before = max(map(_score, trainer.history[:-1]), default=-math.inf)
        self._save(trainer, best=_score(trainer.history[-1]) > before)

    def on_interrupt(self, trainer: Trainer) -> None:
        if self._saved != (trainer.epoch, trainer.step):
            self._save(trainer)

    def _save(self, trainer: Trainer, best: bool = False) -> None:
        last = self.folder / LAST
        # A second name for the present file, which trainer.save replaces only when the new one is
        # complete and finite.
        previous = self.folder / f".{LAST}.previous"
        keeping = self.keep > 1 and self._is_good(last)
        if keeping:
            _link(last, previous)
        try:
            if best:
                trainer.save(self.folder / BEST)
            if not (best and self._link_last()):
                trainer.save(last)
        except BaseException:
            with suppress(OSError):
                previous.unlink()
            raise
        self._saved = trainer.epoch, trainer.step
        self._saved_at = time.monotonic()
        if keeping:
            self._rotate(previous)
        for age, path in kept(self.folder).items():
            if age >= self.keep and path.is_file():
                with writing(path):
                    path.unlink()

    def _link_last(self) -> bool:
        """Make last.safetensors the same file as best.safetensors; False if that is impossible."""
        best, last = self.folder / BEST, self.folder / LAST
        if best.is_symlink() or last.is_symlink():  # its target is to be replaced
            return False
        linked = self.folder / f".{LAST}.linked"
        try:
            linked.unlink(missing_ok=True)
            os.link(best, linked)
            os.replace(linked, last)
        except OSError:
            with suppress(OSError):
                linked.unlink()
            return False
        sync_folder(self.folder)
        return True

    def _is_good(self, last: Path) -> bool:
        """Whether `last` is a checkpoint worth keeping; one by another process may be damaged."""
        if self._saved is not None:
            return last.is_file()
        try:
            read_checkpoint(last)
        except CheckpointError:
            return False
        return True

    def _rotate(self, previous: Path) -> None:
        """Make `previous` last-1.safetensors, and the present one last-2.safetensors, and so on."""
        for age in range(self.keep - 1, 0, -1):
            newer = previous if age == 1 else self.folder / before_last(age - 1)
            path = self.folder / before_last(age)
            if newer.exists():
                with writing(path):
                    os.replace(newer, path)


def _link(path: Path, other: Path) -> None:
    """Give the file a second name, or where the file system has no links, copy it."""
    with writing(other):
        other.unlink(missing_ok=True)
        try:
            os.link(path, other)
        except OSError:
            write_whole(other, path.read_bytes())


def _score(row: dict[str, Any]) -> float:
    accuracy = row["test_accuracy"]
    return float(accuracy if accuracy is not None else -row["train_loss"])
