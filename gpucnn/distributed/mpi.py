"""Communication through MPI: on CPUs, on the simulator, and for Python objects everywhere."""

import math
import os
import time
from typing import Any, NoReturn

import numpy as np

from gpucnn.device import Array, device_of, to_host, working_on
from gpucnn.distributed.communicator import DTYPES, Communicator, Work, refused_dtype
from gpucnn.distributed.wire import add_bfloat16
from gpucnn.errors import missing_extra

_POLL_SECONDS = 0.01  # between two checks for the last rank


class MPICommunicator(Communicator):
    """The processes that mpiexec (or srun) has started.

        comm = distributed.MPICommunicator()

    comm   an mpi4py communicator; None means all processes: MPI.COMM_WORLD

    Arrays on a GPU go through the host's memory; NcclCommunicator avoids that.

    Raises MissingExtra without mpi4py.
    """

    def __init__(self, comm: Any = None) -> None:
        self._mpi = _mpi()
        self._comm = self._mpi.COMM_WORLD if comm is None else comm
        self.rank: int = self._comm.Get_rank()
        self.size: int = self._comm.Get_size()
        local = self._comm.Split_type(self._mpi.COMM_TYPE_SHARED, key=self.rank)
        self.local_rank: int = local.Get_rank()
        self.local_size: int = local.Get_size()
        local.Free()
        self._operations: dict[str, Any] = {}  # of _SUMS, by format; made on first use

    def start_allreduce(self, x: Array, wire: str | None = None) -> Work:
        host = to_host(x)
        buffer, operation = self._prepared(host, wire)
        request = self._comm.Iallreduce(self._mpi.IN_PLACE, buffer, operation)
        return _Reduction(request, host, x)

    def broadcast(self, x: Array, root: int = 0) -> None:
        host = to_host(x)
        self._comm.Bcast([host, host.nbytes, self._mpi.BYTE], root)
        _copy_back(host, x)

    def barrier(self) -> None:
        self._comm.Barrier()

    def gather(self, value: Any) -> list[Any]:
        found: list[Any] = self._comm.allgather(value)
        return found

    def share(self, value: Any, root: int = 0) -> Any:
        return self._comm.bcast(value, root)

    def abort(self, status: int) -> NoReturn:
        self._comm.Abort(status)
        os._exit(status)  # not reached: Abort does not return, which its type does not say

    def close(self, seconds: float | None = None) -> bool:
        deadline = math.inf if seconds is None else time.monotonic() + seconds
        goodbye = self._comm.Ibarrier()
        while not goodbye.Test():
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)
        self._mpi.Finalize()
        return True

    def _prepared(self, x: Array, wire: str | None) -> tuple[Any, Any]:
        """x with elements of a type that MPI has, and the operation that adds them."""
        dtype = str(x.dtype)
        number = wire or dtype
        if (number, dtype) in _SUMS:  # MPI's standard has no such type
            if number not in self._operations:
                self._operations[number] = self._mpi.Op.Create(_SUMS[number, dtype], commute=True)
            return x.view(np.uint16), self._operations[number]
        if wire is not None or number not in DTYPES:
            raise refused_dtype(x, wire)
        return x, self._mpi.SUM


class _Reduction(Work):
    def __init__(self, request: Any, host: Array, x: Array) -> None:
        self._request, self._host, self._x = request, host, x

    def test(self) -> bool:
        return bool(self._request.Test())

    def wait(self) -> None:
        self._request.Wait()
        _copy_back(self._host, self._x)


def _copy_back(host: Array, x: Array) -> None:
    if host is not x:
        with working_on(device_of(x)):
            x.set(host)


def _add_float16(source: Any, target: Any, kind: Any) -> None:
    a, b = (np.frombuffer(buffer, np.float16) for buffer in (source, target))
    with np.errstate(over="ignore", invalid="ignore"):
        b += a


def _add_bfloat16(source: Any, target: Any, kind: Any) -> None:
    a, b = (np.frombuffer(buffer, np.uint16) for buffer in (source, target))
    add_bfloat16(a, b, b)


_SUMS = {("float16", "float16"): _add_float16, ("bf16", "uint16"): _add_bfloat16}


def _mpi() -> Any:
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise missing_extra("training on several processes", "mpi4py", "distributed") from error
    return MPI
