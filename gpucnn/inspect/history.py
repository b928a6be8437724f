"""Training curves, histograms of the weights, and the relative size of each update."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn.device import Array, array_module, device_of, to_host, working_on
from gpucnn.errors import ArgumentError, DataError
from gpucnn.inspect import draw
from gpucnn.integers import ceil_div
from gpucnn.nn import Module
from gpucnn.train import Callback, Trainer

Values = np.ndarray[Any, Any]
Histograms = dict[str, tuple[Values, Values]]  # name: (counts (bins,), edges (bins + 1,))


def training_curves(
    history: str | Path | Sequence[Mapping[str, Any]],
    path: draw.File | None = None,
    theme: draw.Theme = "light",
) -> dict[str, Values]:
    """The columns of a training history: {"epoch": (E,), "train_loss": (E,), ...}, float64.

    history is a Trainer's `history`, or the path of a run's metrics.csv.  Missing values are NaN.
    With `path`, write a PNG of loss (nats) and accuracy (0 to 1) over the epochs.

    Raises DataError if the file cannot be read or is not a metrics.csv, ArgumentError if there is
    no epoch.
    """
    rows = _read(Path(history)) if isinstance(history, str | Path) else list(history)
    if not rows:
        raise ArgumentError("training_curves: expected at least one finished epoch, got none")
    curves = {name: np.array([_number(row[name]) for row in rows]) for name in rows[0]}
    if path is not None:
        with draw.chart(path, theme, rows=2, height=4.4) as (_, grid):
            for axes, what, unit in zip(
                grid[:, 0], ("loss", "accuracy"), ("nats", "fraction"), strict=True
            ):
                for split, style in (("train", "--"), ("test", "-")):
                    values = curves[f"{split}_{what}"]
                    if np.isfinite(values).any():
                        axes.plot(curves["epoch"], values, style, marker="o", ms=3, label=split)
                axes.set(ylabel=f"{what} ({unit})")
                axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
                axes.grid(True)
                axes.legend()
            grid[1, 0].set_xlabel("epoch")
    return curves


def _read(path: Path) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"training_curves: {path} cannot be read ({error})") from error
    needed = {"epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy"}
    if rows and (not needed <= rows[0].keys() or None in rows[-1].values()):
        raise DataError(f"training_curves: {path} is not the metrics.csv of a run")
    return rows


def _number(value: Any) -> float:
    return float("nan") if value is None or value == "" else float(value)


def weight_histograms(
    model: Module, bins: int = 50, path: draw.File | None = None, theme: draw.Theme = "light"
) -> Histograms:
    """Histograms of the weights: {name: (counts (bins,), edges (bins + 1,))}.

    A weight is a parameter with two axes or more.  With `path`, write a PNG with one small chart
    per weight.  Raises ArgumentError for bins < 1, or for a path if the model has no weight.
    """
    if bins < 1:
        raise ArgumentError(f"weight_histograms: bins must be at least 1, got {bins}")
    histograms = {
        name: np.histogram(to_host(parameter.data).astype(np.float64), bins)
        for name, parameter in model.named_parameters()
        if parameter.ndim >= 2
    }
    if path is not None:
        _draw_histograms(path, histograms, theme, "value")
    return histograms


class UpdateRatios(Callback):
    """A callback that records the relative update of each parameter: |change| / |parameter|.

    Norms are Euclidean, over a whole parameter; the denominator is its value before the step.
    `ratios` maps each parameter's name to a list with one ratio per step.  Around 0.001 is usual;
    much larger ratios make training unstable, much smaller ones make it slow.  The callback keeps a
    copy of the parameters, and synchronizes host and GPU at each step.
    """

    def __init__(self) -> None:
        self.ratios: dict[str, list[float]] = {}
        self._before: dict[str, Array] = {}

    def on_start(self, trainer: Trainer, epochs: int) -> None:
        self._before = {}
        for name, parameter in trainer.model.named_parameters():
            with working_on(parameter.device):
                self._before[name] = parameter.data.copy()

    def on_batch_end(self, trainer: Trainer) -> None:
        for name, parameter in trainer.model.named_parameters():
            before = self._before[name]
            ratio = update_ratio(before, parameter.data)
            self.ratios.setdefault(name, []).append(ratio)
            with working_on(parameter.device):
                before[...] = parameter.data


def update_ratio(before: Array, after: Array) -> float:
    """|after - before| / |before|, Euclidean; infinite if before is zero and after is not."""
    xp = array_module(before)
    with working_on(device_of(before)):
        change = float(xp.sqrt(xp.square(after - before).sum()))
        size = float(xp.sqrt(xp.square(before).sum()))
    if size == 0:
        return float("inf") if change else 0.0
    return change / size


def update_ratio_histograms(
    ratios: Mapping[str, Sequence[float]],
    bins: int = 20,
    path: draw.File | None = None,
    theme: draw.Theme = "light",
) -> Histograms:
    """Histograms of log10 of UpdateRatios.ratios: {name: (counts (bins,), edges (bins + 1,))}.

    All parameters share the same edges, which span whole powers of ten.  Zero and infinite ratios
    are excluded.  With `path`, write a PNG.  Raises ArgumentError for bins < 1, or for a path if
    ratios is empty.
    """
    if bins < 1:
        raise ArgumentError(f"update_ratio_histograms: bins must be at least 1, got {bins}")
    logs = {
        name: np.log10([v for v in values if v > 0 and np.isfinite(v)])
        for name, values in ratios.items()
    }
    all_logs = np.concatenate([*logs.values(), np.empty(0)])
    low, high = (
        (np.floor(all_logs.min()), np.ceil(all_logs.max())) if all_logs.size else (-4.0, -2.0)
    )
    edges = np.linspace(low, max(high, low + 1), bins + 1)
    histograms = {name: np.histogram(values, edges) for name, values in logs.items()}
    if path is not None:
        _draw_histograms(path, histograms, theme, "log10 of update / weight")
    return histograms


def _draw_histograms(path: draw.File, histograms: Histograms, theme: draw.Theme, unit: str) -> None:
    if not histograms:
        raise ArgumentError("histograms: expected at least one parameter to draw, got none")
    columns = min(2, len(histograms))
    rows = ceil_div(len(histograms), columns)
    with draw.chart(path, theme, rows, columns, height=0.4 + 1.15 * rows) as (figure, grid):
        for axes in grid.flat[len(histograms) :]:
            axes.axis("off")
        for axes, (name, (counts, edges)) in zip(grid.flat, histograms.items(), strict=False):
            axes.stairs(counts, edges, fill=True)
            axes.set_title(draw.label(name))
            axes.set_yticks([])
            axes.locator_params(axis="x", nbins=4)
        figure.supxlabel(unit, fontsize=9)
