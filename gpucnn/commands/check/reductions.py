"""NCCL between the GPUs of this machine; each rank is a thread."""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from gpucnn.commands.check.part import Reporter
from gpucnn.device import Device, working_on
from gpucnn.distributed import Communicator, NcclCommunicator
from gpucnn.distributed.communicator import DTYPES
from gpucnn.distributed.nccl import ABORT_SECONDS, find_nccl
from gpucnn.distributed.wire import pack, unpack
from gpucnn.errors import DistributedError, MissingExtra

_MAX_RANKS = 8  # the sums of _small_integers then stay below 256
_BUCKET = 25_000_000  # bytes, as in DistributedOptimizer
_REPEATS = 20

Problems = list[str]


def examine(reporter: Reporter) -> None:
    obstacle = _obstacle(reporter)
    if obstacle:
        reporter.skip("NCCL", obstacle)
        return
    reporter.run("NCCL", _reductions, reporter)
    reporter.run("NCCL abort", _abort, reporter)


def _obstacle(reporter: Reporter) -> str:
    """Why NCCL cannot be examined here, or ""."""
    if reporter.simulated:
        return "the simulator is one device"
    if reporter.device.xp.cuda.runtime.getDeviceCount() < 2:
        return "there is only one GPU"
    try:
        find_nccl(reporter.device)
    except MissingExtra as error:
        return str(error)
    return ""


def _reductions(reporter: Reporter) -> None:
    """Sums, streams, graphs, and the time of one bucket of gradients."""
    results = _on_all_gpus(_check_rank)
    if _report(reporter, "NCCL", [problems for problems, _ in results]):
        ms, ranks = max(ms for _, ms in results), len(results)
        reporter.row(
            "NCCL",
            {"of": f"allreduce of {_BUCKET / 1e6:.0f} MB on {ranks} GPUs", "ms": ms,
             "GB/s": 2 * (ranks - 1) / ranks * _BUCKET / ms / 1e6},
        )  # fmt: skip
        reporter.ok(
            "NCCL",
            f"{ranks} GPUs: sums of {len(DTYPES) + 1} dtypes, the same bits on each and twice, "
            "in a captured graph too",
        )


def _abort(reporter: Reporter) -> None:
    """A rank whose reduction waits in vain for the others can end."""
    if _report(reporter, "NCCL abort", _on_all_gpus(_abort_rank)):
        reporter.ok("NCCL abort", "ends a reduction that waits for a missing rank")


def _report(reporter: Reporter, case: str, ranks: list[Problems]) -> bool:
    """Report the problems; whether there were none."""
    for rank, problems in enumerate(ranks):
        for problem in problems:
            reporter.fail(case, f"rank {rank}: {problem}")
    return not any(ranks)


# --- a rank ---


def _check_rank(comm: NcclCommunicator) -> tuple[Problems, float]:
    """What is wrong on this rank, and the milliseconds of one reduction."""
    problems = [
        *_small_integers(comm),
        *_random_numbers(comm),
        *_broadcast(comm),
        *_captured(comm),
    ]
    return problems, _milliseconds(comm)


def _small_integers(comm: NcclCommunicator) -> Problems:
    """Sums that every dtype holds exactly."""
    xp = comm.device.xp
    expected = np.arange(1000) % 20 * comm.size + sum(range(comm.size))
    problems = []
    for dtype in [*DTYPES, "bf16"]:
        given = np.arange(1000) % 20 + comm.rank
        if dtype == "bf16":
            bits = np.empty(1000, np.uint16)
            pack(given.astype(np.float32), dtype, bits)
            x = xp.asarray(bits)
            comm.start_allreduce(x, dtype).wait()
            found = np.empty(1000, np.float32)
            unpack(x.get(), dtype, found)
        else:
            x = xp.asarray(given.astype(dtype))
            comm.allreduce(x)
            found = x.get()
        if not np.array_equal(found, expected):
            problems.append(f"wrong sum of {dtype}")
    return problems


def _random_numbers(comm: NcclCommunicator) -> Problems:
    """float32: accurate, and with the same bits on all ranks and in two runs."""
    xp, n = comm.device.xp, 2**20 + 3
    given = [
        np.random.default_rng(rank).standard_normal(n, np.float32) for rank in range(comm.size)
    ]
    found = []
    for _ in range(2):
        x = xp.asarray(given[comm.rank])
        comm.allreduce(x)
        found.append(x.get())
    problems = []
    error = np.abs(found[0] - np.sum(given, axis=0, dtype=np.float64)).max()
    if not error < 1e-5:
        problems.append(f"a sum of float32 is off by {error:.1e}")
    if found[0].tobytes() != found[1].tobytes():
        problems.append("two reductions of the same numbers differ")
    if len(set(comm.gather(found[0].tobytes()))) > 1:
        problems.append("the ranks got different bits")
    return problems


def _broadcast(comm: NcclCommunicator) -> Problems:
    x = comm.device.xp.asarray(np.arange(1000) + comm.rank)
    comm.broadcast(x, comm.size - 1)
    right = np.array_equal(x.get(), np.arange(1000) + comm.size - 1)
    return [] if right else ["wrong numbers after a broadcast"]


def _captured(comm: NcclCommunicator) -> Problems:
    """A graph of: add 1, allreduce, double."""
    xp = comm.device.xp
    stream = xp.cuda.Stream(non_blocking=True)
    with stream:
        x = xp.asarray(np.full(1000, comm.rank, np.int64))
        x += 0  # compiles the kernels
        x *= 1
        comm.allreduce(x)
        stream.synchronize()
        stream.begin_capture()
        try:
            x += 1
            comm.start_allreduce(x).wait()
            x *= 2
        finally:
            graph = stream.end_capture()
        expected = sum(range(comm.size))
        for _ in range(2):
            graph.launch(stream)
            expected = (expected + 1) * comm.size * 2
        found = x.get()
    return [] if (found == expected).all() else ["wrong numbers from a captured graph"]


def _milliseconds(comm: NcclCommunicator) -> float:
    """The time of an allreduce of one bucket, in a series."""
    xp, cuda = comm.device.xp, comm.device.xp.cuda
    x = xp.zeros(_BUCKET // 4, np.float32)
    comm.allreduce(x)
    cuda.get_current_stream().synchronize()
    comm.barrier()
    begin, end = cuda.Event(), cuda.Event()
    begin.record()
    for _ in range(_REPEATS):
        comm.allreduce(x)
    end.record()
    end.synchronize()
    return float(cuda.get_elapsed_time(begin, end)) / _REPEATS


def _abort_rank(comm: NcclCommunicator) -> Problems:
    xp = comm.device.xp
    x = xp.zeros(1000, np.float32)
    comm.allreduce(x)  # connects the ranks
    xp.cuda.get_current_stream().synchronize()
    comm.barrier()
    if comm.rank == 0:
        comm.start_allreduce(x)
    start = time.monotonic()
    with contextlib.suppress(_Ended):
        comm.abort(0)
    if time.monotonic() - start >= ABORT_SECONDS:
        return [f"NCCL did not abort within {ABORT_SECONDS:.0f} s"]
    xp.cuda.Device(comm.device.index).synchronize()
    try:
        comm.start_allreduce(x)
    except DistributedError:
        return []
    return ["a reduction after abort was not refused"]


# --- threads as ranks ---


class _Ended(Exception):
    """In place of the end of the process."""


class _Thread(Communicator):
    """A rank that is a thread: what NcclCommunicator needs of its host."""

    def __init__(self, rank: int, values: list[Any], barrier: threading.Barrier) -> None:
        self.rank = self.local_rank = rank
        self.size = self.local_size = len(values)
        self._values, self._barrier = values, barrier

    def gather(self, value: Any) -> list[Any]:
        self._values[self.rank] = value
        self._barrier.wait()
        found = list(self._values)
        self._barrier.wait()
        return found

    def barrier(self) -> None:
        self._barrier.wait()

    def abort(self, status: int) -> NoReturn:
        raise _Ended


def _on_all_gpus(program: Callable[[NcclCommunicator], Any]) -> list[Any]:
    """What program(comm) returns on each GPU; a rank that fails ends the others' waits."""
    count = min(Device.parse("cuda").xp.cuda.runtime.getDeviceCount(), _MAX_RANKS)
    values, barrier = [None] * count, threading.Barrier(count)
    results: list[Any] = [None] * count
    errors: list[Exception] = []

    def run(rank: int) -> None:
        try:
            comm = NcclCommunicator(_Thread(rank, values, barrier))
            with working_on(comm.device):
                results[rank] = program(comm)
        except Exception as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=[rank], daemon=True) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive() and not errors:  # the others may wait for a rank that has failed
            thread.join(0.1)
    if errors:
        raise errors[0]
    return results
