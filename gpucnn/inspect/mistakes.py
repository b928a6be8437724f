"""What a model says about a data set: its confusions and its worst mistakes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn.autograd import no_grad
from gpucnn.device import to_host
from gpucnn.errors import ShapeError
from gpucnn.inspect import draw
from gpucnn.inspect.forward import as_input, at_rest, batches, chosen_classes
from gpucnn.integers import ceil_div
from gpucnn.nn import Module
from gpucnn.ops import log_softmax
from gpucnn.tensor import Tensor
from gpucnn.train import Evaluation

Values = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Predictions:
    """What a model says about N labelled images, as NumPy arrays.

    labels          (N,) the true classes
    log_likelihood  (N, K) the logarithm of each class's probability
    """

    labels: Values
    log_likelihood: Values

    @property
    def predicted(self) -> Values:
        """(N,) the likeliest class of each image."""
        return np.asarray(self.log_likelihood.argmax(axis=1))

    @property
    def probabilities(self) -> Values:
        """(N, K), each row's sum is 1."""
        return np.exp(self.log_likelihood)

    @property
    def losses(self) -> Values:
        """(N,) -log of the true class's probability, in nats."""
        return -self.log_likelihood[np.arange(len(self.labels)), self.labels]

    @property
    def evaluation(self) -> Evaluation:
        """Loss, accuracy and confusion matrix, as train.evaluate gives them."""
        k = self.log_likelihood.shape[1]
        pairs = np.bincount(self.labels * k + self.predicted, minlength=k * k)
        return Evaluation(float(self.losses.mean(dtype=np.float64)), pairs.reshape(k, k))

    def worst(self, count: int) -> Values:
        """The positions of up to `count` misjudged images, the greatest loss first."""
        wrong = np.flatnonzero(self.predicted != self.labels)
        return wrong[np.argsort(-self.losses[wrong], kind="stable")][:count]

    def surest(self, count: int) -> Values:
        """The positions of up to `count` images of the least loss, one of each class first."""
        order = np.argsort(self.losses, kind="stable")
        first = np.zeros(len(order), bool)
        first[np.unique(self.labels[order], return_index=True)[1]] = True
        return np.concatenate([order[first], order[~first]])[:count]


def predict(model: Module, images: Any, labels: Any, batch_size: int = 256) -> Predictions:
    """Run `model`, whose output is logits (N, K), on normalised images with labels (N,)."""
    x = as_input("predict", model, images)
    labels = np.asarray(labels)
    parts = []
    with at_rest(model), no_grad():
        for some in batches(x, batch_size):
            parts.append(to_host(log_softmax(model(Tensor(some))).data))
    likelihood = np.concatenate(parts)
    if labels.shape != likelihood.shape[:1]:
        raise ShapeError(f"predict: {len(x)} images want labels ({len(x)},), got {labels.shape}")
    chosen_classes("predict", Tensor(likelihood), labels)  # labels in range, one for each row
    return Predictions(labels, likelihood)


def confusion_chart(
    path: draw.File,
    confusion: Values,
    classes: Sequence[str],
    theme: draw.Theme = "light",
) -> None:
    """Write a confusion matrix (K, K), rows true and columns predicted, as PNG.

    A cell's shade is its share of its row, its number the count, for up to 20 classes.
    """
    confusion = np.asarray(confusion)
    k = len(classes)
    if confusion.shape != (k, k):
        raise ShapeError(f"confusion_chart: {k} classes want ({k}, {k}), got {confusion.shape}")
    totals = confusion.sum(axis=1, keepdims=True)
    shares = confusion / np.maximum(totals, 1)
    with draw.chart(path, theme, height=4.4) as (_, grid):
        axes = grid[0, 0]
        axes.imshow(shares, cmap=draw.paper_to_colour(theme), vmin=0, vmax=1)
        axes.set(xlabel="predicted", ylabel="true")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        if k > 20:
            return
        axes.set_xticks(range(k), classes, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(k), classes)
        for row, column in zip(*np.nonzero(confusion), strict=True):
            paper, ink = draw.THEMES[theme][:2]
            axes.text(
                column,
                row,
                int(confusion[row, column]),
                ha="center",
                va="center",
                fontsize=9 if k <= 12 else 5,
                color=paper if shares[row, column] > 0.5 else ink,
            )


def mistakes_page(
    path: draw.File,
    images: Any,
    predictions: Predictions,
    classes: Sequence[str],
    count: int = 25,
    theme: draw.Theme = "light",
) -> Values:
    """Write the worst mistakes as PNG: each image, its class, and what it was taken for.

    images are all those that were predicted, as uint8 or normalised.  Returns their positions.
    """
    worst = predictions.worst(count)
    columns = 5
    rows = max(1, ceil_div(len(worst), columns))
    seen: Any = draw.pictures(np.asarray(images)[worst]) if len(worst) else ()
    with draw.chart(path, theme, rows, columns, height=1.2 * rows + 0.2) as (_, grid):
        for axes in grid.flat:
            axes.axis("off")
        for axes, at, image in zip(grid.flat, worst, seen, strict=False):
            said = predictions.predicted[at]
            axes.imshow(image)
            axes.set_title(
                f"{classes[predictions.labels[at]]}\nnot {classes[said]} "
                f"{predictions.probabilities[at, said]:.0%}",
                fontsize=6,
            )
    return worst
