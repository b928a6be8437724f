"""From the host to a GPU while it works on something else.

    host    | stage 1 | launch step 0 | stage 2 | launch step 1 | ...
    stream  | copy 1 ........|  copy 2 ........|
    GPU     |  step 0 ................| step 1 ................| ...

A batch is written into pinned memory, which the GPU can read by itself, and copied from there on a
stream of its own, one batch ahead of the one that is in use.  The stream that uses a batch waits
for its copy's event; the host waits for nothing, unless it is four batches ahead of the GPU.
"""

import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from gpucnn.device import Array, Device, working_on
from gpucnn.errors import OutOfMemory
from gpucnn.out_of_memory import explain

_ALIGN = 512  # bytes: each array of a batch starts on such a line of the pinned memory
_MOST = 4  # pinned buffers: a copy that has not even begun holds each of them

Batch = tuple[Array, ...]


class _Sent(NamedTuple):
    arrays: Batch
    copied: Any  # the event behind the last copy


class _Buffer(NamedTuple):
    memory: np.ndarray[Any, np.dtype[np.uint8]]  # pinned
    copied: Any  # it may be written again after this event


class Uploader:
    """Copies batches, tuples of NumPy arrays, to `device`."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._cuda = device.xp.cuda
        self._buffers: deque[_Buffer] = deque()  # the one used longest ago first
        with self._cuda.Device(device.index):
            self._stream = self._cuda.Stream(non_blocking=True)
        # CuPy would give the buffers' memory to somebody else while a copy still reads it.
        weakref.finalize(self, _finish, self._buffers).atexit = False

    def through(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Each batch on the device, for the current stream; the next one is on its way by then.

        An error of `batches` comes after the batches before it.
        """
        current: _Sent | None = None
        ahead: _Sent | None = None
        failure: Exception | None = None
        try:
            while True:
                current, ahead = ahead, None
                try:
                    batch = next(batches, None)
                    ahead = None if batch is None else self._send(batch)
                except Exception as error:
                    failure = error
                if current is not None:
                    yield self._arrived(current)
                if ahead is None:
                    break
            if failure is not None:
                raise failure
        finally:
            del failure  # or it would keep this frame, and its arrays, alive
            for sent in (current, ahead):  # the loop was left: nothing may be under way
                if sent is not None:
                    self._arrived(sent)

    def _arrived(self, sent: _Sent) -> Batch:
        with self._cuda.Device(self._device.index):
            self._cuda.get_current_stream().wait_event(sent.copied)
        return sent.arrays

    def _send(self, batch: Batch) -> _Sent:
        """Begin the copy of a batch."""
        sizes = [max(-(-array.nbytes // _ALIGN), 1) * _ALIGN for array in batch]
        starts = np.cumsum([0, *sizes])
        with self._cuda.Device(self._device.index):
            memory = self._free_buffer(int(starts[-1]))
            staged = [
                _write(memory[start : start + array.nbytes], array)
                for start, array in zip(starts, batch, strict=False)
            ]
            arrays = self._allocate(batch)
            # The pool may have given us memory that work of the current stream still reads.
            self._stream.wait_event(self._cuda.get_current_stream().record())
            for array, source in zip(arrays, staged, strict=True):
                if array.size:
                    array.set(source, stream=self._stream)
            copied = self._stream.record(self._cuda.Event(disable_timing=True))
        self._buffers.append(_Buffer(memory, copied))
        return _Sent(arrays, copied)

    def _allocate(self, batch: Batch) -> Batch:
        try:
            with working_on(self._device):
                return tuple(self._device.xp.empty(array.shape, array.dtype) for array in batch)
        except OutOfMemory as error:
            explain(error, "the next batch", None)
            raise

    def _free_buffer(self, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Pinned memory of at least `size` bytes, which no copy reads any more."""
        if self._buffers and (self._buffers[0].copied.done or len(self._buffers) >= _MOST):
            memory, copied = self._buffers.popleft()
            if not copied.done:
                copied.synchronize()
            if memory.size >= size:
                return memory
        pinned = self._cuda.alloc_pinned_memory(size)
        return np.frombuffer(pinned, np.uint8, size)


def _finish(buffers: deque[_Buffer]) -> None:
    for buffer in buffers:
        if not buffer.copied.done:
            buffer.copied.synchronize()


def _write(memory: np.ndarray[Any, np.dtype[np.uint8]], array: Array) -> Array:
    """A copy of `array` in `memory`."""
    staged = memory.view(array.dtype).reshape(array.shape)
    staged[...] = array
    return staged
