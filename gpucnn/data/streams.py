"""Tensors of a loader's batches that are safe to use on any CUDA stream.

    for images, labels in loader:   # computed on the current stream, the producer
        with stream:                # a consumer: reading .data waits for the producer's event
            step(images, labels)

CuPy returns a freed array's memory to the pool of the allocating stream immediately.  That stream
therefore also waits for the consumers before the loader makes another batch.
"""

import math
from typing import Any, NamedTuple, Protocol

import numpy as np

from gpucnn.device import Array, Device, device_of
from gpucnn.tensor import Tensor


class Producer(NamedTuple):
    """The stream that computed a batch."""

    pointer: int
    computed: Any  # the event recorded after the batch
    ordered: dict[int, Any]  # by pointer: the streams that already wait for the event


class BatchStreams:
    """Orders the streams of `device` that compute or use a loader's batches."""

    def __init__(self, device: Device) -> None:
        self._cuda = device.xp.cuda
        self._index = device.index
        self._consumers: dict[int, Any] = {}  # by pointer: streams that have used a batch

    def tensors(self, *arrays: Array) -> tuple[Tensor, ...]:
        """Tensors of arrays that the current stream has computed."""
        producer = self.producer()
        return tuple(BatchTensor(_Made(self, producer), array) for array in arrays)

    def producer(self) -> Producer:
        """The current stream, with an event after its work so far."""
        with self._cuda.Device(self._index):
            stream = self._cuda.get_current_stream()
            computed = stream.record(self._cuda.Event(disable_timing=True))
        return Producer(stream.ptr, computed, {stream.ptr: stream})

    def wait_for(self, producer: Producer) -> None:
        """Order the current stream after `producer`, unless it already is."""
        if self._cuda.runtime.getDevice() != self._index:
            with self._cuda.Device(self._index):
                return self.wait_for(producer)
        stream = self._cuda.get_current_stream()
        if stream.ptr == producer.pointer:
            return
        if stream.ptr not in producer.ordered:
            stream.wait_event(producer.computed)
            producer.ordered[stream.ptr] = stream
        self._consumers[stream.ptr] = stream

    def wait_for_consumers(self) -> None:
        """Order the current stream after all work of other streams on batches."""
        while self._consumers:
            _, consumer = self._consumers.popitem()
            with self._cuda.Device(self._index):
                done = consumer.record(self._cuda.Event(disable_timing=True))
                self._cuda.get_current_stream().wait_event(done)


class _Made:
    """A batch that has been computed."""

    def __init__(self, streams: BatchStreams, producer: Producer) -> None:
        self._streams, self._producer = streams, producer

    def order(self) -> None:
        """Order the current stream after the batch."""
        self._streams.wait_for(self._producer)


class LateBatch(Protocol):
    """A batch that is computed when one of its tensors is read."""

    device: Device
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[np.dtype[Any], ...]

    def order(self) -> None:
        """Compute the batch if need be; order the current stream after it."""

    def array(self, index: int) -> Array:
        """One of its arrays, after `order`."""


class BatchTensor(Tensor):
    """A tensor that orders the current stream after its producer when its array is read."""

    __slots__ = ("_array", "_batch", "_index")

    def __init__(self, batch: _Made | LateBatch, array: Array | None, index: int = 0) -> None:
        """array None: batch.array(index), once it is read."""
        self._batch: Any = batch
        self._array: Array | None
        self._index = index
        super().__init__(array)

    @property
    def _data(self) -> Array:
        self._batch.order()
        if self._array is None:
            self._array = self._batch.array(self._index)
        return self._array

    @_data.setter
    def _data(self, array: Array) -> None:
        self._array = array

    @property
    def late(self) -> LateBatch | None:
        """The batch, unless this tensor has been read."""
        return self._batch if self._array is None else None

    # Metadata does not depend on the contents, so reading it does not wait.

    @property
    def shape(self) -> tuple[int, ...]:
        if self._array is None:
            shape: tuple[int, ...] = self._batch.shapes[self._index]
            return shape
        return tuple(self._array.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        dtype: np.dtype[Any] = (
            self._batch.dtypes[self._index] if self._array is None else self._array.dtype
        )
        return dtype

    @property
    def device(self) -> Device:
        return self._batch.device if self._array is None else device_of(self._array)
