"""The progress of a run: a bar in a terminal or notebook, lines elsewhere."""

import sys
import time
import warnings
from typing import Any

from gpucnn.arguments import Lenient, report
from gpucnn.errors import ArgumentError
from gpucnn.train.callbacks import Log
from gpucnn.train.readback import Numbers
from gpucnn.train.trainer import Trainer

_LINES = 10  # in a run


class ProgressBar(Log):
    """Show the progress of a run on standard error: loss, accuracy, speed, remaining time.

    In a terminal and in a notebook that is one tqdm bar for the whole run; in a notebook with
    ipywidgets, the notebook's own.  Elsewhere, as in a pipe or the log of a CI, it is a line at
    every 10 % of the run.
    """

    def __init__(self, refresh: int = 1) -> None:
        """refresh: steps between updates of loss and accuracy, which cost a GPU a few launches."""
        if refresh < 1:
            raise ArgumentError(f"ProgressBar: refresh must be at least 1, got {refresh}")
        self.refresh = refresh
        self._bar: Any = None
        self._lines = False
        self._numbers = Numbers()
        self._epochs = self._total = self._first = self._done = 0  # the last three in images
        self._per_epoch = self._next_line = 0
        self._started = 0.0

    def on_start(self, trainer: Trainer, epochs: int) -> None:
        self._close()
        loader = trainer.loader
        self._numbers, self._epochs = Numbers(), epochs
        self._per_epoch = min(len(loader) * loader.batch_size, len(loader.dataset))
        self._total = epochs * self._per_epoch
        self._first = self._done = self._position(trainer)
        self._next_line = 1 + self._first * _LINES // max(self._total, 1)
        self._started = time.monotonic()
        self._bar, self._lines = None, False
        if sys.stderr is None or self._first >= self._total:  # closed, or nothing to do
            return
        bar_class = _bar_class()
        self._lines = bar_class is None
        if bar_class is not None:
            self._bar = bar_class(
                file=Lenient(sys.stderr),
                total=self._total,
                initial=self._first,
                desc=f"epoch {trainer.epoch + 1}/{epochs}",
                unit="img",
                leave=False,
                dynamic_ncols=True,
            )

    def on_epoch_start(self, trainer: Trainer) -> None:
        if self._bar is not None:
            self._bar.set_description_str(f"epoch {trainer.epoch + 1}/{self._epochs}", False)

    def on_batch_end(self, trainer: Trainer) -> None:
        if self._bar is None and not self._lines:
            return
        done = self._position(trainer)
        line = self._lines and done * _LINES >= self._next_line * self._total
        if line:
            self._next_line = 1 + done * _LINES // self._total
        if line or (self._bar is not None and trainer.step % self.refresh == 0):
            count, epoch = trainer.metrics.count, trainer.epoch + 1
            self._numbers.send((done, epoch, count), trainer.metrics.sums)
        self._show_arrived()
        if self._bar is not None:
            self._bar.update(done - self._done)
        self._done = done

    def on_epoch_end(self, trainer: Trainer) -> None:
        self._show_arrived(wait=True)  # nothing is under way any more
        if self._bar is not None:
            self._bar.clear()  # other callbacks print; the next batch draws it again

    def on_interrupt(self, trainer: Trainer) -> None:
        self._close()

    def on_error(self, trainer: Trainer) -> None:
        self._close()

    def on_end(self, trainer: Trainer) -> None:
        self._close()

    def _position(self, trainer: Trainer) -> int:
        """The images of the run so far."""
        return min(trainer.epoch * self._per_epoch + trainer.metrics.count, self._total)

    def _show_arrived(self, wait: bool = False) -> None:
        for (done, epoch, count), (loss, correct) in self._numbers.arrived(wait):
            self._show(done, epoch, f"loss {loss / count:.3f}, accuracy {correct / count:.1%}")

    def _show(self, done: int, epoch: int, text: str) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            return
        seconds = time.monotonic() - self._started
        left = seconds * (self._total - done) / max(done - self._first, 1)
        percent = 100 * done // self._total
        report(f"{percent:3d} %  epoch {epoch}/{self._epochs}  {text}  {_clock(left)} left")

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _bar_class() -> Any:
    """tqdm's class for this terminal or notebook; None without either."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that ipywidgets is missing: then the bar is text
        from tqdm.auto import tqdm
    return tqdm if sys.stderr.isatty() or _in_notebook() else None


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return "IPKernelApp" in getattr(shell, "config", ())


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
