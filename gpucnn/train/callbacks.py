"""Callbacks: progress bar, epoch lines, metrics file, checkpoints, curves."""

import csv
import io
import math
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gpucnn.errors import ArgumentError, missing_extra
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


class ProgressBar(Callback):
    """A tqdm bar per epoch: loss, accuracy, images per second, remaining time."""

    def __init__(self, refresh: int = 1) -> None:
        """refresh: steps between updates of the metrics, which make the host wait for a GPU."""
        if refresh < 1:
            raise ArgumentError(f"ProgressBar: refresh must be at least 1, got {refresh}")
        self.refresh = refresh
        self._bar: Any = None
        self._epochs = 0
        self._images = 0

    def on_start(self, trainer: Trainer, epochs: int) -> None:
        self._epochs = epochs

    def on_epoch_start(self, trainer: Trainer) -> None:
        self._images = trainer.metrics.count
        loader = trainer.loader
        self._bar = tqdm(
            total=min(len(loader) * loader.batch_size, len(loader.dataset)),
            initial=self._images,
            desc=f"epoch {trainer.epoch + 1}/{self._epochs}",
            unit="img",
            leave=False,
            dynamic_ncols=True,
        )

    def on_batch_end(self, trainer: Trainer) -> None:
        metrics = trainer.metrics
        if trainer.step % self.refresh == 0:
            self._bar.set_postfix_str(
                f"loss {metrics.loss:.3f}, accuracy {metrics.accuracy:.1%}", refresh=False
            )
        self._bar.update(metrics.count - self._images)
        self._images = metrics.count

    def on_epoch_end(self, trainer: Trainer) -> None:
        self._close()

    def on_interrupt(self, trainer: Trainer) -> None:
        self._close()

    def on_error(self, trainer: Trainer) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class EpochLine(Callback):
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


class MetricsFile(Callback):
    """Write metrics.csv: a row per epoch, accuracies as fractions.

    The whole file is rewritten after each epoch, and when a run resumes, so that it matches the
    run wherever the previous process stopped.  Raises OutputError if it cannot be written; the
    previous file stays intact.
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
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(trainer.history)
        write_whole(self.path, text.getvalue())


class Checkpoints(Callback):
    """Write last.safetensors after each epoch, on an interrupt, and every `every` steps unless 0.

    Also write best.safetensors whenever the test accuracy (without a test set, the training loss)
    improves.

    Raises OutputError if a file cannot be written; the previous one stays intact.
    """

    def __init__(self, folder: str | Path, every: int = 0) -> None:
        if every < 0:
            raise ArgumentError(f"Checkpoints: every must not be negative, got {every}")
        self.folder = Path(folder)
        self.every = every

    def on_batch_end(self, trainer: Trainer) -> None:
        if self.every and trainer.step % self.every == 0:
            self._save(trainer, "last.safetensors")

    def on_epoch_end(self, trainer: Trainer) -> None:
        if _score(trainer.history[-1]) > max(map(_score, trainer.history[:-1]), default=-math.inf):
            self._save(trainer, "best.safetensors")
        self._save(trainer, "last.safetensors")

    def on_interrupt(self, trainer: Trainer) -> None:
        self._save(trainer, "last.safetensors")

    def _save(self, trainer: Trainer, name: str) -> None:
        trainer.save(self.folder / name)


def _score(row: dict[str, Any]) -> float:
    accuracy = row["test_accuracy"]
    return float(accuracy if accuracy is not None else -row["train_loss"])


class Curves(Callback):
    """Draw curves.png, loss and accuracy over the epochs, after each epoch.

    Raises MissingExtra without matplotlib, OutputError if the file cannot be written; the previous
    one stays intact.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            import matplotlib  # noqa: F401
        except ImportError as error:
            raise missing_extra("Curves", "matplotlib", "plot") from error
        self.path = Path(path)

    def on_start(self, trainer: Trainer, epochs: int) -> None:
        if trainer.history:
            self._draw(trainer)

    def on_epoch_end(self, trainer: Trainer) -> None:
        self._draw(trainer)

    def _draw(self, trainer: Trainer) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 3.5), layout="constrained")
        FigureCanvasAgg(figure)
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
        figure.savefig(picture, format="png", dpi=120)
        write_whole(self.path, picture.getvalue())
