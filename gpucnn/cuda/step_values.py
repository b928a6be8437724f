"""Values that change from step to step, in device memory.

A CUDA graph repeats the launches of one step, with the arguments that they had when the step was
captured.  A number that changes must therefore be in device memory:

    at = cuda.step_value(lambda: group["lr"], np.float32)  # None unless a step is being captured
    cuda.launch("sgd_step", ..., at, group["lr"])          # in the kernel: at ? *at : lr

    producers (host)     lr()   draws()        philox()
    pinned slot        | lr |   | draws    |   | state |     a ring of slots
                           one asynchronous copy
    device array       | lr |   | draws    |   | state |     one array; the graph reads it

A slot is overwritten only after its copy is complete, so the host may run some steps ahead.
"""

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from gpucnn.device import Array, Device
from gpucnn.errors import GpucnnError
from gpucnn.integers import ceil_div

_SLOTS = 8  # steps that the host may be ahead of the copies
_ALIGNMENT = 16  # bytes: each value may be read with one vector load

_state = threading.local()


class NotCapturable(GpucnnError):
    """A step that a graph cannot repeat; the text says why."""


def step_value(produce: Callable[[], Any], dtype: Any, shape: tuple[int, ...] = ()) -> Array | None:
    """An array on the device that holds produce() in every step; None unless a step is captured.

    produce is called on the host before each replay, in the order of these calls.  Its result, of
    `shape`, is converted to `dtype`.
    """
    values: StepValues | None = getattr(_state, "values", None)
    return None if values is None else values.add(produce, dtype, shape)


def refuse_capture(reason: str) -> None:
    """Raise NotCapturable if this thread captures a step: for what a replay would get wrong."""
    if getattr(_state, "values", None) is not None:
        raise NotCapturable(reason)


class _Value(NamedTuple):
    produce: Callable[[], Any]
    start: int  # its first byte
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class _Slot(NamedTuple):
    memory: np.ndarray[Any, np.dtype[np.uint8]]  # pinned
    values: list[tuple[np.ndarray[Any, Any], Callable[[], Any]]]  # views of memory
    target: Array  # on the device
    copied: Any  # the event after which it may be overwritten


class StepValues:
    """The values of one captured step, in `size` bytes on `device`, the current device."""

    def __init__(self, device: Device, size: int) -> None:
        self._cuda = device.xp.cuda
        self._array = device.xp.empty(size, np.uint8)
        self._values: list[_Value] = []
        self._used = 0
        self._slots: list[_Slot] = []
        self._next = 0
        # CuPy would reuse the slots' memory while a copy still reads it.
        weakref.finalize(self, _finish, self._slots).atexit = False

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Inside the block, `step_value` adds to these values."""
        _state.values = self
        try:
            yield
        finally:
            _state.values = None

    def add(self, produce: Callable[[], Any], dtype: Any, shape: tuple[int, ...] = ()) -> Array:
        """The array that will hold produce(); NotCapturable if there is no room for it."""
        value = _Value(produce, self._used, np.dtype(dtype), shape)
        size = int(np.prod(shape, dtype=np.int64)) * value.dtype.itemsize
        self._used += ceil_div(size, _ALIGNMENT) * _ALIGNMENT
        if self._used > self._array.size:
            raise NotCapturable(
                f"more than {self._array.size} bytes change from step to step: "
                f"{len(self._values)} values and one of {size} bytes"
            )
        self._values.append(value)
        view = self._array[value.start : value.start + size].view(value.dtype)
        return view.reshape(shape)

    def send(self) -> None:
        """Produce all values and copy them to the device, on the current stream.

        The host waits only if it is 8 steps ahead.
        """
        if not self._values:
            return
        if len(self._slots) < _SLOTS:
            self._slots.append(self._new_slot())
        slot = self._slots[self._next]
        self._next = (self._next + 1) % _SLOTS
        if not slot.copied.done:
            slot.copied.synchronize()
        for view, produce in slot.values:
            view[...] = produce()
        stream = self._cuda.get_current_stream()
        slot.target.set(slot.memory, stream=stream)
        slot.copied.record(stream)

    def _new_slot(self) -> _Slot:
        memory = np.frombuffer(self._cuda.alloc_pinned_memory(self._used), np.uint8, self._used)
        views = [
            (
                np.ndarray(value.shape, value.dtype, memory, value.start),
                value.produce,
            )
            for value in self._values
        ]
        target = self._array[: self._used]
        return _Slot(memory, views, target, self._cuda.Event(disable_timing=True))


def _finish(slots: list[_Slot]) -> None:
    for slot in slots:
        if not slot.copied.done:
            slot.copied.synchronize()
