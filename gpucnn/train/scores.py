"""Scores of a classifier: top-k accuracy, the confusion matrix, precision and recall by class.

The functions take logits and labels as Tensors or as arrays of NumPy or CuPy, both on one device,
and return numbers of the host: on a GPU they wait for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn.arguments import printable
from gpucnn.device import Array, array_module, device_of, to_host, working_on
from gpucnn.errors import ArgumentError, DeviceMismatch, DtypeError, ShapeError, kind
from gpucnn.integers import is_int
from gpucnn.tensor import Tensor

Counts = np.ndarray[Any, np.dtype[np.int64]]
Shares = np.ndarray[Any, np.dtype[np.float64]]
Values = Tensor | Array | Sequence[Any]


@dataclass(frozen=True)
class ClassScores:
    """Scores by class, (K,) each, 0 to 1; NaN where a score is 0 / 0."""

    precision: Shares  # of the images predicted as the class, those that are
    recall: Shares  # of the images of the class, those predicted as it
    f1: Shares  # the harmonic mean of both
    support: Counts  # images of the class


def top_k_accuracy(logits: Values, labels: Values, k: int = 5) -> float:
    """The fraction of images whose label is among the k largest logits, 0 to 1.

    logits is (N, K), labels (N,); NaN if N is 0.  On a tie the class of the smaller index comes
    first, so k = 1 is the accuracy.  NaN counts as infinity.

    Raises ArgumentError unless 1 <= k <= K, and for labels outside of 0..K - 1; ShapeError,
    DtypeError or DeviceMismatch for other arrays.
    """
    x, targets = _arrays("top_k_accuracy", logits, labels)
    if x.ndim != 2:
        raise ShapeError(f"top_k_accuracy: expected logits (N, K), got {x.shape}")
    if not is_int(k) or not 1 <= k <= x.shape[1]:
        raise ArgumentError(f"top_k_accuracy: k must be in 1..{x.shape[1]}, the classes; got {k}")
    if not len(x):
        return float("nan")
    with working_on(device_of(x)):
        xp = array_module(x)
        _check_range("top_k_accuracy", "labels", targets, x.shape[1])
        x = xp.where(xp.isnan(x), np.inf, x)
        own = xp.take_along_axis(x, targets[:, None], axis=1)
        earlier = xp.arange(x.shape[1])[None, :] < targets[:, None]
        ahead = ((x > own) | ((x == own) & earlier)).sum(axis=1)
        return float(to_host((ahead < k).sum().reshape(1))[0]) / len(x)


def confusion_matrix(logits: Values, labels: Values, classes: int | None = None) -> Counts:
    """Count the images of each true class (row) by predicted class (column): (K, K) int64.

    logits is (N, K), or the predicted classes (N,) as integers; labels is (N,).  classes is K; for
    predicted classes its default is one more than the largest number.  On a tie of logits the
    class of the smaller index is predicted.

    Raises ArgumentError for labels or predictions outside of 0..K - 1; ShapeError, DtypeError or
    DeviceMismatch for other arrays.
    """
    x, targets = _arrays("confusion_matrix", logits, labels)
    if classes is not None and (not is_int(classes) or classes < 1):
        raise ArgumentError(f"confusion_matrix: classes must be at least 1, got {classes}")
    if x.ndim == 2 and classes not in (None, x.shape[1]):
        raise ArgumentError(
            f"confusion_matrix: logits {x.shape} have {x.shape[1]} classes, got classes={classes}"
        )
    if x.ndim == 1 and x.dtype.kind not in "iu":
        raise DtypeError(f"confusion_matrix: expected integer predictions (N,), got {x.dtype}")
    with working_on(device_of(x)):
        xp = array_module(x)
        if x.ndim == 2:
            k = x.shape[1]
            guesses = x.argmax(axis=1) if len(x) else xp.zeros(0, np.int64)
        else:
            guesses = x.astype(np.int64)
            largest = max((int(a.max()) for a in (guesses, targets) if len(a)), default=-1)
            k = largest + 1 if classes is None else classes
            _check_range("confusion_matrix", "predictions", guesses, k)
        _check_range("confusion_matrix", "labels", targets, k)
        counts = to_host(xp.bincount(targets * k + guesses, minlength=k * k))
    return counts.astype(np.int64).reshape(k, k)


def precision_recall(logits: Values, labels: Values, classes: int | None = None) -> ClassScores:
    """Precision, recall and F1 of each class; the arguments are those of confusion_matrix.

    Means over classes are the macro averages: np.nanmean(scores.f1).
    """
    return scores_of(confusion_matrix(logits, labels, classes))


def scores_of(confusion: Counts) -> ClassScores:
    """The scores of a confusion matrix (K, K)."""
    hits = np.diagonal(confusion).astype(np.float64)
    predicted, true = confusion.sum(axis=0), confusion.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return ClassScores(hits / predicted, hits / true, 2 * hits / (predicted + true), true)


def confusion_table(
    confusion: Counts, classes: Sequence[str] | None = None, width: int = 100
) -> str:
    """A confusion matrix (K, K) as text for a terminal, with recall and precision in per cent.

    Rows are true classes, columns predicted ones; zeros are dots.  classes are the K names; None
    numbers them.  A table wider than `width` characters becomes the list of the 20 most frequent
    confusions.

    Raises ShapeError unless confusion is square, ArgumentError for another number of names.
    """
    matrix = np.asarray(confusion)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ShapeError(f"confusion_table: expected a matrix (K, K), got {matrix.shape}")
    k = len(matrix)
    names = [printable(str(name)) for name in (range(k) if classes is None else classes)]
    if len(names) != k:
        raise ArgumentError(f"confusion_table: expected {k} names of classes, got {len(names)}")
    cell = max([len(str(matrix.max(initial=0))), *(min(len(name), 6) for name in names), 4])
    label = max([len(name) for name in names] + [len("precision")])
    if label + (cell + 1) * k + 8 > width:
        return _largest_confusions(matrix, names)
    scores = scores_of(matrix)
    lines = [" ".join([f"{'true':<{label}}", *(f"{n[:cell]:>{cell}}" for n in names), " recall"])]
    for name, row, recall in zip(names, matrix, scores.recall, strict=True):
        counts = (f"{count or '.':>{cell}}" for count in row.tolist())
        lines.append(" ".join([f"{name:<{label}}", *counts, f"{_per_cent(recall):>7}"]))
    shares = (f"{_per_cent(share):>{cell}}" for share in scores.precision)
    lines.append(" ".join([f"{'precision':<{label}}", *shares]))
    return "\n".join(lines)


def _largest_confusions(matrix: Counts, names: list[str]) -> str:
    wrong = matrix - np.diag(np.diagonal(matrix))
    order = np.argsort(-wrong, axis=None, kind="stable")[:20]
    pairs = [divmod(int(i), len(matrix)) for i in order]
    lines = [
        f"{wrong[true, guess]:>6} of {matrix[true].sum():>6}  {names[true]} -> {names[guess]}"
        for true, guess in pairs
        if wrong[true, guess]
    ]
    return "\n".join(["the most frequent confusions (true -> predicted):", *lines])


def _per_cent(share: float) -> str:
    return "-" if np.isnan(share) else f"{100 * share:.0f}%"


def _arrays(who: str, logits: Values, labels: Values) -> tuple[Array, Array]:
    """Both as arrays on one device; labels are int64."""
    arrays: list[Any] = [
        v.data if isinstance(v, Tensor) else v if hasattr(v, "dtype") else np.asarray(v)
        for v in (logits, labels)
    ]
    x, targets = arrays
    if device_of(x) != device_of(targets):
        raise DeviceMismatch(
            f"{who}: the logits are on {device_of(x)}, the labels on {device_of(targets)}"
        )
    if targets.ndim != 1 or x.ndim not in (1, 2) or len(x) != len(targets):
        raise ShapeError(
            f"{who}: expected logits (N, K) and labels (N,), got {x.shape} and {targets.shape}"
        )
    if targets.size and targets.dtype.kind not in "iu":
        raise DtypeError(f"{who}: expected integer labels, got {kind(targets)}")
    with working_on(device_of(x)):
        return x, targets.astype(np.int64)


def _check_range(who: str, what: str, values: Array, classes: int) -> None:
    if len(values) and not bool(((values >= 0) & (values < classes)).all()):
        low, high = int(values.min()), int(values.max())
        raise ArgumentError(
            f"{who}: {what} must be in 0..{classes - 1}, got some from {low} to {high}"
        )
