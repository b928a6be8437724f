"""What processes that train together say to each other: the interface of MPI and of NCCL."""

from typing import Any, NoReturn, Self

from gpucnn.device import Array
from gpucnn.errors import ArgumentError, DtypeError, kind

# What an allreduce adds, besides bfloat16 in a uint16; the integers modulo 2^bits.
DTYPES = "float16 float32 float64 int32 int64 uint8 uint32 uint64".split()


class Work:
    """A reduction that has begun."""

    def test(self) -> bool:
        """Let it make progress, and return whether it is done."""
        return True

    def wait(self) -> None:
        """Return when it is done; on a GPU the current stream waits for it, not the host."""


class Communicator:
    """`size` processes that take part in one training run, each with its own `rank` from 0.

    local_rank counts the local_size processes of this machine, and chooses its GPU.  All ranks must
    make the same calls in the same order: a rank that does not lets the others wait.

    ending   all ranks know that they end now, and why
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    ending = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # a copy of a model talks to the same ranks

    def allreduce(self, x: Array) -> None:
        """Replace x by its sum over all ranks, with the same bits on each.

        x is contiguous, of one shape and dtype on all ranks.
        """
        self.start_allreduce(x).wait()

    def start_allreduce(self, x: Array, wire: str | None = None) -> Work:
        """Begin an allreduce; x must not be used until the Work has been waited for.

        wire   "bf16" if x, of dtype uint16, holds bfloat16; None adds numbers of x's dtype
        """
        raise NotImplementedError

    def broadcast(self, x: Array, root: int = 0) -> None:
        """Overwrite x with rank root's; contiguous, of one shape and dtype on all ranks."""
        raise NotImplementedError

    def barrier(self) -> None:
        """Wait until every rank has come here."""
        raise NotImplementedError

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, a Python object, on every rank."""
        raise NotImplementedError

    def share(self, value: Any, root: int = 0) -> Any:
        """Rank root's value, a Python object, on every rank."""
        raise NotImplementedError

    def abort(self, status: int) -> NoReturn:
        """End the processes of all ranks, with this exit status."""
        raise NotImplementedError

    def close(self, seconds: float | None = None) -> bool:
        """Wait for all ranks, then end the communication.

        seconds   wait no longer; None: as long as it takes
        Returns whether all ranks have come here; if not, only `abort` ends them.
        """
        raise NotImplementedError


def check_communicator(what: str, comm: Any) -> None:
    """Raise ArgumentError, on behalf of `what`, unless comm is a Communicator."""
    if not isinstance(comm, Communicator):
        raise ArgumentError(
            f"{what}: expected a Communicator, got {kind(comm)}\n"
            "  for one of mpi4py: distributed.MPICommunicator(comm)"
        )


def refused_dtype(x: Array, wire: str | None) -> DtypeError:
    """The error of an allreduce of an x that cannot be added."""
    given = f"{x.dtype} as {wire}" if wire else str(x.dtype)
    return DtypeError(
        f"allreduce: expected one of {', '.join(DTYPES)}, or uint16 as bf16, got {given}"
    )
