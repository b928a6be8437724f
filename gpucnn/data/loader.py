"""DataLoader: batches of a data set, in a random order that can be resumed exactly."""

import operator
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from gpucnn.data.augment import Transform
from gpucnn.data.dataset import Dataset
from gpucnn.data.on_device import OnDevice
from gpucnn.data.upload import Uploader
from gpucnn.device import Array, Device, default_device
from gpucnn.errors import ArgumentError, CheckpointError, DataError, DtypeError, ShapeError, kind

_NUMERIC = "buif"  # kinds of dtype


class ItemDataset(Protocol):
    """A data set that loads images one by one, like torch.utils.data.Dataset.

    dataset[i] is (image, label), uint8 (H, W, C) and int, with one shape for all images; None
    leaves the image out of its batch.  A DataLoader indexes it from worker threads.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Array, int] | None: ...


class DataLoader:
    """Batches of a data set: `for images, labels in loader` runs one epoch.

    dataset      a Dataset, or an ItemDataset, which loads images one by one
    batch_size   images in a batch; the last batch may be smaller unless drop_last
    shuffle      draw a new order for each epoch
    drop_last    skip the last batch if it is smaller
    transform    called as transform(images, generator) on each batch; None leaves images as uint8
    seed         determines order and transforms: an int, or a numpy.random.Generator that draws one
    prefetch     batches to load ahead, in worker threads; 0 loads each batch when it is needed
    num_workers  worker threads, at least 1
    device       where batches go, as Tensors; None means the device of the innermost
                 `with gpucnn.device(...)`, or NumPy arrays outside of one

    images are (N, H, W, C) as returned by the transform, labels int64 (N,).

    On a GPU, a Dataset of up to 1 GiB stays in device memory if the transform consists of
    RandomCrop, RandomHorizontalFlip and Normalize only; one kernel applies them.  Other batches are
    copied through pinned memory while the previous batch is in use.  Tensors may be used on any
    stream: reading their data makes the current stream wait for the batch.

    Order and transforms depend only on seed, epoch and batch number.  `epoch` counts from 0;
    `batch` is the number of batches of the epoch yielded so far.  state_dict() holds both: a
    loader that loads it yields the rest of that epoch first, with identical bits.  Leaving a loop
    early ends the epoch: the next loop starts the next epoch.

    Raises ArgumentError for invalid arguments.  Errors of the data set or transform are raised in
    the loop, at their batch: DtypeError, ShapeError or DataError for an item that violates
    ItemDataset, ArgumentError or ShapeError for a transform that does not return as many
    images as it was given.
    """

    def __init__(
        self,
        dataset: Dataset | ItemDataset,
        batch_size: int,
        shuffle: bool = False,
        drop_last: bool = False,
        transform: Transform | None = None,
        seed: int | np.random.Generator = 0,
        prefetch: int = 2,
        num_workers: int = 1,
        device: str | Device | None = None,
    ) -> None:
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise ArgumentError(
                f"DataLoader: expected a Dataset, or an object with len() and [i], "
                f"got {kind(dataset)}\n  for arrays: data.Dataset(images, labels, classes)"
            )
        batch_size = _integer("batch_size", batch_size, 1)
        prefetch = _integer("prefetch", prefetch, 0)
        num_workers = _integer("num_workers", num_workers, 1)
        if transform is not None and not callable(transform):
            raise ArgumentError(
                f"DataLoader: transform must be callable as transform(images, generator), "
                f"got {transform!r}"
            )
        if isinstance(dataset, Dataset) and not isinstance(dataset.images, np.ndarray):
            raise ArgumentError(
                "DataLoader: the data set's images are not NumPy arrays\n"
                "  keep them on the host; device= moves the batches"
            )
        if len(dataset) == 0:
            raise ArgumentError(f"DataLoader: {dataset!r} has no images")
        if drop_last and len(dataset) < batch_size:
            raise ArgumentError(
                f"DataLoader: drop_last drops the only batch: {len(dataset)} images, "
                f"batch_size {batch_size}\n  choose a smaller batch_size, or drop_last=False"
            )
        if isinstance(seed, np.random.Generator):
            seed = int(seed.integers(1 << 63))
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.transform = transform
        self.seed = _integer("seed", seed, 0)
        self.prefetch = prefetch
        self.num_workers = num_workers
        self.device = default_device() if device is None else Device.parse(device)
        self.epoch = 0
        self.batch = 0
        self._on_device: OnDevice | None = None  # if the images are in a GPU's memory
        self._uploader: Uploader | None = None  # if the device is a GPU
        self._resuming = False  # the next loop continues at self.batch
        self._active_loop: object = None  # the loop that advances epoch and batch

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __repr__(self) -> str:
        return (
            f"DataLoader({self.dataset!r}, batch_size={self.batch_size}, "
            f"shuffle={self.shuffle}, transform={self.transform!r}, seed={self.seed})"
        )

    def state_dict(self) -> dict[str, int | bool]:
        """The position after the last batch yielded, and the arguments it depends on."""
        return {"epoch": self.epoch, "batch": self.batch, "seed": self.seed, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the position in `state`; the next loop yields the rest of its epoch.

        Raises CheckpointError if `state` is malformed, or was saved by a loader with a different
        number of images, batch_size, shuffle or drop_last.
        """
        for key, mine in self._identity().items():
            if state.get(key) != mine:
                raise CheckpointError(
                    f"DataLoader: the saved state has {key} {state.get(key)}, this loader {mine}\n"
                    "  resume with the data and arguments of the saved run"
                )
        numbers = [state.get(key) for key in ("epoch", "batch", "seed")]
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise CheckpointError(f"DataLoader: expected epoch, batch and seed, got {numbers}")
        self.epoch, self.batch, self.seed = state["epoch"], state["batch"], state["seed"]
        self._resuming = True
        self._active_loop = None

    def _identity(self) -> dict[str, int | bool]:
        return {
            "images": len(self.dataset),
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
        }

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        if self.batch and not self._resuming:
            self.epoch, self.batch = self.epoch + 1, 0
        self._resuming = False
        self._active_loop = token = object()
        return self._epoch(token)

    def _epoch(self, token: object) -> Iterator[tuple[Any, Any]]:
        epoch, first = self.epoch, self.batch
        order = self._order(epoch)
        if self.device is not None and self._on_device is None:
            self._on_device = OnDevice.try_create(self.dataset, self.transform, self.device)
        batches: Iterator[tuple[Array, ...]] = _prefetched(
            lambda number: self._load(order, epoch, number),
            range(first, len(self)),
            self.prefetch,
            self.num_workers,
        )
        if self.device is not None and self.device.kind != "cpu":
            self._uploader = self._uploader or Uploader(self.device)
            batches = self._uploader.upload(batches)
        for number, (images, labels) in enumerate(batches, start=first):
            self._check(token)
            self.batch = number + 1
            if len(labels):  # 0 if the data set left out every image
                yield self._to_device(images, labels)
        self._check(token)
        self.epoch, self.batch = epoch + 1, 0

    def _check(self, token: object) -> None:
        if self._active_loop is not token:
            raise DataError(
                "DataLoader: another loop over this loader has started, or its state was loaded\n"
                "  use two loaders to iterate twice at the same time"
            )

    def _order(self, epoch: int) -> Array:
        n = len(self.dataset)
        return self._generator(epoch, 0).permutation(n) if self.shuffle else np.arange(n)

    def _generator(self, *key: int) -> np.random.Generator:
        """A generator for each key, so that no batch depends on another batch's draws."""
        return np.random.Generator(
            np.random.Philox(np.random.SeedSequence(self.seed, spawn_key=key))
        )

    def _load(self, order: Array, epoch: int, number: int) -> tuple[Array, Array]:
        """Batch `number` on the host: images, or OnDevice's draws, and labels."""
        chosen = order[number * self.batch_size : (number + 1) * self.batch_size]
        if self._on_device is not None:
            draws = self._on_device.draw(chosen, self._generator(epoch, 1, number))
            return draws, self._on_device.labels[chosen]
        if isinstance(self.dataset, Dataset):
            images, labels = self.dataset.images[chosen], self.dataset.labels[chosen]
        else:
            images, labels = _gather(self.dataset, chosen)
        if self.transform is not None and len(labels):
            before = images
            images = self.transform(before, self._generator(epoch, 1, number))
            _check_transformed(self.transform, before, images)
        return images, labels

    def _to_device(self, images: Array, labels: Array) -> tuple[Any, Any]:
        if self.device is None:
            return images, labels
        from gpucnn.creation import tensor  # the arrays above need no tensors

        if self._on_device is not None:
            images = self._on_device.batch(images)
        if self._uploader is not None:
            images, labels = self._uploader.streams.tensors(images, labels)
            return images, labels
        return tensor(images, self.device), tensor(labels, self.device)


def _integer(name: str, value: Any, least: int) -> int:
    """`value` as an int; ArgumentError unless it is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ArgumentError(f"DataLoader: {name} must be an int of at least {least}, got {value!r}")
    return int(value)


def _check_transformed(transform: Transform, before: Array, after: Any) -> None:
    """Raise an error unless `after`, the transform's result, has as many images as `before`."""
    if not isinstance(after, np.ndarray) or after.dtype.kind not in _NUMERIC:
        raise ArgumentError(
            f"DataLoader: the transform {transform!r} returned {kind(after)} for images "
            f"{before.shape}\n  it must return the transformed images, a numeric NumPy array"
        )
    if after.shape[:1] != before.shape[:1]:
        raise ShapeError(
            f"DataLoader: the transform {transform!r} returned shape {after.shape} for images "
            f"{before.shape}\n  it must return as many images as it was given"
        )


def _gather(dataset: ItemDataset, chosen: Array) -> tuple[Array, Array]:
    """The chosen images, without those that the data set leaves out, and their labels."""
    items = [item for i in chosen if (item := _item(dataset, int(i))) is not None]
    labels = np.array([label for _, label in items], np.int64)
    if not items:
        return np.empty((0, 0, 0, 0), np.uint8), labels
    shapes = {image.shape for image, _ in items}
    if len(shapes) > 1:
        raise ShapeError(
            f"DataLoader: images of one batch have shapes {' and '.join(map(str, sorted(shapes)))}"
            "\n  a data set must return all images in one shape"
        )
    return np.stack([image for image, _ in items]), labels


def _item(dataset: ItemDataset, index: int) -> tuple[Array, int] | None:
    """dataset[index]; raises an error unless it conforms to ItemDataset."""
    item: Any = dataset[index]
    if item is None:
        return None
    where = f"DataLoader: item {index} of {type(dataset).__name__}"
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise DataError(
            f"{where} is {kind(item)}; expected (image, label), or None to leave it out"
        )
    image, label = item
    if not isinstance(image, np.ndarray) or image.dtype.kind not in _NUMERIC:
        raise DtypeError(
            f"{where}: its image is {kind(image)}; expected a NumPy array uint8 (H, W, C)"
        )
    try:
        label = operator.index(label)
    except TypeError:
        raise DtypeError(f"{where}: its label is {label!r}; expected an int") from None
    classes = getattr(dataset, "classes", None)
    limit = len(classes) if isinstance(classes, tuple | list) else 2**63
    if not 0 <= label < limit:
        raise DataError(
            f"{where}: label {label} is not "
            + (f"in 0 to {limit - 1}" if limit < 2**63 else "0 or more")
            + "\n  labels are indices into the classes, starting at 0"
        )
    return image, label


def _prefetched(
    make: Callable[[int], tuple[Array, Array]], numbers: range, prefetch: int, num_workers: int
) -> Iterator[tuple[Array, Array]]:
    """Yield make(number) for each number in order; threads compute up to `prefetch` ahead."""
    if prefetch == 0:
        yield from map(make, numbers)
        return
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="gpucnn-loader")
    pending: deque[Future[tuple[Array, Array]]] = deque()
    try:
        for number in numbers:
            pending.append(pool.submit(make, number))
            if len(pending) > prefetch:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:  # also after an early exit: leave no thread running
        pool.shutdown(wait=True, cancel_futures=True)
