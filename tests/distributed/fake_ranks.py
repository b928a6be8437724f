"""Ranks as threads of one process: for tests of what needs no real MPI."""

import pickle
import threading
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from gpucnn.device import to_host
from gpucnn.distributed import Communicator, Work
from gpucnn.distributed.wire import add_bfloat16


class FakeRank(Communicator):
    """A rank of `run`."""

    def __init__(self, rank: int, shared: "_Shared") -> None:
        self.rank = self.local_rank = rank
        self.size = self.local_size = shared.size
        self._shared = shared
        self.calls: list[str] = []  # the collective calls so far

    def _exchange(self, name: str, value: Any) -> list[Any]:
        self.calls.append(name)
        shared = self._shared
        shared.values[self.rank] = (name, value)
        shared.barrier.wait(60)
        found = list(shared.values)
        shared.barrier.wait(60)
        names = {name for name, _ in found}
        assert len(names) == 1, f"the ranks make different calls: {names}"
        return [value for _, value in found]

    def start_allreduce(self, x: Any, wire: str | None = None) -> Work:
        name = f"allreduce {wire or x.dtype} {x.shape}"
        add = add_bfloat16 if wire == "bf16" else np.add
        first, *others = self._exchange(name, to_host(x).copy())
        total = first.copy()
        with np.errstate(over="ignore", invalid="ignore"):
            for other in others:
                add(total, other, total)
        if isinstance(x, np.ndarray):
            x[...] = total
        else:
            x.set(np.asarray(total, x.dtype))
        return Work()

    def broadcast(self, x: Any, root: int = 0) -> None:
        value = self._exchange(f"broadcast {x.dtype} {x.shape}", to_host(x).copy())[root]
        if isinstance(x, np.ndarray):
            x[...] = value
        else:
            x.set(value)

    def barrier(self) -> None:
        self._exchange("barrier", None)

    def gather(self, value: Any) -> list[Any]:
        return list(map(pickle.loads, self._exchange("gather", pickle.dumps(value))))

    def share(self, value: Any, root: int = 0) -> Any:
        return pickle.loads(self._exchange("share", pickle.dumps(value))[root])

    def abort(self, status: int) -> NoReturn:
        raise SystemExit(status)

    def close(self, seconds: float | None = None) -> bool:
        self._exchange("close", None)
        return True


class _Shared:
    def __init__(self, size: int) -> None:
        self.size = size
        self.values: list[Any] = [None] * size
        self.barrier = threading.Barrier(size)


def run(size: int, program: Callable[[FakeRank], Any]) -> list[Any]:
    """What program(rank) returns for each of `size` ranks, each in its own thread."""
    shared = _Shared(size)
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def body(rank: int) -> None:
        try:
            results[rank] = program(FakeRank(rank, shared))
        except BaseException as error:
            errors.append(error)
            shared.barrier.abort()

    threads = [threading.Thread(target=body, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next(
            (e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0]
        )
    return results
