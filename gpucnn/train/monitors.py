"""Callbacks that follow one number over the epochs: stop in time, keep the best checkpoints.

Both decide from Trainer.history alone, which every checkpoint holds.  So a resumed run decides as
one that was never stopped.
"""

import math
import re
from pathlib import Path

from gpucnn.errors import ArgumentError
from gpucnn.files import writing
from gpucnn.integers import is_int
from gpucnn.train.trainer import Callback, Trainer

_MODES = {
    "train_loss": "min",
    "test_loss": "min",
    "train_accuracy": "max",
    "test_accuracy": "max",
}


class _Monitor(Callback):
    """A callback that compares the values of `monitor`, an entry of Trainer.history."""

    def __init__(self, monitor: str, mode: str | None) -> None:
        who = type(self).__name__
        self.monitor = monitor
        chosen = _MODES.get(monitor) if mode is None else mode
        if chosen not in ("min", "max"):
            given = "" if mode is None else f", got {mode!r}"
            raise ArgumentError(f'{who}: expected mode="min" or "max" for {monitor}{given}')
        self.mode = chosen
        self._sign = 1.0 if chosen == "max" else -1.0

    def on_start(self, trainer: Trainer, epochs: int) -> None:
        who, tested = type(self).__name__, trainer.test_loader is not None
        names = ["train_loss", "train_accuracy"]
        if tested:
            names += ["test_loss", "test_accuracy", *(f"test_{m}" for m in trainer.test_metrics)]
        if self.monitor not in names:
            text = f"{who}: this run has no {self.monitor!r}; expected one of {', '.join(names)}"
            if self.monitor.startswith("test_") and not tested:
                text += "\n  give the Trainer a test_loader"
            raise ArgumentError(text)

    def _scores(self, trainer: Trainer) -> list[tuple[int, float]]:
        """(epoch, score) of all epochs; larger is better, -inf is a value that is missing."""
        found = ((row["epoch"], row.get(self.monitor)) for row in trainer.history)
        return [(epoch, -math.inf if x is None else self._sign * x) for epoch, x in found]


class EarlyStopping(_Monitor):
    """End the fit once `monitor` has not improved for `patience` epochs in a row.

    monitor      an entry of Trainer.history, such as "test_loss", "test_accuracy", or "test_top5"
                 of the Trainer's test_metrics
    min_delta    what counts as an improvement: a change of more than this
    mode         "min": smaller is better; "max": larger; None: by the monitor, if that is a loss
                 or an accuracy

    `fit` then returns as after its last epoch; `stopped_epoch` is the number of that epoch, 0 if
    the run was not stopped.  A later fit trains nothing, unless you raise `patience` or take the
    callback out of trainer.callbacks.  The model is that of the last epoch: the best one is on the
    disk, if Checkpoints or ModelCheckpoint write it.

    Raises ArgumentError for a monitor that the run does not have, patience below 1, a negative
    min_delta or another mode.
    """

    def __init__(
        self,
        monitor: str = "test_loss",
        patience: int = 3,
        min_delta: float = 0.0,
        mode: str | None = None,
    ) -> None:
        super().__init__(monitor, mode)
        if not is_int(patience) or patience < 1:
            raise ArgumentError(f"EarlyStopping: patience must be at least 1, got {patience!r}")
        if not 0 <= min_delta < math.inf:
            raise ArgumentError(f"EarlyStopping: min_delta must not be negative, got {min_delta}")
        self.patience, self.min_delta = patience, min_delta
        self.stopped_epoch = 0

    def on_start(self, trainer: Trainer, epochs: int) -> None:
        super().on_start(trainer, epochs)
        self._check(trainer)

    def on_epoch_end(self, trainer: Trainer) -> None:
        self._check(trainer)

    def _check(self, trainer: Trainer) -> None:
        best, since = -math.inf, 0
        self.stopped_epoch = 0
        for epoch, score in self._scores(trainer):
            if best == -math.inf or score > best + self.min_delta:
                best, since = score, epoch
            elif epoch - since >= self.patience:
                self.stopped_epoch = epoch
                trainer.should_stop = True
                return


class ModelCheckpoint(_Monitor):
    """Keep the checkpoints of the `save_top_k` best epochs in a folder.

    monitor, mode    as for EarlyStopping
    save_top_k       how many; -1 keeps those of all epochs

    A file is named after its epoch and value: "epoch=3-test_loss=0.5488.safetensors".  It is
    written as by Trainer.save, so a run can also resume from it.  Of equal values the earlier epoch
    is the better one.  `best_model_path` and `best_model_score` are those of the best epoch, None
    before the first.

    Raises ArgumentError as EarlyStopping does; OutputError if a file cannot be written.
    """

    def __init__(
        self,
        folder: str | Path,
        monitor: str = "test_loss",
        mode: str | None = None,
        save_top_k: int = 1,
    ) -> None:
        super().__init__(monitor, mode)
        if not is_int(save_top_k) or (save_top_k < 1 and save_top_k != -1):
            raise ArgumentError(
                f"ModelCheckpoint: save_top_k must be at least 1, or -1 for all; got {save_top_k!r}"
            )
        self.folder, self.save_top_k = Path(folder), save_top_k
        self.best_model_path: Path | None = None
        self.best_model_score: float | None = None

    def on_start(self, trainer: Trainer, epochs: int) -> None:
        super().on_start(trainer, epochs)
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        if trainer.metrics.count == 0:  # a kill may have come before the epoch's file was written
            self._update(trainer, write_existing=False)

    def on_epoch_end(self, trainer: Trainer) -> None:
        self._update(trainer, write_existing=True)

    def _update(self, trainer: Trainer, write_existing: bool) -> None:
        found = [(epoch, score) for epoch, score in self._scores(trainer) if score > -math.inf]
        ranked = sorted(found, key=lambda pair: (-pair[1], pair[0]))
        if not ranked:
            return
        count = len(ranked) if self.save_top_k == -1 else self.save_top_k
        for epoch, score in ranked[:count]:
            path = self._path(epoch, score)
            if epoch == trainer.epoch and (write_existing or not path.exists()):
                trainer.save(path)
        for epoch, score in ranked[count:]:
            path = self._path(epoch, score)
            with writing(path):
                path.unlink(missing_ok=True)
        self.best_model_path = self._path(*ranked[0])
        self.best_model_score = self._sign * ranked[0][1]

    def _path(self, epoch: int, score: float) -> Path:
        name = re.sub(r"[^\w.-]", "_", self.monitor)
        return self.folder / f"epoch={epoch}-{name}={self._sign * score:.4f}.safetensors"
