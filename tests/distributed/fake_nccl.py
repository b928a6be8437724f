"""A stand-in for cupy.cuda.nccl, for ranks that are threads of one process.

It has the names, signatures, codes and errors of CuPy 14.2's module.  It refuses what NCCL refuses,
and what NCCL only forbids: calls that differ between the ranks.  A reduction keeps its place in
its stream.  In a capture the threads cannot meet, and all ranks count as having the same numbers.
"""

import secrets
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np

from gpucnn.distributed.wire import add_bfloat16

available = True
NCCL_SUM = 0
NCCL_INT8, NCCL_UINT8, NCCL_INT32, NCCL_UINT32, NCCL_INT64, NCCL_UINT64 = range(6)
NCCL_FLOAT16, NCCL_FLOAT32, NCCL_FLOAT64, NCCL_BFLOAT16 = range(6, 10)
_DTYPES = dict(
    enumerate("int8 uint8 int32 uint32 int64 uint64 float16 float32 float64 uint16".split())
)
_SECONDS = 120.0  # until a rank that waits for the others gives up
_DEVICE_MEMORY = 2  # cudaMemoryTypeDevice
_TO_DEVICE, _TO_HOST = 1, 2  # cudaMemcpyKind


class NcclError(RuntimeError):
    _NAMES = {
        1: "NCCL_ERROR_UNHANDLED_CUDA_ERROR: unhandled cuda error",
        2: "NCCL_ERROR_SYSTEM_ERROR: unhandled system error",
        3: "NCCL_ERROR_INTERNAL_ERROR: internal error",
        4: "NCCL_ERROR_INVALID_ARGUMENT: invalid argument",
        5: "NCCL_ERROR_INVALID_USAGE: invalid usage",
        6: "NCCL_ERROR_REMOTE_ERROR: remote process exited or there was a network error",
    }

    def __init__(self, status: int, why: str = "") -> None:
        self.status = status
        super().__init__(self._NAMES[status] + (f" ({why})" if why else ""))  # KeyError, as CuPy


class _Ranks:
    """What the communicators with one unique ID share."""

    by_id: dict[bytes, "_Ranks"] = {}
    lock = threading.Lock()

    def __init__(self, size: int) -> None:
        self.size = size
        self.values: list[Any] = [None] * size
        self.barrier = threading.Barrier(size)

    def exchange(self, rank: int, value: Any) -> list[Any]:
        """Every rank's value; NCCL would wait forever for a rank that does not come."""
        self.values[rank] = value
        try:
            self.barrier.wait(_SECONDS)
            found = list(self.values)
            self.barrier.wait(_SECONDS)
        except threading.BrokenBarrierError:
            raise NcclError(6) from None
        return found


def get_unique_id() -> bytes:
    return secrets.token_bytes(128)


class NcclCommunicator:
    """A rank.  `fail`, set by a test, is the status of its asynchronous error."""

    def __init__(self, ndev: int, commId: bytes, rank: int) -> None:
        import cupy

        self._cuda = cupy.cuda
        if not isinstance(commId, bytes) or len(commId) != 128:
            raise TypeError("commId: expected the 128 bytes of get_unique_id")
        if not 0 <= rank < ndev:
            raise NcclError(4, f"rank {rank} of {ndev}")
        with _Ranks.lock:
            self._ranks: _Ranks | None = _Ranks.by_id.setdefault(commId, _Ranks(ndev))
        self._rank, self._size, self._device = rank, ndev, self._cuda.runtime.getDevice()
        self.fail = 0
        self.calls: list[str] = []
        self._staged: list[Any] = []
        everyone = self._ranks.exchange(rank, (ndev, self._device))
        if len({size for size, _ in everyone}) > 1:
            raise NcclError(4, "the ranks differ in ndev")
        if len({device for _, device in everyone}) < ndev:
            raise NcclError(5, "duplicate GPU")

    def allReduce(
        self, sendbuf: int, recvbuf: int, count: int, datatype: int, op: int, stream: int
    ) -> None:
        if op != NCCL_SUM:
            raise NcclError(4, f"operation {op}")
        self._run("allReduce", sendbuf, recvbuf, count, datatype, op, stream, _sum)

    def broadcast(
        self, sendbuff: int, recvbuff: int, count: int, datatype: int, root: int, stream: int
    ) -> None:
        if not 0 <= root < self._size:
            raise NcclError(4, f"root {root}")
        args = (sendbuff, recvbuff, count, datatype, root, stream)
        self._run("broadcast", *args, lambda parts, _: parts[root])

    def check_async_error(self) -> None:
        self._alive()
        if self.fail:
            raise NcclError(self.fail)

    def abort(self) -> None:
        if self._ranks is not None:
            self._ranks.barrier.abort()
        self._ranks = None

    def destroy(self) -> None:
        self._ranks = None

    # --- helpers ---

    def _alive(self) -> _Ranks:
        if self._ranks is None:
            raise NcclError(4, "the communicator was aborted or destroyed")
        return self._ranks

    def _run(
        self, name: str, source: int, target: int, count: int, datatype: int, which: int,
        stream: int, combine: Any,
    ) -> None:  # fmt: skip
        ranks, runtime = self._alive(), self._cuda.runtime
        if datatype not in _DTYPES:
            raise NcclError(4, f"datatype {datatype}")
        for pointer in (source, target):
            found = runtime.pointerGetAttributes(pointer)
            if found.type != _DEVICE_MEMORY or found.device != self._device:
                raise NcclError(4, f"{pointer:#x} is not memory of GPU {self._device}")
        self.calls.append(name)
        dtype = np.dtype(_DTYPES[datatype])
        mine = np.empty(count, dtype)
        if runtime.streamIsCapturing(stream):
            self._captured(target, count, dtype, stream)
            return
        runtime.memcpyAsync(mine.ctypes.data, source, mine.nbytes, _TO_HOST, stream)
        runtime.streamSynchronize(stream)  # NCCL does not wait here
        everyone = ranks.exchange(self._rank, ((name, count, datatype, which), mine))
        calls = {call for call, _ in everyone}
        if len(calls) > 1:
            raise NcclError(5, f"the ranks differ in their call: {sorted(calls)}")
        result = combine([part for _, part in everyone], datatype)
        pinned = self._cuda.alloc_pinned_memory(max(result.nbytes, 1))
        staged = np.frombuffer(pinned, dtype, count)
        staged[...] = result
        runtime.memcpyAsync(target, staged.ctypes.data, staged.nbytes, _TO_DEVICE, stream)
        self._staged.append(pinned)  # the copy may run at any later time

    def _captured(self, target: int, count: int, dtype: Any, stream: int) -> None:
        import cupy

        if hasattr(cupy, "__version__"):  # real CuPy
            memory = self._cuda.UnownedMemory(target, count * dtype.itemsize, self)
            x = cupy.ndarray(count, dtype, self._cuda.MemoryPointer(memory, 0))
            external = SimpleNamespace(__cuda_stream__=lambda: (0, stream))
            with self._cuda.Stream.from_external(external):
                x *= self._size
        else:
            cupy.cuda.Stream.by_pointer[stream].add(lambda: None)


def _sum(parts: list[Any], datatype: int) -> Any:
    add = add_bfloat16 if datatype == NCCL_BFLOAT16 else np.add
    total = parts[0].copy()
    for part in parts[1:]:
        add(total, part, total)
    return total
