"""The worker threads of the CPU path.

`parallel(function, pieces)` calls function(piece) for every piece, on as many threads as
`set_num_threads` allows, the caller's among them.  NumPy lets go of the interpreter lock in
copies, ufuncs and BLAS, so threads help although they are Python's.  Two rules keep results
equal to the last bit for every number of threads: pieces are cut by the shape of the data and
never by the number of threads, and each piece writes memory of its own.

BLAS is held to one thread meanwhile: N workers with N BLAS threads each fight over the cores.
"""

import atexit
import contextlib
import functools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np

from gpucnn.cpu.blas import single_threaded_blas
from gpucnn.cpu.memory import keep_freed_memory
from gpucnn.errors import ArgumentError

_Piece = TypeVar("_Piece")
Work = tuple[Callable[[Any], object], Iterable[Any]]  # a function and its pieces

# Elements of a ufunc's buffers inside a piece.  NumPy copies operands that are not contiguous, or
# of another type, through them; at its default of 8192 they leave the first cache, and it copies
# runs of 2048 elements or more too: maxima of such runs took 1.6 times as long.
_BUFFER = 2048


def usable_cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_num_threads(n: int) -> None:
    """Use n threads, the caller's included, inside each operation on the CPU.

    The default is `usable_cores()`.  Results are the same bits for every n.
    Raises ArgumentError unless n is a positive int.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ArgumentError(f"set_num_threads: expected a positive int, got {n!r}")
    _pool.resize(n)


def get_num_threads() -> int:
    """The number of threads that an operation on the CPU may use."""
    return _pool.size


def parallel(function: Callable[[_Piece], object], pieces: Iterable[_Piece]) -> None:
    """Call function(piece) for every piece, in any order, several at a time.

    Inside a piece BLAS has one thread, and a nested `parallel` runs in line.  If pieces raise,
    the others still run, and the first exception is raised here.
    """
    _keep_freed_memory()
    work = list(pieces)
    if getattr(_local, "busy", False):  # BLAS and buffers are as they should be
        for piece in work:
            function(piece)
        return
    before = np.setbufsize(_BUFFER)
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
    """Call each function for each of its pieces, as `parallel` would, all in one go."""
    parallel(lambda call: call[0](call[1]), [(f, piece) for f, pieces in work for piece in pieces])


def spans(total: int, step: int) -> Iterator[slice]:
    """range(total) cut into slices of `step`, the last one shorter."""
    for start in range(0, total, step):
        yield slice(start, min(start + step, total))


def blocks(size: int) -> list[slice]:
    """range(size) cut for element-wise work: blocks of 64 Ki elements stay in a core's cache."""
    return list(spans(size, 1 << 16))


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """A block in which this thread's `parallel` has no help: it does every piece itself."""
    before = getattr(_local, "busy", False)
    _local.busy = True
    try:
        with single_threaded_blas():
            yield
    finally:
        _local.busy = before


# --- the pool ---

_local = threading.local()  # .busy: this thread works alone, as on a piece


class _Job:
    """One call of `parallel`: what is to be done, and a word back for each piece done."""

    def __init__(self, function: Callable[[Any], object], pieces: list[Any]) -> None:
        self.function = function
        self.todo = deque(pieces)
        self.count = len(pieces)
        self.errors: dict[str, Any] = dict(np.geterr())  # the caller's np.errstate, for helpers too
        self.done: SimpleQueue[BaseException | None] = SimpleQueue()

    def help(self) -> None:
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
        """Work too, then wait for the pieces that helpers took, not for the helpers:
        one that got no core in time has nothing to finish."""
        taken_by_others = self.count  # not len(todo): helpers may have begun before this line
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
            except BaseException as error:  # Ctrl-C: start nothing more
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
    """size - 1 helper threads, started when first needed."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._lock = threading.Lock()
        self._helpers: list[threading.Thread] = []
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()

    def run(self, function: Callable[[Any], object], pieces: list[Any]) -> None:
        job = _Job(function, pieces)
        helpers = min(self.size, len(pieces)) - 1
        with self._lock:
            while len(self._helpers) < self.size - 1:
                thread = threading.Thread(
                    target=_serve, args=(self._jobs,), name="gpucnn worker", daemon=True
                )
                thread.start()
                self._helpers.append(thread)
            for _ in range(helpers):
                self._jobs.put(job)
        _local.busy = True
        try:
            job.lead()
        finally:
            _local.busy = False

    def resize(self, size: int) -> None:
        with self._lock:
            self.size = size
            surplus = max(len(self._helpers) - (size - 1), 0)
            stopping = self._helpers if surplus else []
            if surplus:  # any helper may take the word to stop, so stop them all
                self._helpers = []
                for _ in stopping:
                    self._jobs.put(None)
                self._jobs = SimpleQueue()
        for thread in stopping:
            thread.join()


def _serve(jobs: "SimpleQueue[_Job | None]") -> None:
    _local.busy = True
    np.setbufsize(_BUFFER)
    while (job := jobs.get()) is not None:
        job.help()
        del job  # or its arrays would live until the next one


def _after_fork() -> None:
    """The child has no thread but its own, and locks may be held by threads that it lacks."""
    global _pool
    _pool = _Pool(_pool.size)
    _local.busy = False


_keep_freed_memory = functools.cache(keep_freed_memory)  # at the first use of the CPU path
_pool = _Pool(usable_cores())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(lambda: _pool.resize(1))
