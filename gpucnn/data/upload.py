"""From the host to a GPU while it works on something else.

    host    | stage 1 | launch step 0 | stage 2 | launch step 1 | ...
    stream  | copy 1 ........|  copy 2 ........|
    GPU     |  step 0 ................| step 1 ................| ...

A batch is written into pinned memory, which the GPU can read by itself, and copied from there on a
stream of its own, one batch ahead of the one that is in use.  The stream that uses a batch waits
for its copy's event; the host waits for nothing, unless it is four batches ahead of the GPU.

A whole data set goes there by `in_pieces`, for which the host waits.
"""

import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from gpucnn.data.arriving import Streams
from gpucnn.device import Array, Device, working_on
from gpucnn.errors import OutOfMemory
from gpucnn.integers import ceil_div
from gpucnn.out_of_memory import explain

PIECE = 64 * 2**20  # bytes of pinned memory for a part of a large array; CuPy wants a power of two
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
        self.streams = Streams(device)
        with self._cuda.Device(device.index):
            self._stream = self._cuda.Stream(non_blocking=True)
        # CuPy would give the buffers' memory to somebody else while a copy still reads it.
        weakref.finalize(self, _finish, self._buffers).atexit = False

    def through(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Each batch on the device, for the current stream; the next one is on its way by then.

        `streams.tensors` makes tensors of it that other streams may use too.

        An error of `batches` comes after the batches before it.
        """
        current: _Sent | None = None
        ahead: _Sent | None = None
        failure: Exception | None = None
        try:
            while True:
                current, ahead = ahead, None
                self.streams.rejoin()
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
            self.streams.rejoin()

    def _arrived(self, sent: _Sent) -> Batch:
        with self._cuda.Device(self._device.index):
            self._cuda.get_current_stream().wait_event(sent.copied)
        return sent.arrays

    def _send(self, batch: Batch) -> _Sent:
        """Begin the copy of a batch."""
        sizes = [max(ceil_div(array.nbytes, _ALIGN), 1) * _ALIGN for array in batch]
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


def in_pieces(array: Array, device: Device) -> Array:
    """A copy of `array` on `device`, ready for every stream.

    It goes through two pinned buffers of at most PIECE bytes, which are freed at the end.  CuPy
    would pin as much memory as the array has, rounded up to a power of two, and keep it.
    """
    flat = np.ascontiguousarray(array).reshape(-1)
    size = min(max(PIECE // flat.itemsize, 1), flat.size)  # elements of a piece
    xp, cuda = device.xp, device.xp.cuda
    pinned = cuda.PinnedMemoryPool()
    buffers: deque[_Buffer] = deque()  # the one used longest ago first
    with working_on(device):
        result = xp.empty(flat.shape, flat.dtype)
        stream = cuda.Stream(non_blocking=True)
        stream.wait_event(cuda.get_current_stream().record())  # as in Uploader._send
        try:
            for start in range(0, flat.size, max(size, 1)):
                piece = flat[start : start + size]
                if len(buffers) < 2:
                    memory = np.frombuffer(pinned.malloc(size * flat.itemsize), np.uint8)
                else:
                    memory, copied = buffers.popleft()
                    copied.synchronize()
                source = _write(memory[: piece.nbytes], piece)
                result[start : start + size].set(source, stream=stream)
                copied = stream.record(cuda.Event(disable_timing=True))
                buffers.append(_Buffer(memory, copied))
        finally:
            stream.synchronize()  # before the buffers go
    return result.reshape(array.shape)


def _finish(buffers: deque[_Buffer]) -> None:
    for buffer in buffers:
        if not buffer.copied.done:
            buffer.copied.synchronize()


def _write(memory: np.ndarray[Any, np.dtype[np.uint8]], array: Array) -> Array:
    """A copy of `array` in `memory`."""
    staged = memory.view(array.dtype).reshape(array.shape)
    staged[...] = array
    return staged
