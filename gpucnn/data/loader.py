"""DataLoader: batches of a data set, in an order and with a chance that can be resumed exactly."""

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

_NUMBERS = "buif"  # kinds of dtype


class ItemDataset(Protocol):
    """What a DataLoader needs of a data set that does not lie in memory as one array.

    dataset[i] is (image, label): uint8 (H, W, C), the same shape for all, and an int; or None for
    an image to be left out.  It is called from worker threads.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Array, int] | None: ...


class DataLoader:
    """The batches of a data set: `for images, labels in loader` is one epoch.

    dataset     a Dataset, or an ItemDataset that reads each image when it is asked for
    batch_size  images in a batch; the last one may have fewer, unless drop_last
    shuffle     a new order in each epoch
    transform   called on each batch's images with a generator; None leaves them uint8
    seed        of order and transform; a numpy.random.Generator gives one up for it
    prefetch    batches that are made ahead of use, in `workers` threads; 0 makes each when asked
    device      None: NumPy arrays, or Tensors on the device of a `with gpucnn.device(...)`; else
                Tensors on that device.  A GPU keeps a Dataset of up to 1 GiB, and crops, flips and
                normalises there if the transform does just that; other batches are copied there
                through pinned memory while the one before is in use.  A stream of your own inside
                the loop waits for the Tensor whose data it asks for

    images are (N, H, W, C) as the transform leaves them, labels int64 (N,).

    Order and chance depend on seed, epoch and batch number alone.  `epoch` counts from 0 and
    `batch` says how many batches of it were handed out; state_dict() holds both, so that a loader
    which loads it hands out the rest of that epoch first, to the bit.  An epoch that is left early
    is over: the next loop begins the next epoch.

    Raises ArgumentError for arguments that make no sense.  Errors of the data set or transform
    arrive in the loop that asks for the batch: DtypeError, ShapeError or DataError for an item that
    is not what ItemDataset says, ArgumentError or ShapeError for a transform that does not return
    as many images as it was given.
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
        workers: int = 1,
        device: str | Device | None = None,
    ) -> None:
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise ArgumentError(
                f"DataLoader: expected a Dataset, or what has len() and [i], "
                f"got {kind(dataset)}\n  for arrays: data.Dataset(images, labels, classes)"
            )
        batch_size = _whole("batch_size", batch_size, 1)
        prefetch, workers = _whole("prefetch", prefetch, 0), _whole("workers", workers, 1)
        if transform is not None and not callable(transform):
            raise ArgumentError(
                f"DataLoader: transform must be callable as transform(images, generator), "
                f"got {transform!r}"
            )
        if isinstance(dataset, Dataset) and not isinstance(dataset.images, np.ndarray):
            raise ArgumentError(
                "DataLoader: the data set's images are not NumPy arrays\n"
                "  leave them on the host; device= says where batches go"
            )
        if len(dataset) == 0:
            raise ArgumentError(f"DataLoader: {dataset!r} has no images")
        if drop_last and len(dataset) < batch_size:
            raise ArgumentError(
                f"DataLoader: drop_last leaves nothing of {len(dataset)} images in batches of "
                f"{batch_size}\n  choose a smaller batch_size, or drop_last=False"
            )
        if isinstance(seed, np.random.Generator):
            seed = int(seed.integers(1 << 63))
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.transform = transform
        self.seed = _whole("seed", seed, 0)
        self.prefetch = prefetch
        self.workers = workers
        self.device = default_device() if device is None else Device.parse(device)
        self.epoch = 0
        self.batch = 0
        self._on_device: OnDevice | None = None  # the images, where a GPU keeps and augments them
        self._uploader: Uploader | None = None  # for a GPU
        self._go_on = False  # whether the next loop starts at self.batch rather than afresh
        self._current: object = None  # the loop that moves epoch and batch

    def __len__(self) -> int:
        """Batches in an epoch."""
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __repr__(self) -> str:
        return (
            f"DataLoader({self.dataset!r}, batch_size={self.batch_size}, "
            f"shuffle={self.shuffle}, transform={self.transform!r}, seed={self.seed})"
        )

    def state_dict(self) -> dict[str, int | bool]:
        """The position after the batch handed out last, and what it depends on: plain numbers."""
        return {"epoch": self.epoch, "batch": self.batch, "seed": self.seed, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the position of `state`; the next loop hands out what was left of its epoch.

        Raises CheckpointError if state is of a loader with other images or batches.
        """
        for key, mine in self._identity().items():
            if state.get(key) != mine:
                raise CheckpointError(
                    f"DataLoader: the saved state has {key} {state.get(key)}, this loader {mine}\n"
                    "  resume with the data and batch size of the run that was saved"
                )
        numbers = [state.get(key) for key in ("epoch", "batch", "seed")]
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise CheckpointError(f"DataLoader: expected epoch, batch and seed, got {numbers}")
        self.epoch, self.batch, self.seed = state["epoch"], state["batch"], state["seed"]
        self._go_on = True
        self._current = None

    def _identity(self) -> dict[str, int | bool]:
        return {
            "images": len(self.dataset),
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
        }

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        if self.batch and not self._go_on:
            self.epoch, self.batch = self.epoch + 1, 0
        self._go_on = False
        self._current = token = object()
        return self._epoch(token)

    def _epoch(self, token: object) -> Iterator[tuple[Any, Any]]:
        epoch, first = self.epoch, self.batch
        order = self._order(epoch)
        if self.device is not None and self._on_device is None:
            self._on_device = OnDevice.of(self.dataset, self.transform, self.device)
        batches: Iterator[tuple[Array, ...]] = _ahead(
            lambda number: self._make(order, epoch, number),
            range(first, len(self)),
            self.prefetch,
            self.workers,
        )
        if self.device is not None and self.device.kind != "cpu":
            self._uploader = self._uploader or Uploader(self.device)
            batches = self._uploader.through(batches)
        for number, (images, labels) in enumerate(batches, start=first):
            self._check(token)
            self.batch = number + 1
            if len(labels):  # every image of a batch may have been left out
                yield self._deliver(images, labels)
        self._check(token)
        self.epoch, self.batch = epoch + 1, 0

    def _check(self, token: object) -> None:
        if self._current is not token:
            raise DataError(
                "DataLoader: this loop was overtaken by another one over the same loader\n"
                "  make two loaders to go over the data twice at once"
            )

    def _order(self, epoch: int) -> Array:
        n = len(self.dataset)
        return self._generator(epoch, 0).permutation(n) if self.shuffle else np.arange(n)

    def _generator(self, *key: int) -> np.random.Generator:
        """A generator of its own for each key: no batch depends on another one's draws."""
        return np.random.Generator(
            np.random.Philox(np.random.SeedSequence(self.seed, spawn_key=key))
        )

    def _make(self, order: Array, epoch: int, number: int) -> tuple[Array, Array]:
        """Batch `number`, on the CPU: images, or what a GPU that holds them needs to make them."""
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

    def _deliver(self, images: Array, labels: Array) -> tuple[Any, Any]:
        if self.device is None:
            return images, labels
        from gpucnn.creation import tensor  # the arrays above need no tensors

        if self._on_device is not None:
            images = self._on_device.batch(images)
        if self._uploader is not None:
            images, labels = self._uploader.streams.tensors(images, labels)
            return images, labels
        return tensor(images, self.device), tensor(labels, self.device)


def _whole(name: str, value: Any, least: int) -> int:
    """`value` as an int; ArgumentError unless it is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ArgumentError(f"DataLoader: {name} must be an int of at least {least}, got {value!r}")
    return int(value)


def _check_transformed(transform: Transform, before: Array, after: Any) -> None:
    """An error unless `after`, which the transform made of `before`, is as many images."""
    if not isinstance(after, np.ndarray) or after.dtype.kind not in _NUMBERS:
        raise ArgumentError(
            f"DataLoader: the transform {transform!r} returned {kind(after)} for images "
            f"{before.shape}\n  it must return the changed images, a NumPy array of numbers"
        )
    if after.shape[:1] != before.shape[:1]:
        raise ShapeError(
            f"DataLoader: the transform {transform!r} returned shape {after.shape} for images "
            f"{before.shape}\n  it must return as many images as it was given"
        )


def _gather(dataset: ItemDataset, chosen: Array) -> tuple[Array, Array]:
    """The chosen images as one array, those left out by the data set excepted."""
    items = [item for i in chosen if (item := _item(dataset, int(i))) is not None]
    labels = np.array([label for _, label in items], np.int64)
    if not items:
        return np.empty((0, 0, 0, 0), np.uint8), labels
    shapes = {image.shape for image, _ in items}
    if len(shapes) > 1:
        raise ShapeError(
            f"DataLoader: images of one batch have shapes {' and '.join(map(str, sorted(shapes)))}"
            "\n  a data set must give all its images one size"
        )
    return np.stack([image for image, _ in items]), labels


def _item(dataset: ItemDataset, index: int) -> tuple[Array, int] | None:
    """dataset[index], if it is what ItemDataset says."""
    item: Any = dataset[index]
    if item is None:
        return None
    where = f"DataLoader: item {index} of {type(dataset).__name__}"
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise DataError(
            f"{where} is {kind(item)}; expected (image, label), or None to leave it out"
        )
    image, label = item
    if not isinstance(image, np.ndarray) or image.dtype.kind not in _NUMBERS:
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
            + "\n  labels are indices into the classes, from 0 on"
        )
    return image, label


def _ahead(
    make: Callable[[int], tuple[Array, Array]], numbers: range, prefetch: int, workers: int
) -> Iterator[tuple[Array, Array]]:
    """make(number) of each number in order, up to `prefetch` of them made ahead in threads."""
    if prefetch == 0:
        yield from map(make, numbers)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="gpucnn-loader")
    pending: deque[Future[tuple[Array, Array]]] = deque()
    try:
        for number in numbers:
            pending.append(pool.submit(make, number))
            if len(pending) > prefetch:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:  # also when the loop is left early: no thread stays behind
        pool.shutdown(wait=True, cancel_futures=True)
