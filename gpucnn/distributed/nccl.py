r"""Communication through NCCL: reductions of arrays on GPUs, without copies to the host.

    current stream     | backward ...... |r| backward ...............|w| optimizer
                                          \                         /
    reductions' stream                     |w| allreduce .......|r|

r records an event, w waits for it.  The host only queues this work, so a CUDA graph can capture
a step with its reductions.
"""

import contextlib
import platform
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np

from gpucnn.arguments import report
from gpucnn.cuda import refuse_capture
from gpucnn.device import Array, Device, device_of, working_on
from gpucnn.distributed.communicator import (
    DTYPES,
    Communicator,
    Work,
    check_communicator,
    refused_dtype,
)
from gpucnn.errors import (
    DeviceError,
    DeviceMismatch,
    DistributedError,
    MissingExtra,
    ShapeError,
)

_T = TypeVar("_T")
ABORT_SECONDS = 2.0  # that `abort` gives NCCL
_POLL_SECONDS = 1.0  # between two checks by the watching thread
_GRACE_SECONDS = 4.0  # for the program to raise the error itself
_REFUSALS = (DistributedError, DeviceError, MissingExtra)  # errors of a start, raised on all ranks
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class NcclCommunicator(Communicator):
    """The ranks of `host`, each with a GPU of its own.

        comm = distributed.NcclCommunicator(distributed.MPICommunicator())

    host     carries Python objects, arrays that are not on a CUDA device, barrier and abort
    device   this rank's GPU, cuda:N; None means local_device(host)

    All ranks create it together.  Reductions and broadcasts of arrays on `device` run one after
    another, on a stream of their own; the current stream waits for them, the host does not.  The
    communicator holds an array until its Work has been waited for.  The stream that allocated it
    must be the current one at the start or at the wait: CuPy reuses memory in that stream's order.

    A CUDA graph that captures a reduction must capture its wait too.

    Raises MissingExtra if a rank has no NCCL, DeviceError if a rank has no GPU or two ranks share
    one, on all ranks alike; DistributedError, here, at each start and at each wait, if NCCL
    reports that a GPU, a process or the network has failed.  A program that hangs in a wait for
    the GPU meets no such error, so a thread looks for it too, and ends all ranks with status 2.
    """

    def __init__(self, host: Communicator, device: Device | None = None) -> None:
        check_communicator("NcclCommunicator", host)
        self.rank, self.size = host.rank, host.size
        self.local_rank, self.local_size = host.local_rank, host.local_size
        self.device = local_device(host) if device is None else device
        self._host, self._name = host, f"rank {self.rank}: NCCL on {self.device}"
        ranks = _on_all_ranks(host, self._prepare)
        _refuse_shared_gpus([place for place, _ in ranks])
        nccl = self._nccl = find_nccl(self.device)
        self._types = {np.dtype(name): getattr(nccl, f"NCCL_{name.upper()}") for name in DTYPES}
        cuda = self._cuda = self.device.xp.cuda
        with working_on(self.device):
            with _nccl_errors(nccl, self._name):
                self._comm = nccl.NcclCommunicator(self.size, ranks[0][1], self.rank)
            self._stream = cuda.Stream(non_blocking=True)
            self._ready = cuda.Event(disable_timing=True)
        self._pending: deque[_Reduction] = deque()  # in the order of the stream
        self._lock, self._ended = threading.Lock(), threading.Event()
        weakref.finalize(self, self._ended.set).atexit = False
        arguments = weakref.ref(self), self._ended
        threading.Thread(target=_watch, args=arguments, daemon=True).start()

    def _prepare(self) -> tuple["_Place", Any]:
        """This rank's GPU and, on rank 0, the ID by which the ranks find each other."""
        nccl = find_nccl(self.device)
        with _nccl_errors(nccl, f"NCCL on {self.device}"):
            return _place(self.device), nccl.get_unique_id() if self.rank == 0 else None

    def start_allreduce(self, x: Array, wire: str | None = None) -> Work:
        if device_of(x).kind != "cuda":
            return self._host.start_allreduce(x, wire)
        kind = self._type(x, wire)
        if not x.size:
            return Work()
        pointer, count = x.data.ptr, x.size
        return self._start(
            x,
            lambda stream: self._comm.allReduce(
                pointer, pointer, count, kind, self._nccl.NCCL_SUM, stream
            ),
        )

    def broadcast(self, x: Array, root: int = 0) -> None:
        if device_of(x).kind != "cuda":
            return self._host.broadcast(x, root)
        self._check(x, "broadcast")
        if x.size:
            pointer, count, kind = x.data.ptr, x.nbytes, self._nccl.NCCL_UINT8
            self._start(
                x,
                lambda stream: self._comm.broadcast(pointer, pointer, count, kind, root, stream),
            ).wait()

    def barrier(self) -> None:
        self._host.barrier()

    def gather(self, value: Any) -> list[Any]:
        return self._host.gather(value)

    def share(self, value: Any, root: int = 0) -> Any:
        return self._host.share(value, root)

    def abort(self, status: int) -> NoReturn:
        self._ended.set()

        def end() -> None:
            with contextlib.suppress(Exception), self._lock:
                self._comm.abort()

        # Frees the GPU of a kernel that waits for other ranks.  NCCL may wait here in turn, for
        # a call in another thread; MPI ends the process in any case.
        thread = threading.Thread(target=end, daemon=True)
        thread.start()
        thread.join(ABORT_SECONDS)
        self._host.abort(status)

    def close(self, seconds: float | None = None) -> bool:
        self._ended.set()  # the others end their NCCL now, which is no error
        return self._host.close(seconds)

    # --- one operation ---

    def _type(self, x: Array, wire: str | None) -> int:
        """NCCL's type of x's elements; raises for an x that NCCL would misread."""
        self._check(x, "allreduce")
        if wire == "bf16" and x.dtype == np.uint16:
            return int(self._nccl.NCCL_BFLOAT16)
        kind = None if wire else self._types.get(x.dtype)
        if kind is None:
            raise refused_dtype(x, wire)
        return int(kind)

    def _check(self, x: Array, what: str) -> None:
        if device_of(x) != self.device:
            raise DeviceMismatch(
                f"{what}: x is on {device_of(x)}, rank {self.rank} communicates on {self.device}\n"
                f"  move it there, or create the communicator with device {device_of(x)}"
            )
        if not x.flags.c_contiguous:
            raise ShapeError(
                f"{what}: x {tuple(x.shape)} is not contiguous\n  pass a contiguous copy"
            )

    def _start(self, x: Array, enqueue: Callable[[int], None]) -> "_Reduction":
        """Enqueue an operation on x, after the work that the current stream has now."""
        refuse_capture("it adds over the ranks in the middle of the step")
        with working_on(self.device):
            origin = self._cuda.get_current_stream()
            origin.record(self._ready)
            self._stream.wait_event(self._ready)
            self._check_async_error()
            with _nccl_errors(self._nccl, self._name):
                enqueue(self._stream.ptr)
            done = self._stream.record(self._cuda.Event(disable_timing=True))
        work = _Reduction(self, x, origin, done)
        self._pending.append(work)
        return work

    def _wait(self, work: "_Reduction") -> None:
        with working_on(self.device):
            self._check_async_error()
            current = self._cuda.get_current_stream()
            current.wait_event(work.done)
            if work.origin.ptr != current.ptr:  # it may own x's memory
                work.origin.wait_event(work.done)
        while work in self._pending:  # the earlier ones are done as well
            self._pending.popleft()

    def _check_async_error(self) -> None:
        with _nccl_errors(self._nccl, self._name):
            self._comm.check_async_error()

    def _is_capturing(self) -> bool:
        with working_on(self.device):
            return bool(self._cuda.get_current_stream().is_capturing())


def _watch(reference: "weakref.ref[NcclCommunicator]", ended: threading.Event) -> None:
    """End all ranks if NCCL fails while the program waits for the GPU and cannot notice."""
    while not ended.wait(_POLL_SECONDS):
        comm = reference()
        if comm is None:
            return
        try:
            with comm._lock:
                if not ended.is_set():
                    comm._check_async_error()
        except DistributedError as error:
            if ended.wait(_GRACE_SECONDS):
                return
            report(str(error))
            comm.abort(2)
        del comm  # while this thread waits, it must not keep the communicator alive


class _Reduction(Work):
    """An operation on the communicator's stream."""

    def __init__(self, comm: NcclCommunicator, x: Array, origin: Any, done: Any) -> None:
        self._owner, self._x = comm, x  # x's memory must not be reused before `done`
        self.origin, self.done = origin, done  # the stream that began it; the event after it

    def test(self) -> bool:
        # Asking for an event would end a capture with an error.
        return not self._owner._is_capturing() and bool(self.done.done)

    def wait(self) -> None:
        self._owner._wait(self)


# --- which GPU ---

_Place = tuple[str, str]  # the machine; the GPU's PCI address, by which NCCL too tells GPUs apart


def local_device(comm: Communicator) -> Device:
    """The GPU of this rank: cuda:N.  All ranks call it together.

    N is the local rank.  Where the launcher shows each process a GPU of its own (srun
    --gpus-per-task=1), N is 0: the local rank modulo the number of GPUs that the process sees.

    Raises DeviceError on all ranks if one has no GPU, or if two ranks would share one.
    """
    check_communicator("local_device", comm)

    def choose() -> tuple[_Place, Device]:
        count = Device.parse("cuda").xp.cuda.runtime.getDeviceCount()
        device = Device("cuda", comm.local_rank % count)
        return _place(device), device

    ranks = _on_all_ranks(comm, choose)
    _refuse_shared_gpus([place for place, _ in ranks])
    return ranks[comm.rank][1]


def _place(device: Device) -> _Place:
    machine = platform.node()
    with contextlib.suppress(OSError):  # not on Linux
        machine += f" {_BOOT_ID.read_text().strip()}"  # two machines may have one name
    return machine, device.xp.cuda.runtime.deviceGetPCIBusId(device.index)


def _refuse_shared_gpus(places: list[_Place]) -> None:
    for rank, place in enumerate(places):
        if (first := places.index(place)) != rank:
            here = [other for other in places if other[0] == place[0]]
            gpus, machine = len(set(here)), place[0].partition(" ")[0]
            raise DeviceError(
                f"ranks {first} and {rank} would share GPU {place[1]} of {machine}\n"
                f"  NCCL needs a GPU for each rank; that machine runs {len(here)} ranks on {gpus}: "
                f"start {gpus} there (mpiexec -n {gpus} on one machine), or use --device cpu"
            )


def _on_all_ranks(comm: Communicator, prepare: Callable[[], _T]) -> list[_T]:
    """What prepare() returns on each rank.

    If it fails on a rank, that error is raised on all, so that none waits for the others.
    """
    outcome: Any
    try:
        outcome = prepare()
    except _REFUSALS as error:
        outcome = error
    outcomes = comm.gather(outcome)
    for rank, found in enumerate(outcomes):
        if isinstance(found, _REFUSALS):
            raise type(found)(f"rank {rank}: {found}")
    return outcomes


def find_nccl(device: Device) -> Any:
    """CuPy's module for NCCL; MissingExtra if there is none."""
    runtime = device.xp.cuda.runtime
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CuPy's six lines about a library that is missing
        from cupy.cuda import nccl
    if not nccl.available:
        major = runtime.runtimeGetVersion() // 1000
        raise MissingExtra(
            "training on several GPUs needs NCCL, which CuPy does not find: "
            f'pip install "nvidia-nccl-cu{major}"'
        )
    return nccl


@contextlib.contextmanager
def _nccl_errors(nccl: Any, where: str) -> Iterator[None]:
    """Turn an error of NCCL into a DistributedError."""
    try:
        yield
    except (nccl.NcclError, KeyError) as error:  # KeyError: a code that CuPy does not know
        text = f"error {error}" if isinstance(error, KeyError) else str(error)
        raise DistributedError(
            f"{where}: {text}\n"
            "  another rank, its GPU or the network may have failed: look for the first error of "
            "each rank; NCCL_DEBUG=WARN makes NCCL print the cause"
        ) from error
