"""Dataset: labelled images in memory.  Also the default folder for data on disk."""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn.device import Array, array_module
from gpucnn.errors import ArgumentError, DataError, DtypeError, ShapeError, kind


class DataNotFound(DataError):
    """The data is not on disk, and was not or could not be downloaded."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images in memory.

    images   uint8 (N, H, W, C), 0 to 255
    labels   int64 (N,), indices into classes
    classes  the names of the classes
    name     for error messages and logs

    dataset[3] is (image, label); dataset[10:20] and dataset[array] are Datasets of those images.
    Raises ShapeError or DtypeError for images or labels of another shape or dtype, ArgumentError if
    classes is not a sequence of names, DataError for a label outside the classes.
    """

    images: Array
    labels: Array
    classes: tuple[str, ...]
    name: str = "dataset"

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        for what, value, dtype in (("images", images, "uint8"), ("labels", labels, "int64")):
            if not _is_array(value):
                raise DtypeError(
                    f"{self.name}: {what} must be an array, got {kind(value)}\n"
                    f"  convert them with numpy.asarray({what}, numpy.{dtype})"
                )
        if images.ndim != 4 or labels.shape != images.shape[:1]:
            raise ShapeError(
                f"{self.name}: expected images (N, H, W, C) and labels (N,), "
                f"got {tuple(images.shape)} and {tuple(labels.shape)}"
            )
        if 0 in images.shape[1:]:
            raise ShapeError(f"{self.name}: images {tuple(images.shape)} have no pixels")
        if images.dtype != np.uint8 or labels.dtype != np.int64:
            raise DtypeError(
                f"{self.name}: expected uint8 images and int64 labels, "
                f"got {images.dtype} and {labels.dtype}; convert them with .astype"
            )
        if isinstance(self.classes, str) or not isinstance(self.classes, Sequence | np.ndarray):
            raise ArgumentError(
                f"{self.name}: classes must be a list of names, got {self.classes!r}"
            )
        check_labels(
            labels, len(self.classes), self.name, "labels are indices into classes, starting at 0"
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int | np.integer):
            return self.images[index], int(self.labels[index])
        return Dataset(self.images[index], self.labels[index], self.classes, self.name)

    def __iter__(self) -> Iterator[tuple[Array, int]]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        shape = "x".join(str(size) for size in self.images.shape[1:])
        return f"Dataset({self.name}: {len(self)} images of {shape}, {len(self.classes)} classes)"

    def take(self, n: int) -> "Dataset":
        """The first n images, or all if there are fewer.

        Their classes are balanced only if the data set is shuffled.
        Raises ArgumentError unless n is an int of at least 1.
        """
        if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
            raise ArgumentError(f"take: expected an int of at least 1 image, got {n!r}")
        return self[:n]  # type: ignore[no-any-return]


def _is_array(value: Any) -> bool:
    try:
        array_module(value)
    except TypeError:
        return False
    return True


def check_labels(
    labels: Array,
    classes: int,
    source: Any,
    remedy: str = "the file is damaged or from another data set; get a fresh copy",
) -> None:
    """Raise DataError, which names `source`, unless all labels are in 0 .. classes - 1."""
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        bad = int(((labels < 0) | (labels >= classes)).argmax())
        allowed = f"in 0 to {classes - 1}" if classes else "allowed: there are no classes"
        raise DataError(
            f"{source}: label {int(labels[bad])} of image {bad} is not {allowed}\n  {remedy}"
        )


def default_root() -> Path:
    """The folder for data: GPUCNN_DATA if set, else "gpucnn" in the user's cache folder.

    The cache folder is XDG_CACHE_HOME or ~/.cache; ~/Library/Caches on macOS; LOCALAPPDATA on
    Windows.
    """
    chosen = os.environ.get("GPUCNN_DATA")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        cache = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        cache = "~/Library/Caches"
    else:
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "gpucnn"


def root_folder(root: "str | os.PathLike[str] | None") -> Path:
    """`root` as a Path; None means `default_root()`."""
    return default_root() if root is None else Path(root).expanduser()
