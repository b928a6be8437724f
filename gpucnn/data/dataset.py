"""Dataset: labelled images in memory.  Also the default folder for data on disk."""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn.arguments import printable
from gpucnn.creation import tensor
from gpucnn.device import Array, array_module
from gpucnn.dlpack import is_number
from gpucnn.errors import ArgumentError, DataError, DtypeError, ShapeError, kind
from gpucnn.precision import is_floating
from gpucnn.tensor import Tensor


class DataNotFound(DataError):
    """The data is not on disk, and was not or could not be downloaded."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images in memory.

    images   uint8 (N, H, W, C), 0 to 255, or float32 (N, H, W, C) on any scale
    labels   int64 (N,), indices into classes
    classes  the names of the classes, none empty; None: "0", "1", ... up to the largest label
    name     for error messages and logs

    Images and labels may also be lists, tensors or arrays of another dtype, and are converted:
    images of other integers to uint8, of other floats to float32, labels of any integers to int64.

    dataset[3] is (image, label); dataset[10:20] and dataset[array] are Datasets of those images.
    Raises ShapeError or DtypeError for images or labels of another shape or dtype, ArgumentError if
    classes is not a sequence of names, DataError for integer pixels outside 0 to 255 or a label
    outside the classes.
    """

    images: Array
    labels: Array
    classes: tuple[str, ...] = None  # type: ignore[assignment]  # never None once it is built
    name: str = "dataset"

    def __post_init__(self) -> None:
        images = numbers(f"{self.name}: images", self.images)
        labels = numbers(f"{self.name}: labels", self.labels)
        if images.ndim != 4 or labels.shape != images.shape[:1]:
            raise ShapeError(
                f"{self.name}: expected images (N, H, W, C) and labels (N,), "
                f"got {tuple(images.shape)} and {tuple(labels.shape)}"
            )
        if 0 in images.shape[1:]:
            raise ShapeError(f"{self.name}: images {tuple(images.shape)} have no pixels")
        if images.dtype == bool or (len(labels) and labels.dtype.kind not in "iu"):
            raise DtypeError(
                f"{self.name}: expected images of integers or floats and integer labels, "
                f"got {images.dtype} and {labels.dtype}; convert them with .astype"
            )
        object.__setattr__(self, "images", self._pixels(images))
        object.__setattr__(self, "labels", labels.astype(np.int64, copy=False))
        if self.classes is None:
            count = int(labels.max()) + 1 if len(labels) else 0
            object.__setattr__(self, "classes", tuple(map(str, range(count))))
        if isinstance(self.classes, str) or not isinstance(self.classes, Sequence | np.ndarray):
            raise ArgumentError(
                f"{self.name}: classes must be a list of names, got {self.classes!r}"
            )
        self._check_names()
        check_labels(
            self.labels,
            len(self.classes),
            self.name,
            "labels are indices into classes, starting at 0",
        )

    def _pixels(self, images: Array) -> Array:
        if is_floating(images.dtype):
            return images.astype(np.float32, copy=False)
        if images.dtype != np.uint8 and images.size:
            low, high = int(images.min()), int(images.max())
            if low < 0 or high > 255:
                raise DataError(
                    f"{self.name}: expected integer pixels in 0 to 255, got {low} to {high}\n"
                    "  images on another scale are floats: images.astype(numpy.float32)"
                )
        return images.astype(np.uint8, copy=False)

    def _check_names(self) -> None:
        for i, name in enumerate(self.classes):
            if not isinstance(name, str) or not name:
                raise ArgumentError(
                    f"{self.name}: expected a name for each class, got {kind(name)} for class {i}\n"
                    "  give each class a non-empty text"
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
        name, classes = printable(self.name), len(self.classes)
        return f"Dataset({name}: {len(self)} images of {shape}, {classes} classes)"

    def take(self, n: int) -> "Dataset":
        """The first n images, or all if there are fewer.

        Their classes are balanced only if the data set is shuffled.
        Raises ArgumentError unless n is an int of at least 1.
        """
        if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
            raise ArgumentError(f"take: expected an int of at least 1 image, got {n!r}")
        return self[:n]  # type: ignore[no-any-return]


def numbers(what: str, value: Any) -> Array:
    """`value`, a list, tensor or array of any library, as an array of numbers.

    A tensor or CuPy array stays on its device.  Python floats become float32.  Raises DtypeError or
    ShapeError, which begins with `what`, for anything else.
    """
    array = value.data if isinstance(value, Tensor) else value
    try:
        array_module(array)
    except TypeError:
        try:
            array = tensor(value, "cpu").data
        except ShapeError:
            raise ShapeError(f"{what}: the rows of {kind(value)} differ in length") from None
        except DtypeError:
            raise DtypeError(f"{what}: expected numbers, got {kind(value)}") from None
    if not is_number(array.dtype):
        raise DtypeError(f"{what}: expected numbers, got {kind(value)}")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


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
