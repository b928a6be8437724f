"""Asynchronous copies from the host to a GPU.

    host    | stage 1 | launch step 0 | stage 2 | launch step 1 | ...
    stream  | copy 1 ........|  copy 2 ........|
    GPU     |  step 0 ................| step 1 ................| ...

Uploader stages each batch in pinned memory, which the GPU reads directly, and copies it on its
own stream, one batch ahead of the batch in use.  The consuming stream waits for the copy's event.
The host waits only when it is four batches ahead of the GPU.

`upload_in_chunks` copies a whole data set and waits for it.
"""

import weakref
from collections import deque
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

import numpy as np

from gpucnn.data.streams import BatchStreams
from gpucnn.device import Array, Device, working_on
from gpucnn.integers import ceil_div
from gpucnn.out_of_memory import explaining

CHUNK_BYTES = 64 * 2**20  # pinned memory for a chunk; CuPy rounds up to a power of two
_ALIGNMENT = 512  # bytes; each array of a batch starts at a multiple of it in pinned memory
_MAX_BUFFERS = 4  # pinned; each is held by a copy that may not even have started

Batch = tuple[Array, ...]


class _Upload(NamedTuple):
    arrays: Batch
    copied: Any  # the event recorded after the last copy


class _Buffer(NamedTuple):
    memory: np.ndarray[Any, np.dtype[np.uint8]]  # pinned
    copied: Any  # the event after which it may be overwritten


class Uploader:
    """Copies batches, tuples of NumPy arrays, to `device`."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._cuda = device.xp.cuda
        self._buffers: deque[_Buffer] = deque()  # least recently used first
        self.streams = BatchStreams(device)
        with self._cuda.Device(device.index):
            self._stream = self._cuda.Stream(non_blocking=True)
        # Without this, CuPy would reuse the buffers' memory while a copy still reads it.
        weakref.finalize(self, _synchronize, self._buffers).atexit = False

    def upload(self, batches: Iterator[Batch]) -> Generator[Batch, None, None]:
        """Yield each batch on the device, while the next one is being copied.

        The current stream may use the arrays; `streams.tensors` makes tensors that other streams
        may use too.  An error raised by `batches` is raised after the batches before it.
        """
        current: _Upload | None = None
        ahead: _Upload | None = None
        failure: Exception | None = None
        try:
            while True:
                current, ahead = ahead, None
                self.streams.wait_for_consumers()
                try:
                    batch = next(batches, None)
                    ahead = None if batch is None else self._start(batch)
                except Exception as error:
                    failure = error
                if current is not None:
                    yield self._wait_for(current)
                if ahead is None:
                    break
            if failure is not None:
                raise failure
        finally:
            del failure  # its traceback would keep this frame and the arrays alive
            for upload in (current, ahead):  # after an early exit: leave no copy in flight
                if upload is not None:
                    self._wait_for(upload)
            self.streams.wait_for_consumers()

    def send(self, batch: Batch) -> Batch:
        """Copy a small batch on the current stream; the host does not wait."""
        self.streams.wait_for_consumers()
        with self._cuda.Device(self._device.index):
            stream = self._cuda.get_current_stream()
            memory, staged = self._staged(batch)
            arrays = self._allocate(batch)
            for array, source in zip(arrays, staged, strict=True):
                if array.size:
                    array.set(source, stream=stream)
            copied = stream.record(self._cuda.Event(disable_timing=True))
        self._buffers.append(_Buffer(memory, copied))
        return arrays

    def _wait_for(self, upload: _Upload) -> Batch:
        """Order the current stream after the copy."""
        with self._cuda.Device(self._device.index):
            self._cuda.get_current_stream().wait_event(upload.copied)
        return upload.arrays

    def _start(self, batch: Batch) -> _Upload:
        """Stage a batch and enqueue its copy."""
        with self._cuda.Device(self._device.index):
            memory, staged = self._staged(batch)
            arrays = self._allocate(batch)
            # The pool may return memory that enqueued work of the current stream still reads.
            self._stream.wait_event(self._cuda.get_current_stream().record())
            for array, source in zip(arrays, staged, strict=True):
                if array.size:
                    array.set(source, stream=self._stream)
            copied = self._stream.record(self._cuda.Event(disable_timing=True))
        self._buffers.append(_Buffer(memory, copied))
        return _Upload(arrays, copied)

    def _staged(self, batch: Batch) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], list[Array]]:
        """The batch in pinned memory: that memory, and an array for each of the batch."""
        sizes = [max(ceil_div(array.nbytes, _ALIGNMENT), 1) * _ALIGNMENT for array in batch]
        offsets = np.cumsum([0, *sizes])
        memory = self._acquire_buffer(int(offsets[-1]))
        return memory, [
            _stage(memory[offset : offset + array.nbytes], array)
            for offset, array in zip(offsets, batch, strict=False)
        ]

    def _allocate(self, batch: Batch) -> Batch:
        with explaining("the next batch"), working_on(self._device):
            return tuple(self._device.xp.empty(array.shape, array.dtype) for array in batch)

    def _acquire_buffer(self, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """At least `size` bytes of pinned memory that no copy reads."""
        if self._buffers and (self._buffers[0].copied.done or len(self._buffers) >= _MAX_BUFFERS):
            memory, copied = self._buffers.popleft()
            if not copied.done:
                copied.synchronize()
            if memory.size >= size:
                return memory
        pinned = self._cuda.alloc_pinned_memory(size)
        return np.frombuffer(pinned, np.uint8, size)


def upload_in_chunks(array: Array, device: Device) -> Array:
    """A copy of `array` on `device`, ready for every stream.

    Stages the array in two pinned buffers of at most CHUNK_BYTES and frees them at the end.  CuPy
    would pin as much memory as the array has, rounded up to a power of two, and keep it.
    """
    flat = np.ascontiguousarray(array).reshape(-1)
    size = min(max(CHUNK_BYTES // flat.itemsize, 1), flat.size)  # elements of a chunk
    xp, cuda = device.xp, device.xp.cuda
    pinned = cuda.PinnedMemoryPool()
    buffers: deque[_Buffer] = deque()  # least recently used first
    with working_on(device):
        result = xp.empty(flat.shape, flat.dtype)
        stream = cuda.Stream(non_blocking=True)
        stream.wait_event(cuda.get_current_stream().record())  # as in Uploader._start
        try:
            for start in range(0, flat.size, max(size, 1)):
                chunk = flat[start : start + size]
                if len(buffers) < 2:
                    memory = np.frombuffer(pinned.malloc(size * flat.itemsize), np.uint8)
                else:
                    memory, copied = buffers.popleft()
                    copied.synchronize()
                source = _stage(memory[: chunk.nbytes], chunk)
                result[start : start + size].set(source, stream=stream)
                copied = stream.record(cuda.Event(disable_timing=True))
                buffers.append(_Buffer(memory, copied))
        finally:
            stream.synchronize()  # before the buffers are freed
    return result.reshape(array.shape)


def _synchronize(buffers: deque[_Buffer]) -> None:
    for buffer in buffers:
        if not buffer.copied.done:
            buffer.copied.synchronize()


def _stage(memory: np.ndarray[Any, np.dtype[np.uint8]], array: Array) -> Array:
    """Copy `array` into `memory`; returns a view of the copy."""
    staged = memory.view(array.dtype).reshape(array.shape)
    staged[...] = array
    return staged
