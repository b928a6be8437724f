"""How a training went: its curves, and the weights and how much of them each step changed."""

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
    """The columns of a training's history: {"epoch": (E,), "train_loss": (E,), ...}, float64.

    history is a Trainer's `history` or the metrics.csv of a run; what is missing is not a number.
    With `path`, a PNG of loss (nats) and accuracy over the epochs.

    Raises DataError if the file is missing or is no such table, ArgumentError for no epochs.
    """
    rows = _read(Path(history)) if isinstance(history, str | Path) else list(history)
    if not rows:
        raise ArgumentError("training_curves: there is no finished epoch to show")
    curves = {name: np.array([_number(row[name]) for row in rows]) for name in rows[0]}
    if path is not None:
        with draw.chart(path, theme, rows=2, height=4.4) as (_, grid):
            for axes, what, unit in zip(
                grid[:, 0], ("loss", "accuracy"), ("nats", "share correct"), strict=True
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
    """How the values of each weight (each parameter of two axes or more) are spread.

    With `path`, a PNG of them, one small chart a weight.
    """
    if bins < 1:
        raise ArgumentError(f"weight_histograms: bins must be at least 1, got {bins}")
    found = {
        name: np.histogram(to_host(parameter.data).astype(np.float64), bins)
        for name, parameter in model.named_parameters()
        if parameter.ndim >= 2
    }
    if path is not None:
        _draw_histograms(path, found, theme, "value")
    return found


class UpdateRatios(Callback):
    """A callback that notes how far each step moves each parameter: |change| / |parameter|.

    Norms are Euclidean, over a whole parameter, the one before the step; `ratios` has a list for
    each parameter's name, a number a step.  A thousandth is usual; far more shakes the network,
    far less leaves it where it is.  It keeps a copy of the parameters and makes a GPU's host wait.
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
    """|after - before| / |before|, Euclidean; infinite where a zero parameter has moved."""
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
    """How the base-10 logarithms of UpdateRatios.ratios are spread, for each parameter.

    The bins are the same for all, over whole powers of ten.  Zero and infinite ratios have no
    logarithm and are left out.  With `path`, a PNG.
    """
    if bins < 1:
        raise ArgumentError(f"update_ratio_histograms: bins must be at least 1, got {bins}")
    logs = {
        name: np.log10([v for v in values if v > 0 and np.isfinite(v)])
        for name, values in ratios.items()
    }
    every = np.concatenate([*logs.values(), np.empty(0)])
    low, high = (np.floor(every.min()), np.ceil(every.max())) if every.size else (-4.0, -2.0)
    edges = np.linspace(low, max(high, low + 1), bins + 1)
    found = {name: np.histogram(values, edges) for name, values in logs.items()}
    if path is not None:
        _draw_histograms(path, found, theme, "log10 of update / weight")
    return found


def _draw_histograms(path: draw.File, found: Histograms, theme: draw.Theme, unit: str) -> None:
    if not found:
        raise ArgumentError("histograms: there is nothing to draw")
    columns = min(2, len(found))
    rows = ceil_div(len(found), columns)
    with draw.chart(path, theme, rows, columns, height=0.4 + 1.15 * rows) as (figure, grid):
        for axes in grid.flat[len(found) :]:
            axes.axis("off")
        for axes, (name, (counts, edges)) in zip(grid.flat, found.items(), strict=False):
            axes.stairs(counts, edges, fill=True)
            axes.set_title(name)
            axes.set_yticks([])
            axes.locator_params(axis="x", nbins=4)
        figure.supxlabel(unit, fontsize=9)
