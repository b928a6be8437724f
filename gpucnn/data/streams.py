"""Tensors of a loader's batches that are safe to use on any CUDA stream.

    for images, labels in loader:   # computed on the current stream, the producer
        with stream:                # a consumer: reading .data waits for the producer's event
            step(images, labels)

CuPy returns a freed array's memory to the pool of the allocating stream immediately.  That stream
therefore also waits for the consumers before the loader makes another batch.
"""

from typing import Any, NamedTuple

import numpy as np

from gpucnn.device import Array, Device, device_of
from gpucnn.tensor import Tensor


class _Producer(NamedTuple):
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
        with self._cuda.Device(self._index):
            stream = self._cuda.get_current_stream()
            computed = stream.record(self._cuda.Event(disable_timing=True))
        producer = _Producer(stream.ptr, computed, {stream.ptr: stream})
        return tuple(_BatchTensor(array, self, producer) for array in arrays)

    def wait_for(self, producer: _Producer) -> None:
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


class _BatchTensor(Tensor):
    """A tensor that orders the current stream after its producer when its array is read."""

    __slots__ = ("_array", "_producer", "_streams")

    def __init__(self, array: Array, streams: BatchStreams, producer: _Producer) -> None:
        self._streams, self._producer = streams, producer
        super().__init__(array)

    @property
    def _data(self) -> Array:
        self._streams.wait_for(self._producer)
        return self._array

    @_data.setter
    def _data(self, array: Array) -> None:
        self._array = array

    # Metadata does not depend on the contents, so reading it does not wait.

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._array.shape)

    @property
    def ndim(self) -> int:
        return int(self._array.ndim)

    @property
    def size(self) -> int:
        return int(self._array.size)

    @property
    def dtype(self) -> np.dtype[Any]:
        dtype: np.dtype[Any] = self._array.dtype
        return dtype

    @property
    def device(self) -> Device:
        return device_of(self._array)
