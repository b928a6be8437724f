"""DataLoader: batches of a data set, in a random order that can be resumed exactly."""

import copy
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from typing import Any

import numpy as np

from gpucnn import schema
from gpucnn.cpu.limits import room_for_a_thread
from gpucnn.data.augment import Place, Transform, placed, takes_generator
from gpucnn.data.dataset import Dataset
from gpucnn.data.items import ItemDataset
from gpucnn.data.on_device import DrawnBatch, OnDevice
from gpucnn.data.parts import Part, load
from gpucnn.data.tensors import TensorDataset
from gpucnn.data.upload import Uploader
from gpucnn.device import Array, Device, default_device
from gpucnn.errors import ArgumentError, CheckpointError, DataError, kind
from gpucnn.out_of_memory import explaining
from gpucnn.random import MAX_SEED


class DataLoader:
    """Batches of a data set: `for images, labels in loader` runs one epoch.

    dataset      a Dataset, a TensorDataset, a list of pairs (x, y), or another ItemDataset, which
                 loads pairs one by one
    batch_size   images in a batch; the last batch may be smaller unless drop_last
    shuffle      draw a new order for each epoch
    drop_last    skip the last batch if it is smaller
    transform    called on the images of each batch, as transform(images, generator) or, if it takes
                 one argument, transform(images); None leaves them as they are
    seed         determines order and transforms: an int from 0 to 2**128 - 1, or a
                 numpy.random.Generator that draws one
    prefetch     batches to load ahead, in worker threads; 0 loads each batch when it is needed
    num_workers  worker threads, at least 1
    device       where batches go, as Tensors; None means the device of the innermost
                 `with gpucnn.device(...)`, or NumPy arrays outside of one

    images are (N, H, W, C) as returned by the transform, labels int64 (N,).  Other pairs keep their
    shapes and dtypes, (N, ...) each; an ItemDataset's single integers become int64.

    On a GPU, a Dataset of up to 1 GiB of uint8 images stays in device memory if the transform
    consists of RandomCrop, RandomHorizontalFlip or AlternatingFlip, and Normalize only; one kernel
    applies them.  Other batches are copied through pinned memory while the previous batch is in
    use.  Tensors may be used on any stream: reading their data makes the current stream wait for
    the batch.

    Order and transforms depend only on seed, epoch and batch number.  `epoch` counts from 0;
    `batch` is the number of batches of the epoch yielded so far.  state_dict() holds both: a
    loader that loads it yields the rest of that epoch first, with identical bits.  Leaving a loop
    early ends the epoch: the next loop starts the next epoch.  `part` divides the batches among
    processes that train together.

    Raises ArgumentError for invalid arguments.  Errors of the data set or transform are raised in
    the loop, at their batch: DtypeError, ShapeError or DataError for an item that violates
    ItemDataset, ArgumentError or ShapeError for a transform that does not return as many
    images as it was given.
    """

    def __init__(
        self,
        dataset: Dataset | TensorDataset | ItemDataset | Sequence[Any],
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
                f"got {kind(dataset)}\n  for arrays: data.Dataset(images, labels, classes), or "
                "data.TensorDataset(x, y)"
            )
        batch_size = _integer("batch_size", batch_size, 1)
        prefetch = _integer("prefetch", prefetch, 0)
        num_workers = _integer("num_workers", num_workers, 1)
        if transform is not None:
            takes_generator("DataLoader", transform)  # or raise
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
        self.seed = _integer("seed", seed, 0, MAX_SEED)
        self.prefetch = prefetch
        self.num_workers = num_workers
        self.device = default_device() if device is None else Device.parse(device)
        self.epoch = 0
        self.batch = 0
        self.filled = False
        self._part = Part()
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

    def part(self, rank: int, ranks: int) -> "DataLoader":
        """A loader of the same epochs for process `rank` of `ranks` that train together.

        Of each batch of n images it yields images n * rank // ranks to n * (rank + 1) // ranks - 1.
        Concatenated over the ranks, the batches equal this loader's bit for bit.  A rank loads and
        transforms only its own images if the transform is a PerImageTransform, or a Compose of
        them.  Steps up to the last one of another kind run on the whole batch on every rank.

        len(), batch_size, dataset and state_dict() are this loader's: the state of any number of
        ranks can be loaded.  A part starts where this loader would continue; part(0, 1) is this
        loader.

        Every part yields len(loader) batches.  It yields a filler if the batch has no image for it,
        because the batch is smaller than `ranks` or the data set leaves images out.  A filler is
        one image of the data set, which must not count; `filled` is True while it is the latest
        batch.  Batches are divided before images are left out, and such a batch may draw other
        random numbers than this loader's.

        Raises ArgumentError unless 0 <= rank < ranks, or if this loader is a part itself; in the
        loop, DataError if the data set leaves out every image, so that there is no filler.
        """
        rank, ranks = _integer("rank", rank, 0), _integer("ranks", ranks, 1)
        if rank >= ranks:
            raise ArgumentError(f"DataLoader: rank must be below ranks, got {rank} of {ranks}")
        if self._part.ranks > 1:
            raise ArgumentError(
                f"DataLoader: this loader is part {self._part.rank} of {self._part.ranks} already"
                "\n  call part of the loader of whole batches"
            )
        if ranks == 1:
            return self
        loader = copy.copy(self)
        loader._part = Part(rank, ranks)
        loader._uploader = None  # parts may be read at the same time
        return loader

    def state_dict(self) -> dict[str, int | bool]:
        """The position after the last batch yielded, and the arguments it depends on."""
        return {"epoch": self.epoch, "batch": self.batch, "seed": self.seed, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the position in `state`; the next loop yields the rest of its epoch.

        Raises CheckpointError if `state` is malformed, or was saved by a loader with a different
        number of images, batch_size, shuffle or drop_last.
        """
        position = dict.fromkeys(("epoch", "batch", "seed"), schema.integer(0, MAX_SEED))
        schema.record(position, others=schema.scalar)(state, "DataLoader")
        for key, mine in self._identity().items():
            if state.get(key) != mine:
                raise CheckpointError(
                    f"DataLoader: the saved state has {key} {state.get(key)}, this loader {mine}\n"
                    "  resume with the data and arguments of the saved run"
                )
        schema.integer(0, len(self))(state["batch"], "DataLoader.batch")
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
        fillers: set[int] = set()  # numbers of batches; _load adds to it
        prefetched = _prefetched(
            lambda number: self._load(order, epoch, number, fillers),
            range(first, len(self)),
            self.prefetch,
            self.num_workers,
        )
        with ExitStack() as stack:
            batches = stack.enter_context(closing(prefetched))
            if self.device is not None and self.device.kind != "cpu":
                self._uploader = self._uploader or Uploader(self.device)
                if self._on_device is None:
                    batches = stack.enter_context(closing(self._uploader.upload(batches)))
                else:
                    stack.callback(self._uploader.streams.wait_for_consumers)
            for number, (images, labels) in enumerate(batches, start=first):
                self._check(token)
                self.batch, self.filled = number + 1, number in fillers
                if len(labels):  # 0 if the data set left out every image
                    yield self._to_device(images, labels)
        self._check(token)
        self.epoch, self.batch, self.filled = epoch + 1, 0, False

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

    @explaining("the next batch")
    def _load(
        self, order: Array, epoch: int, number: int, fillers: set[int]
    ) -> tuple[Array, Array]:
        """Batch `number` on the host: images, or OnDevice's draws, and labels."""
        chosen = order[number * self.batch_size : (number + 1) * self.batch_size]
        make_generator = partial(self._generator, epoch, 1, number)
        if self._on_device is not None:
            rows = self._part.rows(len(chosen))
            filled = rows.start == rows.stop
            rows = slice(0, 1) if filled else rows
            place = Place(self.seed, epoch, chosen, len(self.dataset))
            images = self._on_device.draw(place, make_generator())[rows]
            labels = self._on_device.labels[chosen[rows]]
        else:
            images, labels, filled = load(
                self.dataset,
                chosen,
                self.transform,
                make_generator,
                self._part,
                lambda step, rows: placed(step, Place(self.seed, epoch, rows, len(self.dataset))),
            )
        if filled:
            fillers.add(number)
        return images, labels

    def _to_device(self, images: Array, labels: Array) -> tuple[Any, Any]:
        if self.device is None:
            return images, labels
        from gpucnn.creation import tensor  # the arrays above need no tensors

        if self._on_device is not None and self._uploader is not None:
            return DrawnBatch(self._on_device, images, labels, self._uploader).tensors()
        if self._uploader is not None:
            images, labels = self._uploader.streams.tensors(images, labels)
            return images, labels
        return tensor(images, self.device), tensor(labels, self.device)


def _integer(name: str, value: Any, least: int, most: int | None = None) -> int:
    """`value` as an int; ArgumentError unless it is an integer from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ArgumentError(f"DataLoader: {name} must be an int of at least {least}, got {value!r}")
    if most is not None and value > most:
        raise ArgumentError(f"DataLoader: {name} must be at most {most}, got {value}")
    return int(value)


def _prefetched(
    make: Callable[[int], tuple[Array, Array]], numbers: range, prefetch: int, num_workers: int
) -> Generator[tuple[Array, ...], None, None]:
    """Yield make(number) for each number in order; threads compute up to `prefetch` ahead."""
    if prefetch == 0 or not room_for_a_thread():
        yield from map(make, numbers)
        return
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="gpucnn-loader")
    pending: deque[Future[tuple[Array, Array]]] = deque()
    try:
        for number in numbers:
            try:
                pending.append(pool.submit(make, number))
            except (RuntimeError, MemoryError):  # the system refuses to start a thread
                while pending:
                    yield pending.popleft().result()
                yield from map(make, range(number, numbers.stop))
                return
            if len(pending) > prefetch:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:  # also after an early exit: leave no thread running
        pool.shutdown(wait=True, cancel_futures=True)
