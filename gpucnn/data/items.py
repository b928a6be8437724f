"""The images of a batch, collected from a data set that is in memory or loads them one by one."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from gpucnn.data.dataset import Dataset, numbers
from gpucnn.data.tensors import TensorDataset
from gpucnn.device import Array, to_host
from gpucnn.errors import DataError, DtypeError, ShapeError, kind

NUMERIC = "buif"  # kinds of dtype


class ItemDataset(Protocol):
    """A data set that loads pairs one by one, like torch.utils.data.Dataset.

    dataset[i] is (x, y).  For images, x is uint8 (H, W, C) and y an int.  Each may also be a
    number, array, tensor or list of any shape, the same for all i.  None leaves the pair out of
    its batch.  A list of pairs is such a data set.  A DataLoader indexes it from worker threads.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Any, Any] | None: ...


def collect(
    dataset: Dataset | TensorDataset | ItemDataset, chosen: Array
) -> tuple[Array, Array, Array]:
    """The chosen images that the data set does not leave out, labels, and positions in `chosen`."""
    if isinstance(dataset, Dataset):
        return dataset.images[chosen], dataset.labels[chosen], np.arange(len(chosen))
    if isinstance(dataset, TensorDataset):
        x, y = dataset.tensors
        return x[chosen], y[chosen], np.arange(len(chosen))
    loaded = [_item(dataset, int(i)) for i in chosen]
    items = [item for item in loaded if item is not None]
    positions = np.flatnonzero([item is not None for item in loaded])
    if not items:
        return np.empty((0, 0, 0, 0), np.uint8), np.empty(0, np.int64), positions
    images, labels = zip(*items, strict=True)
    return _stack("images", images), _stack("labels", labels), positions


def _stack(what: str, arrays: Sequence[Array]) -> Array:
    for attribute, error in (("shape", ShapeError), ("dtype", DtypeError)):
        found = sorted({str(getattr(array, attribute)) for array in arrays})
        if len(found) > 1:
            raise error(
                f"DataLoader: {what} of one batch have {attribute}s {' and '.join(found)}"
                f"\n  a data set must return all {what} in one {attribute}"
            )
    return np.stack(arrays)


def first_image(dataset: Dataset | TensorDataset | ItemDataset) -> tuple[Array, Array, Array]:
    """The first image that the data set does not leave out, as collect returns it.

    Raises DataError if it leaves out all of them.
    """
    for index in range(len(dataset)):
        found = collect(dataset, np.array([index]))
        if len(found[1]):
            return found
    raise DataError(
        f"DataLoader: {type(dataset).__name__} leaves out all of its {len(dataset)} images\n"
        "  every part of a batch holds at least one image"
    )


def _item(dataset: ItemDataset, index: int) -> tuple[Array, Array] | None:
    """dataset[index] as NumPy arrays; raises an error unless it conforms to ItemDataset."""
    item: Any = dataset[index]
    if item is None:
        return None
    where = f"DataLoader: item {index} of {type(dataset).__name__}"
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise DataError(
            f"{where} is {kind(item)}; expected (image, label), or None to leave it out"
        )
    image, label = (
        to_host(numbers(f"{where}: its {name}", value))
        for name, value in zip(("image", "label"), item, strict=True)
    )
    if label.ndim or label.dtype.kind not in "biu":
        return image, label
    classes = getattr(dataset, "classes", None)
    limit = len(classes) if isinstance(classes, tuple | list) else 2**63
    if not 0 <= label < limit:
        raise DataError(
            f"{where}: label {label} is not "
            + (f"in 0 to {limit - 1}" if limit < 2**63 else "0 or more")
            + "\n  labels are indices into the classes, starting at 0"
        )
    return image, label.astype(np.int64)
