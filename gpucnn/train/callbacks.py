"""Callbacks: epoch lines, files of settings and metrics, curves, a time limit."""

import csv
import io
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpucnn.errors import missing_extra
from gpucnn.files import write_whole
from gpucnn.train.trainer import Callback, Trainer

COLUMNS = (
    "epoch",
    "train_loss",
    "train_accuracy",
    "test_loss",
    "test_accuracy",
    "lr",
    "seconds",
    "images_per_second",
    "step_ms",  # on the device; excludes waiting for the loader
)


class Log(Callback):
    """A callback that only reports: if it fails, training goes on with a warning."""

    required = False


class EpochLine(Log):
    """Print a line per epoch."""

    def __init__(self) -> None:
        self._epochs = 0

    def on_start(self, trainer: Trainer, epochs: int) -> None:
        self._epochs = epochs

    def on_epoch_end(self, trainer: Trainer) -> None:
        row = trainer.history[-1]
        text = (
            f"epoch {row['epoch']}/{self._epochs}  train loss {row['train_loss']:.4f} "
            f"accuracy {row['train_accuracy']:.2%}"
        )
        if row["test_accuracy"] is not None:
            text += f"  test loss {row['test_loss']:.4f} accuracy {row['test_accuracy']:.2%}"
        print(
            f"{text}  {row['seconds']:.1f} s, {row['images_per_second']:.0f} images/s", flush=True
        )


class MetricsFile(Log):
    """Write metrics.csv: a row per epoch, accuracies as fractions, then the test metrics.

    The whole file is rewritten after each epoch, and when a run resumes, so that it matches the
    run wherever the previous process stopped.  If it cannot be written, the previous file stays
    intact.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def on_start(self, trainer: Trainer, epochs: int) -> None:
        if trainer.history:
            self._write(trainer)

    def on_epoch_end(self, trainer: Trainer) -> None:
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        text = io.StringIO(newline="")
        columns = dict.fromkeys([*COLUMNS, *(name for row in trainer.history for name in row)])
        writer = csv.DictWriter(text, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {name: _cell(value) for name, value in row.items()} for row in trainer.history
        )
        write_whole(self.path, text.getvalue())


def _cell(value: Any) -> Any:
    """`value`; unless it is a number or None, in quotes, so that it is no formula."""
    return value if value is None or isinstance(value, int | float) else repr(value)


class SettingsFile(Log):
    """Write config.json, the settings of the run, before training."""

    def __init__(self, path: str | Path, settings: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self._text = json.dumps(settings, indent=2) + "\n"
        self._written = False

    def on_start(self, trainer: Trainer, epochs: int) -> None:
        self._write()

    def on_epoch_end(self, trainer: Trainer) -> None:
        if not self._written:
            self._write()

    def _write(self) -> None:
        write_whole(self.path, self._text)
        self._written = True


class TimeLimit(Callback):
    """Stop training, as Ctrl-C does but with exit status 0, `seconds` after `since`.

    since is a time.monotonic(); None means now.  The limit is checked after each step and epoch, so
    a run that is resumed again and again makes progress.
    """

    def __init__(self, seconds: float, since: float | None = None) -> None:
        self._end = (time.monotonic() if since is None else since) + seconds

    def on_batch_end(self, trainer: Trainer) -> None:
        self._check(trainer)

    def on_epoch_end(self, trainer: Trainer) -> None:
        self._check(trainer)

    def _check(self, trainer: Trainer) -> None:
        if time.monotonic() >= self._end:
            trainer.stop(0)


class Curves(Log):
    """Draw curves.png, loss and accuracy over the epochs, after each epoch.

    Raises MissingExtra without matplotlib.  If the file cannot be written, the previous one stays
    intact.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            import matplotlib  # noqa: F401
        except ImportError as error:
            raise missing_extra("Curves", "matplotlib", "plot") from error
        self.path = Path(path)
        self._figure: Any = None

    def on_start(self, trainer: Trainer, epochs: int) -> None:
        if trainer.history:
            self._draw(trainer)

    def on_epoch_end(self, trainer: Trainer) -> None:
        self._draw(trainer)

    def _draw(self, trainer: Trainer) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        if self._figure is None:
            self._figure = Figure(figsize=(9, 3.5), dpi=120, layout="constrained")
            FigureCanvasAgg(self._figure)
        figure = self._figure  # matplotlib caches texts for every new canvas
        figure.clear()
        rows = trainer.history
        epochs = [row["epoch"] for row in rows]
        for axes, what, unit in zip(
            figure.subplots(1, 2), ("loss", "accuracy"), ("nats", "fraction"), strict=True
        ):
            for split, style in (("train", "--"), ("test", "-")):
                values = [row[f"{split}_{what}"] for row in rows]
                if None not in values:
                    axes.plot(epochs, values, style, marker="o", markersize=3, label=split)
            axes.set(xlabel="epoch", ylabel=f"{what} ({unit})")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(alpha=0.3)
            axes.legend()
        picture = io.BytesIO()
        figure.savefig(picture, format="png")
        write_whole(self.path, picture.getvalue())
