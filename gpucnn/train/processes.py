"""A training script on several processes: its communicator, its device, its errors and its end."""

import os
import platform
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from gpucnn.arguments import report
from gpucnn.cpu import set_num_threads, usable_cores
from gpucnn.device import Device
from gpucnn.distributed import Communicator, MPICommunicator, NcclCommunicator, local_device
from gpucnn.errors import ArgumentError, TrainingWarning

_Value = TypeVar("_Value")
_PATIENCE = 30.0  # seconds; for rank 0's last callbacks
_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")  # set by mpiexec: of MPICH and Intel, of Open MPI


class Processes:
    """The processes of a training script: this one alone until `connect`."""

    def __init__(self) -> None:
        self.comm: Communicator | None = None
        self._untold = ""

    @property
    def rank(self) -> int:
        return 0 if self.comm is None else self.comm.rank

    def connect(self, distributed: bool) -> None:
        """Find the other processes, if --distributed is given.

        Raises ArgumentError if mpiexec has started several without it, MissingExtra without mpi4py.
        """
        if not distributed:
            size = next((os.environ[name] for name in _SIZES if name in os.environ), "1")
            if size != "1":
                raise ArgumentError(
                    f"mpiexec has started {size} processes, and each would train by itself\n"
                    "  add --distributed to train together"
                )
            return
        self.comm = MPICommunicator()
        if self.comm.rank > 0:
            warnings.simplefilter("ignore", TrainingWarning)  # rank 0 warns

    def own_device(self, device: Device, threads: int | None) -> Device:
        """This process's device, such as cuda:1 for "cuda"; also sets its number of threads.

        device and threads are those of the command line; threads None divides a machine's cores
        among its processes.  On several GPUs, `comm` becomes a NcclCommunicator.

        Raises ArgumentError if device names one GPU for all; the errors of NcclCommunicator.
        """
        comm = self.comm
        if threads is None and comm is not None:
            threads = _share_of_cores(comm)
        if threads is not None:
            set_num_threads(threads)
        if comm is None or comm.size == 1 or device.kind != "cuda":
            return device
        if device.index:
            raise ArgumentError(
                f"--device {device}: with --distributed each process takes the GPU of its number\n"
                "  use --device cuda; CUDA_VISIBLE_DEVICES=2,3 chooses the GPUs"
            )
        device = local_device(comm)
        self.comm = NcclCommunicator(comm, device)
        return device

    def from_rank_0(self, make: Callable[[], _Value]) -> _Value:
        """What `make`, called on rank 0 only, returns there."""
        if self.comm is None:
            return make()
        value: Any = make() if self.comm.rank == 0 else None
        shared: _Value = self.comm.share(value)
        return shared

    def tell(self, text: str) -> None:
        """Report an error; what all ranks have found is told once."""
        comm = self.comm
        if comm is None or comm.size == 1:
            report(text)
        elif not comm.ending:
            report(f"rank {comm.rank}: {text}")
        elif comm.rank == 0:
            report(text)
        else:
            self._untold = f"rank {comm.rank}: {text}"

    def end(self, status: int) -> None:
        """Let all processes end: at once, or after _PATIENCE, if this one alone has failed."""
        comm = self.comm
        if comm is None:
            return
        if status and not comm.ending and comm.size > 1:
            comm.abort(status)
        if not comm.close(_PATIENCE if status else None):
            if self._untold:
                report(self._untold)  # not all ranks have found it
            comm.abort(status)


def _share_of_cores(comm: Communicator) -> int:
    """The number of cores for each process of this machine; a launcher may have divided them."""
    own = usable_cores()
    machine = platform.node()
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(own))
    here = [found for place, found in comm.gather((machine, cores)) if place == machine]
    return max(1, min(own, len(set[int]().union(*here)) // comm.local_size))
