"""Warnings about a run that cannot learn: at its start, or after an epoch."""

import math
import warnings
from typing import Any

import numpy as np

from gpucnn.arguments import printable
from gpucnn.device import to_host
from gpucnn.errors import ArgumentError, TrainingWarning
from gpucnn.tensor import Tensor

_NAMED = 5  # absent classes in a message
_FEWEST_IMAGES, _FEWEST_PER_CLASS = 16, 10  # smaller batches and data sets are toys
_FEWEST = 1000  # images of an epoch: with fewer, luck and learning look alike


def check_epochs(epochs: int) -> None:
    """Raise ArgumentError unless `epochs`, the argument of fit, is a count."""
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 0:
        raise ArgumentError(f"fit: epochs must be an int of at least 0, got {epochs!r}")


def check_start(images: Tensor, dataset: Any) -> None:
    """Warn if the images of the first batch are constant or equal, or if classes have no image.

    Batches of less than 16 images say little and are not checked.  Classes are checked if the data
    set has `labels` and `classes`, and ten images for each class.  The host waits for a GPU.
    """
    if len(images) >= _FEWEST_IMAGES and images.size:
        pixels = to_host(images.data).reshape(len(images), -1)
        if bool((pixels == pixels[:, :1]).all()) and pixels.shape[1] > 1:
            _warn("the images of the first batch are constant: check the images and the transform")
        elif bool((pixels == pixels[:1]).all()):
            _warn("all images of the first batch are equal: check the images and the transform")
    labels, classes = getattr(dataset, "labels", None), getattr(dataset, "classes", None)
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu":
        return
    if not isinstance(classes, tuple | list) or len(labels) < _FEWEST_PER_CLASS * len(classes):
        return
    present = set(np.unique(labels).tolist())
    absent = [name for i, name in enumerate(classes) if i not in present]
    if len(present) == 1 < len(classes):
        _warn(f"every training image has the label {present.pop()}: check the labels")
    elif absent:
        names = ", ".join(printable(str(name)) for name in absent[:_NAMED])
        names += ", ..." if len(absent) > _NAMED else ""
        _warn(f"{len(absent)} of {len(classes)} classes have no training image: {names}")


def is_stuck(loss: float, accuracy: float, count: int, classes: int, largest: float) -> bool:
    """Whether an epoch's loss is within 1 % of ln(classes), and its accuracy is that of chance.

    count is the number of images, largest the share of the most frequent class.
    """
    if count < _FEWEST or abs(loss - math.log(classes)) > 0.01 * math.log(classes):
        return False
    return accuracy <= largest + 2 * math.sqrt(largest * (1 - largest) / count)


def check_epoch(row: dict[str, Any], count: int, classes: int, dataset: Any) -> bool:
    """Warn, and return True, if the epoch of this row of the history is_stuck.

    classes is 0 if the epoch had no step since a resume.
    """
    if classes < 2 or count < _FEWEST:
        return False
    labels = getattr(dataset, "labels", None)
    largest = 1 / classes
    if isinstance(labels, np.ndarray) and len(labels):
        largest = float(np.unique(labels, return_counts=True)[1].max()) / len(labels)
    if not is_stuck(row["train_loss"], row["train_accuracy"], count, classes, largest):
        return False
    _warn(
        f"epoch {row['epoch']}: the training loss {row['train_loss']:.4f} is still "
        f"ln({classes}), that of guessing: try another learning rate (now {row['lr']:g}), another "
        "initialisation or batch normalisation, and check that labels and images belong together"
    )
    return True


def _warn(text: str) -> None:
    warnings.warn(text, TrainingWarning, stacklevel=4)
