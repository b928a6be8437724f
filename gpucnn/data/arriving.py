"""Tensors of a loader, which any stream may use.

    for images, labels in loader:   # the current stream gets them
        with stream:                # another one waits for them when it asks for their data
            step(images, labels)

CuPy gives the memory of an array that nobody holds to the stream that it came from, at once.  So
that stream also waits for the others, before the loader makes another batch.
"""

from typing import Any

import numpy as np

from gpucnn.device import Array, Device, device_of
from gpucnn.tensor import Tensor


class Streams:
    """The streams of `device` that use a loader's batches, beside those that got them."""

    def __init__(self, device: Device) -> None:
        self._cuda = device.xp.cuda
        self._index = device.index
        self._guests: dict[int, Any] = {}  # by address: streams with work on batches

    def tensors(self, *arrays: Array) -> tuple[Tensor, ...]:
        """Tensors of arrays that the current stream has made."""
        with self._cuda.Device(self._index):
            home = self._cuda.get_current_stream()
            made = home.record(self._cuda.Event(disable_timing=True))
        waiting = {home.ptr: home}
        return tuple(_Arriving(array, self, home.ptr, made, waiting) for array in arrays)

    def wait(self, home: int, made: Any, waiting: dict[int, Any]) -> None:
        """Let the current stream come after `made`, unless it is among those that do."""
        if self._cuda.runtime.getDevice() != self._index:
            with self._cuda.Device(self._index):
                return self.wait(home, made, waiting)
        stream = self._cuda.get_current_stream()
        if stream.ptr == home:
            return
        if stream.ptr not in waiting:
            stream.wait_event(made)
            waiting[stream.ptr] = stream
        self._guests[stream.ptr] = stream

    def rejoin(self) -> None:
        """Let the current stream come after everything that others have done with batches."""
        while self._guests:
            _, guest = self._guests.popitem()
            with self._cuda.Device(self._index):
                done = guest.record(self._cuda.Event(disable_timing=True))
                self._cuda.get_current_stream().wait_event(done)


class _Arriving(Tensor):
    """A tensor whose data is ready for whichever stream is current when somebody asks for it."""

    __slots__ = ("_array", "_home", "_made", "_streams", "_waiting")

    def __init__(
        self, array: Array, streams: Streams, home: int, made: Any, waiting: dict[int, Any]
    ) -> None:
        self._streams, self._home, self._made, self._waiting = streams, home, made, waiting
        super().__init__(array)

    @property
    def _data(self) -> Array:
        self._streams.wait(self._home, self._made, self._waiting)
        return self._array

    @_data.setter
    def _data(self, array: Array) -> None:
        self._array = array

    # What it is can be told before it is there.

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._array.shape)

    @property
    def ndim(self) -> int:
        return int(self._array.ndim)

    @property
    def dtype(self) -> np.dtype[Any]:
        dtype: np.dtype[Any] = self._array.dtype
        return dtype

    @property
    def device(self) -> Device:
        return device_of(self._array)
