"""Worker threads: `parallel(function, pieces)` calls function(piece) for every piece.

`set_num_threads` sets the number of threads, including the caller's.  NumPy releases the
interpreter lock in copies, ufuncs and BLAS, so Python threads run in parallel.  Two rules give the
same bits for any number of threads: pieces are split by the shape of the data, never by the number
of threads, and each piece writes its own memory.

Meanwhile BLAS is limited to one thread: N workers with N BLAS threads each would compete for the
cores.
"""

import atexit
import contextlib
import functools
import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np

from gpucnn.cpu import blas
from gpucnn.cpu.blas import BLAS_BUFFER, single_threaded_blas
from gpucnn.cpu.limits import (
    allocations_may_fail,
    mappable_memory,
    memory_in_use,
    room_for_a_thread,
)
from gpucnn.cpu.memory import keep_freed_memory
from gpucnn.errors import ArgumentError, OutOfMemory

_Piece = TypeVar("_Piece")
Work = tuple[Callable[[Any], object], Iterable[Any]]  # a function and its pieces

# Elements in a ufunc's buffers inside a piece.  NumPy copies operands that are strided or of
# another dtype through them.  At its default of 8192 they exceed the first-level cache, and NumPy
# copies runs of 2048 elements or more too: maxima over such runs took 1.6 times as long.
_UFUNC_BUFFER = 2048

_NEW_THREAD = 80 << 20  # bytes of addresses: a stack of 8 MiB, and glibc's 64 for its small blocks


def usable_cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_num_threads(n: int) -> None:
    """Use n threads, including the caller's, in each operation on the CPU.

    The default is the number of cores that the process may use.  Results have the same bits for
    every n.  Operations that are running keep their threads; the next one uses n.  If the system
    refuses to start a thread, operations use those that it did start, with a RuntimeWarning.
    Raises ArgumentError unless n is a positive int.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ArgumentError(f"set_num_threads: expected a positive int, got {n!r}")
    _pool.resize(n, wait=not getattr(_local, "busy", False))


def get_num_threads() -> int:
    """The number of threads that an operation on the CPU may use."""
    return _pool.size


def parallel(function: Callable[[_Piece], object], pieces: Iterable[_Piece]) -> None:
    """Call function(piece) for every piece, in any order, on several threads.

    Inside a piece BLAS has one thread, and a nested `parallel` runs in the same thread.  If a piece
    raises, the others still run, and the first exception is raised here.
    """
    _keep_freed_memory()
    work = list(pieces)
    if getattr(_local, "busy", False):  # BLAS and ufunc buffers are set already
        for piece in work:
            function(piece)
        return
    _prepare_blas(_pool.size)
    before = np.setbufsize(_UFUNC_BUFFER)
    try:
        with single_threaded_blas():
            if len(work) < 2:
                for piece in work:
                    function(piece)
            else:
                _pool.run(function, work)
    finally:
        np.setbufsize(before)


def parallel_all(*work: Work) -> None:
    """Run several `parallel` calls as one, so that their pieces share the threads."""
    parallel(lambda call: call[0](call[1]), [(f, piece) for f, pieces in work for piece in pieces])


def spans(total: int, step: int) -> Iterator[slice]:
    """range(total) as slices of `step` elements, the last one perhaps shorter."""
    for start in range(0, total, step):
        yield slice(start, min(start + step, total))


def blocks(size: int) -> list[slice]:
    """range(size) as slices for element-wise work: 64 Ki elements stay in a core's cache."""
    return list(spans(size, 1 << 16))


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Run every `parallel` inside the block in the calling thread, without helpers."""
    before = getattr(_local, "busy", False)
    _local.busy = True
    try:
        with single_threaded_blas():
            yield
    finally:
        _local.busy = before


# --- the pool ---

_local = threading.local()  # .busy: `parallel` runs in this thread, without helpers


class _Job:
    """One call of `parallel`: its pieces, and a queue of results, each None or an exception."""

    def __init__(self, function: Callable[[Any], object], pieces: list[Any]) -> None:
        self.function = function
        self.todo = deque(pieces)
        self.count = len(pieces)
        self.errors: dict[str, Any] = dict(np.geterr())  # the caller's np.errstate, for helpers too
        self.done: SimpleQueue[BaseException | None] = SimpleQueue()

    def help(self) -> None:
        """Run pieces in a helper thread until none is left."""
        np.seterr(**self.errors)
        while True:
            try:
                piece = self.todo.popleft()
            except IndexError:
                return
            try:
                self.function(piece)
            except BaseException as error:
                self.done.put(error)
            else:
                self.done.put(None)

    def lead(self) -> None:
        """Run pieces in the calling thread, then wait for those that helpers took.

        A helper that was not scheduled in time took none, and is not waited for.
        """
        taken_by_others = self.count  # not len(todo): helpers may have started before this line
        first_error: BaseException | None = None
        while True:
            try:
                piece = self.todo.popleft()
            except IndexError:
                break
            taken_by_others -= 1
            try:
                self.function(piece)
            except Exception as error:
                first_error = first_error or error
            except BaseException as error:  # Ctrl-C: start no more pieces
                first_error = error
                with contextlib.suppress(IndexError):
                    while True:
                        self.todo.popleft()
                        taken_by_others -= 1
        for _ in range(taken_by_others):
            first_error = self.done.get() or first_error
        if first_error is not None:
            raise first_error


class _Pool:
    """size - 1 helper threads, started at the first job."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._lock = threading.Lock()
        self._helpers: list[threading.Thread] = []
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()

    def run(self, function: Callable[[Any], object], pieces: list[Any]) -> None:
        job = _Job(function, pieces)
        with self._lock:
            self._start_helpers()
            for _ in range(min(self.size, len(pieces)) - 1):
                self._jobs.put(job)
        _local.busy = True
        try:
            job.lead()
        finally:
            _local.busy = False
            job.todo.clear()  # Ctrl-C may have ended `lead` at any line

    def multiply_everywhere(self) -> None:
        """Multiply in all threads at once, so that BLAS has a buffer for each.

        OpenBLAS is told to allocate them.  In another library a buffer may be free again before a
        late thread needs one: so all multiply several times.
        """
        starting = self.size - 1 - len(self._helpers)
        needed, free = self.size * BLAS_BUFFER + starting * _NEW_THREAD, mappable_memory()
        if needed > free:
            raise OutOfMemory(needed, memory_in_use(), free, "cpu")
        with self._lock:
            self._start_helpers()
        blas.allocate_buffers(self.size)
        meeting = threading.Barrier(self.size, timeout=10)
        square = np.ones((512, 512), np.float32)

        def multiply(piece: int) -> None:
            for _ in range(8):
                with contextlib.suppress(threading.BrokenBarrierError):
                    meeting.wait()
                np.matmul(square, square)

        self.run(multiply, list(range(self.size)))

    def _start_helpers(self) -> None:
        while len(self._helpers) < self.size - 1:
            thread = threading.Thread(
                target=_serve, args=(self._jobs,), name="gpucnn worker", daemon=True
            )
            try:
                if not room_for_a_thread():
                    raise MemoryError
                thread.start()
            except (RuntimeError, MemoryError):  # a limit on processes or on memory
                wanted, self.size = self.size, len(self._helpers) + 1
                warnings.warn(
                    f"the system refused to start a thread: gpucnn uses {self.size} instead of "
                    f"{wanted}",
                    RuntimeWarning,
                    stacklevel=2,
                )
                return
            self._helpers.append(thread)

    def resize(self, size: int, wait: bool = True) -> None:
        """Change the number of threads; wait for helpers to end, unless a piece makes the call.

        A piece must not wait: its helper would wait for itself.
        """
        with self._lock:
            self.size = size
            surplus = max(len(self._helpers) - (size - 1), 0)
            stopping = self._helpers if surplus else []
            if surplus:  # any helper may take the stop marker, so stop all
                self._helpers = []
                for _ in stopping:
                    self._jobs.put(None)
                self._jobs = SimpleQueue()
        for thread in stopping if wait else ():
            thread.join()


def _serve(jobs: "SimpleQueue[_Job | None]") -> None:
    _local.busy = True
    np.setbufsize(_UFUNC_BUFFER)
    while (job := jobs.get()) is not None:
        job.help()
        del job  # free its arrays now, not at the next job


def _after_fork() -> None:
    """Replace the pool and BLAS's lock in the child of a fork.

    Only the forking thread exists there, and another one may have held a lock.
    """
    global _pool, _preparing
    blas.reset()
    _preparing = threading.Lock()
    _prepare_blas.cache_clear()
    _pool = _Pool(_pool.size)
    _local.busy = False


_keep_freed_memory = functools.cache(keep_freed_memory)  # at the first `parallel`
_preparing = threading.Lock()


@functools.cache
def _prepare_blas(threads: int) -> None:
    """Allocate BLAS's buffers at the first `parallel` with so many threads, if that may fail.

    Without memory for a buffer, OpenBLAS ends the process or tries forever.
    """
    if allocations_may_fail():
        with _preparing, single_threaded_blas():
            _pool.multiply_everywhere()


_pool = _Pool(usable_cores())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(lambda: _pool.resize(1))
