"""A model's predictions on a data set: confusion matrix and worst mistakes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn.autograd import no_grad
from gpucnn.device import to_host
from gpucnn.errors import ShapeError
from gpucnn.inspect import draw
from gpucnn.inspect.forward import as_input, batches, frozen, on_host, target_classes
from gpucnn.integers import ceil_div
from gpucnn.nn import Module
from gpucnn.ops import log_softmax
from gpucnn.tensor import Tensor
from gpucnn.train import Evaluation

Values = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Predictions:
    """A model's predictions for N labelled images, as NumPy arrays.

    labels          (N,) the true classes
    log_likelihood  (N, K) the logarithm of each class's probability
    """

    labels: Values
    log_likelihood: Values

    @property
    def predicted(self) -> Values:
        """(N,) the most likely class of each image."""
        return np.asarray(self.log_likelihood.argmax(axis=1))

    @property
    def probabilities(self) -> Values:
        """(N, K) the probability of each class; each row sums to 1."""
        return np.exp(self.log_likelihood)

    @property
    def losses(self) -> Values:
        """(N,) -log of the true class's probability, in nats."""
        return -self.log_likelihood[np.arange(len(self.labels)), self.labels]

    @property
    def evaluation(self) -> Evaluation:
        """Loss, accuracy and confusion matrix, as returned by train.evaluate."""
        k = self.log_likelihood.shape[1]
        pairs = np.bincount(self.labels * k + self.predicted, minlength=k * k)
        return Evaluation(float(self.losses.mean(dtype=np.float64)), pairs.reshape(k, k), {})

    def worst(self, count: int) -> Values:
        """Indices of up to `count` misclassified images, largest loss first."""
        wrong = np.flatnonzero(self.predicted != self.labels)
        return wrong[np.argsort(-self.losses[wrong], kind="stable")][:count]

    def surest(self, count: int) -> Values:
        """Indices of up to `count` images with the smallest loss, first one of each class."""
        order = np.argsort(self.losses, kind="stable")
        first = np.zeros(len(order), bool)
        first[np.unique(self.labels[order], return_index=True)[1]] = True
        return np.concatenate([order[first], order[~first]])[:count]


def predict(model: Module, images: Any, labels: Any, batch_size: int = 256) -> Predictions:
    """Run `model`, which returns logits (N, K), on images (N, H, W, C) with labels (N,).

    images are normalised as in training; labels is a sequence, a Tensor or an array of either
    library.  Raises ShapeError unless there is one label per image, ArgumentError for a label
    outside 0 to K - 1.
    """
    x = as_input("predict", model, images)
    labels = on_host(labels)
    parts = []
    with frozen(model), no_grad():
        for part in batches(x, batch_size):
            parts.append(to_host(log_softmax(model(Tensor(part))).data))
    likelihood = np.concatenate(parts)
    if labels.shape != likelihood.shape[:1]:
        raise ShapeError(
            f"predict: expected labels ({len(x)},) for {len(x)} images, got {labels.shape}"
        )
    target_classes("predict", Tensor(likelihood), labels)  # raises unless they are in range
    return Predictions(labels, likelihood)


def confusion_chart(
    path: draw.File,
    confusion: Values,
    classes: Sequence[str],
    theme: draw.Theme = "light",
) -> None:
    """Write a confusion matrix (K, K) as PNG; rows are true classes, columns predicted ones.

    A cell is coloured by its fraction of the row's sum.  Up to 20 classes, it also shows the count,
    and the axes the class names.  Raises ShapeError unless the matrix fits `classes`.
    """
    confusion = np.asarray(confusion)
    k = len(classes)
    if confusion.shape != (k, k):
        raise ShapeError(
            f"confusion_chart: expected ({k}, {k}) for {k} classes, got {confusion.shape}"
        )
    totals = confusion.sum(axis=1, keepdims=True)
    fractions = confusion / np.maximum(totals, 1)
    with draw.chart(path, theme, height=4.4) as (_, grid):
        axes = grid[0, 0]
        axes.imshow(fractions, cmap=draw.colormap(theme), vmin=0, vmax=1)
        axes.set(xlabel="predicted", ylabel="true")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        if k > 20:
            return
        names = [draw.label(name) for name in classes]
        axes.set_xticks(range(k), names, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(k), names)
        for row, column in zip(*np.nonzero(confusion), strict=True):
            paper, ink = draw.THEMES[theme][:2]
            axes.text(
                column,
                row,
                int(confusion[row, column]),
                ha="center",
                va="center",
                fontsize=9 if k <= 12 else 5,
                color=paper if fractions[row, column] > 0.5 else ink,
            )


def mistakes_page(
    path: draw.File,
    images: Any,
    predictions: Predictions,
    classes: Sequence[str],
    count: int = 25,
    theme: draw.Theme = "light",
) -> Values:
    """Write a PNG of the `count` worst mistakes, each with its true and its predicted class.

    images are those passed to `predict`, uint8 or normalised.  Returns the indices of the mistakes.
    """
    worst = predictions.worst(count)
    columns = 5
    rows = max(1, ceil_div(len(worst), columns))
    shown: Any = draw.pictures(np.asarray(images)[worst]) if len(worst) else ()
    with draw.chart(path, theme, rows, columns, height=1.2 * rows + 0.2) as (_, grid):
        for axes in grid.flat:
            axes.axis("off")
        for axes, index, image in zip(grid.flat, worst, shown, strict=False):
            predicted = predictions.predicted[index]
            axes.imshow(image)
            axes.set_title(
                f"{draw.label(classes[predictions.labels[index]])}\n"
                f"not {draw.label(classes[predicted])} "
                f"{predictions.probabilities[index, predicted]:.0%}",
                fontsize=6,
            )
    return worst
