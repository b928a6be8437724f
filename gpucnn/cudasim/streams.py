"""Streams, events and pinned memory of cupy.cuda.

Work on the current stream is complete before the call returns.  Only a copy from pinned memory on
another stream is asynchronous, and it happens as late as possible: it reads its source and writes
its target when its event or stream is waited for.  This exposes mistakes that a fast copy hides.
Without a wait the target is still poison; overwriting the source too early copies wrong values; and
a copy into memory that another stream may still use is an error.  While a stream captures, its work
is recorded: see capture.py.
"""

import itertools
import mmap
import threading
import time
import weakref
from collections import deque
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gpucnn.cudasim.capture import Capture, CUDARuntimeError, Graph, refused_transfer

Host = np.ndarray[Any, Any]


class Counters:
    """Counts for tests: how often the host waited for the device."""

    host_syncs = 0


counters = Counters()
_time = itertools.count(1)  # numbers allocations, copies and events in order
_state = threading.local()


@dataclass
class _Copy:
    number: int
    target: Host
    source: Host


class Stream:
    """A queue of work, done in order."""

    null: "Stream"
    _all: "weakref.WeakSet[Stream]" = weakref.WeakSet()

    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        self.ptr = 0 if null else id(self)
        self._outer: list[Stream] = []
        self._copies: deque[_Copy] = deque()  # pending, oldest first
        self._waited: weakref.WeakKeyDictionary[Stream, int] = weakref.WeakKeyDictionary()
        self._capture: Capture | None = None  # what this stream records
        Stream._all.add(self)

    def synchronize(self) -> None:
        if self._capture is not None:
            raise self._capture.fail(*_UNSUPPORTED)
        counters.host_syncs += 1
        self._arrive()

    # --- capture ---

    def begin_capture(self, mode: int | None = None) -> None:
        """Record the work of this stream from now on instead of doing it."""
        if self.ptr == 0:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        if self._capture is not None:
            raise CUDARuntimeError("cudaErrorIllegalState: the stream is capturing already")
        self._capture = Capture()

    def end_capture(self) -> Graph:
        """The work recorded since `begin_capture`.

        Raises CUDARuntimeError if an operation has invalidated the capture.
        """
        capture = self._capture
        if capture is None:
            raise CUDARuntimeError("cudaErrorIllegalState: the stream is not capturing")
        for stream in list(Stream._all):
            if stream._capture is capture:
                stream._capture = None
        if capture.failed:
            raise CUDARuntimeError(
                "cudaErrorStreamCaptureInvalidated: operation failed due to a previous error "
                "during capture"
            )
        return Graph(capture, mapped.__contains__)

    def is_capturing(self) -> bool:
        return self._capture is not None

    def wait_event(self, event: "Event") -> None:
        """Order this stream's later work after `event`.

        While a stream captures, waiting for one of its events lets this stream record too.
        """
        if self._capture is not None and event._capture is not self._capture:
            raise self._capture.fail(
                "cudaErrorStreamCaptureIsolation",
                "the capture would depend on work before it: this event was not recorded in it",
            )
        if event._capture is not None:
            self._capture = event._capture
            return
        event._arrive()
        if event._stream is not None:
            before = self._waited.get(event._stream, 0)
            self._waited[event._stream] = max(before, event._number)

    def record(self, event: "Event | None" = None) -> "Event":
        event = Event() if event is None else event
        event.record(self)
        return event

    def _copy(self, target: Host, source: Host, allocation: "Allocation") -> None:
        """Copy host memory to the device; `allocation` says when the target was allocated.

        Raises RuntimeError if another stream may still use the target's memory.
        """
        if self._capture is not None:
            raise refused_transfer("H2D")
        if self is get_current_stream() or not _is_pinned(source):
            target[...] = source
            return
        if (
            allocation.stream is not self
            and self._waited.get(allocation.stream, 0) < allocation.number
        ):
            raise RuntimeError(
                "cudasim: a copy into memory that was allocated on another stream, whose earlier "
                "work may still use it\n  let the copy's stream wait for an event that the other "
                "stream recorded after the allocation"
            )
        self._copies.append(_Copy(next(_time), target, source))

    def _arrive(self, number: float = float("inf")) -> None:
        """Perform the pending copies up to `number`."""
        while self._copies and self._copies[0].number <= number:
            copy = self._copies.popleft()
            copy.target[...] = copy.source

    def __enter__(self) -> "Stream":
        self._outer.append(get_current_stream())
        _state.current = self
        return self

    def __exit__(self, *exc: object) -> Literal[False]:
        _state.current = self._outer.pop()
        return False


_UNSUPPORTED = (
    "cudaErrorStreamCaptureUnsupported",
    "operation not permitted when stream is capturing",
)
mapped: dict[int, int] = {}  # by address: bytes of the device memory that the process has
Stream.null = Stream(null=True)


def get_current_stream() -> Stream:
    """This thread's current stream."""
    return getattr(_state, "current", Stream.null)


def current_capture() -> Capture | None:
    """What this thread's current stream records; None if it does its work at once."""
    return get_current_stream()._capture


def synchronize() -> None:
    """Wait for all streams."""
    for stream in list(Stream._all):
        if stream._capture is not None:
            raise stream._capture.fail(*_UNSUPPORTED)
    counters.host_syncs += 1
    for stream in list(Stream._all):
        stream._arrive()


class Event:
    """A point in a stream's work, timed by the host's clock."""

    def __init__(self, block: bool = False, disable_timing: bool = False) -> None:
        self._seconds: float | None = None
        self._timed = not disable_timing
        self._stream: Stream | None = None
        self._number = 0
        self._capture: Capture | None = None  # the one that it was last recorded in

    def record(self, stream: Stream | None = None) -> None:
        self._stream = get_current_stream() if stream is None else stream
        self._capture = self._stream._capture
        self._number = next(_time)
        self._seconds = time.perf_counter()

    def synchronize(self) -> None:
        if self._capture is not None:
            raise CUDARuntimeError(
                "cudaErrorCapturedEvent: operation not permitted on an event last recorded in a "
                "capturing stream"
            )
        counters.host_syncs += 1
        self._arrive()

    @property
    def done(self) -> bool:
        """Whether the stream has reached the event; the host does not wait."""
        if self._capture is not None:
            return False
        copies = self._stream._copies if self._stream is not None else ()
        return not copies or copies[0].number > self._number

    def _arrive(self) -> None:
        if self._stream is not None:
            self._stream._arrive(self._number)


def get_elapsed_time(start_event: Event, end_event: Event) -> float:
    """Milliseconds between two recorded events."""
    if start_event._seconds is None or end_event._seconds is None:
        raise ValueError("get_elapsed_time: both events must have been recorded")
    if start_event._capture or end_event._capture:
        raise CUDARuntimeError("cudaErrorInvalidResourceHandle: invalid resource handle")
    if not (start_event._timed and end_event._timed):
        raise ValueError("get_elapsed_time: an event was created with disable_timing=True")
    return (end_event._seconds - start_event._seconds) * 1e3


# --- memory ---


@dataclass(frozen=True)
class Allocation:
    """When memory was allocated, and on which stream."""

    stream: Stream
    number: int

    @classmethod
    def now(cls) -> "Allocation":
        return cls(get_current_stream(), next(_time))


class PinnedMemory(mmap.mmap):
    """Pinned host memory, like cupy.cuda.PinnedMemoryPointer; numpy.frombuffer accepts it."""


def alloc_pinned_memory(size: int) -> PinnedMemory:
    """Allocate `size` bytes of pinned memory."""
    return PinnedMemory(-1, max(size, 1))


class PinnedMemoryPool:
    """cupy.cuda.PinnedMemoryPool, without caching."""

    def malloc(self, size: int) -> PinnedMemory:
        return alloc_pinned_memory(size)


def _is_pinned(array: Host) -> bool:
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    return isinstance(owner.obj if isinstance(owner, memoryview) else owner, PinnedMemory)
