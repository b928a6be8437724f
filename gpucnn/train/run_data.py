"""The data of a finished run, found through its checkpoint."""

from typing import Any

import numpy as np

from gpucnn import data, models
from gpucnn.errors import ArgumentError, DataError

SETS: dict[str, Any] = {"mnist": data.MNIST, "fashion-mnist": data.FashionMNIST}
IMAGES = 640  # of a folder


def load_data(info: dict[str, Any], root: str | None) -> tuple[data.Dataset, data.Dataset]:
    """The training and the test set of a run, from the JSON of its checkpoint.

    root is the folder of the run's data set, None the default; for a run on a folder of images, or
    a checkpoint that does not name its data, a folder with a directory of images per class, which
    is used for both.  A folder's images are scaled to the model's input; at most IMAGES of them are
    read, spread over the classes, and damaged files are skipped.

    Raises DataError if the data is not found, ArgumentError if the checkpoint does not name it and
    root is None.
    """
    name, execution = str(info.get("settings", {}).get("dataset")), info.get("execution", {})
    if name == "synthetic":
        return data.Synthetic(train=True), data.Synthetic(train=False)
    if name in SETS:
        training, test = (SETS[name](root, train=part, download=True) for part in (True, False))
        return training, test
    if name == "cifar10":
        pair, reason = data.find_cifar10(root)
        if pair is None:
            raise DataError(f"the run's data set, CIFAR-10, was not found: {reason}")
        return pair
    tested = root or execution.get("test") or execution.get("train")
    if not isinstance(tested, str):
        raise ArgumentError(
            "the checkpoint does not say what it was trained on\n"
            "  name a folder with a directory of images per class: --data DIR"
        )
    height, width, channels = models.input_shape(
        info["model"]["name"], **info["model"].get("config", {})
    )
    if channels != 3:
        raise ArgumentError(f"--data: images have 3 channels, the model expects {channels}")
    parts = []
    for folder in (root or str(execution.get("train") or tested), tested):
        links = execution.get("follow_links") is True
        found = data.ImageFolder(folder, (height, width), "skip", links).take(IMAGES)
        items = [item for item in map(found.__getitem__, range(len(found))) if item is not None]
        if not items:
            raise DataError(f"{folder}: none of {len(found)} images can be read")
        pixels, labels = zip(*items, strict=True)
        parts.append(data.Dataset(np.stack(pixels), labels, found.classes, found.name))
    return parts[0], parts[1]


def spread(images: data.Dataset, limit: int) -> data.Dataset:
    """The first `limit` images; of a folder, whose classes come one after another, some of each."""
    ordered = bool((np.diff(images.labels) >= 0).all())
    if not ordered or len(images) <= limit:
        return images.take(limit)
    chosen: data.Dataset = images[np.arange(limit) * len(images) // limit]
    return chosen
