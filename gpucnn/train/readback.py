"""Numbers of a step that reach the host without anyone waiting for the GPU."""

import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from gpucnn.device import Array, array_module, device_of, working_on

_MOST = 64  # pending copies: a host further ahead of its GPU waits for the oldest


class _Place(NamedTuple):
    """Where copies arrive."""

    values: tuple[np.ndarray[Any, Any], ...]  # in pinned memory
    arrived: Any  # event recorded after the copies

    def fits(self, arrays: tuple[Array, ...]) -> bool:
        return len(arrays) == len(self.values) and all(
            x.shape == value.shape and x.dtype == value.dtype
            for x, value in zip(arrays, self.values, strict=True)
        )


class Readback:
    """Copies small arrays of a GPU to pinned memory, and hands them out once they are there.

    `send` queues the copies behind the work that computes the arrays, which may be overwritten
    afterwards.  `take` returns what was sent first.  All arrays are on the current device.
    """

    def __init__(self) -> None:
        self.pending: deque[tuple[Any, _Place]] = deque()  # with their tags, oldest first
        self.free: list[_Place] = []
        # CuPy would reuse the pinned memory while a copy still writes to it.
        weakref.finalize(self, _finish, self.pending).atexit = False

    def send(self, tag: Any, *arrays: Array) -> None:
        """Start the copies of `arrays`; `take` returns them with `tag`."""
        i = next((i for i, place in enumerate(self.free) if place.fits(arrays)), None)
        place = _new_place(arrays) if i is None else self.free.pop(i)
        for x, value in zip(arrays, place.values, strict=True):
            x.get(out=value, blocking=False)
        place.arrived.record()
        self.pending.append((tag, place))

    def take(self, wait: bool = False) -> tuple[Any, list[float]] | None:
        """The oldest tag and its arrays' numbers in order; None if it is still under way.

        With `wait`, or once 64 are pending, wait for it; then None means that nothing is pending.
        """
        if not self.pending:
            return None
        tag, place = self.pending[0]
        if not place.arrived.done:
            if not wait and len(self.pending) < _MOST:
                return None
            place.arrived.synchronize()
        self.pending.popleft()
        self.free.append(place)
        return tag, [float(number) for array in place.values for number in array.flat]


def _new_place(arrays: tuple[Array, ...]) -> _Place:
    cuda = array_module(arrays[0]).cuda
    memory = [cuda.alloc_pinned_memory(x.nbytes) for x in arrays]
    values = [
        np.frombuffer(m, x.dtype, x.size).reshape(x.shape)
        for m, x in zip(memory, arrays, strict=True)
    ]
    return _Place(tuple(values), cuda.Event(disable_timing=True))


def _finish(pending: deque[tuple[Any, _Place]]) -> None:
    for _, place in pending:
        if not place.arrived.done:
            place.arrived.synchronize()


class Numbers:
    """Lists of numbers, from the host or a GPU, that are read once they have arrived."""

    def __init__(self) -> None:
        self._readback = Readback()
        self._ready: deque[tuple[Any, list[float]]] = deque()

    def send(self, tag: Any, numbers: Sequence[Any]) -> None:
        """Read these numbers: Python's, NumPy's, or arrays of one element, on one device."""
        places = [i for i, x in enumerate(numbers) if hasattr(x, "get")]
        if not places:
            self._ready.append((tag, [float(x) for x in numbers]))
            return
        there = device_of(numbers[places[0]])
        with working_on(there):
            parts = [numbers[i].reshape(()).astype(np.float64) for i in places]
            known = [None if hasattr(x, "get") else float(x) for x in numbers]
            self._readback.send((tag, known, places), there.xp.stack(parts))

    def arrived(self, wait: bool = False) -> Iterator[tuple[Any, list[float]]]:
        """What has arrived, in the order of `send`; with `wait`, everything."""
        while self._ready:
            yield self._ready.popleft()
        while (found := self._readback.take(wait)) is not None:
            (tag, known, places), read = found
            for i, number in zip(places, read, strict=True):
                known[i] = number
            yield tag, known
