"""What the reliability tests count, and the limits under which they provoke a fault."""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

GIB = 1 << 30
SECONDS = 60.0


class Hang(BaseException):
    """An action that did not end in time; not an Exception, so that no reader may catch it."""


@dataclass
class Row:
    """One kind of fault."""

    provoked: int = 0
    lost: int = 0


@dataclass
class Tally:
    """The faults that the tests of this run provoked, and how many of them did harm."""

    rows: dict[str, Row] = field(default_factory=dict)

    @contextmanager
    def __call__(self, fault: str, times: int = 1) -> Iterator[None]:
        """Count `times` faults of this kind, and one lost if the block fails.

        `fault` is the row's name, such as "kill -9 at a random moment".  The block provokes the
        fault and asserts that nothing was lost: no data, no raw traceback, no hang.
        """
        row = self.rows.setdefault(fault, Row())
        row.provoked += times
        try:
            yield
        except BaseException:
            row.lost += 1
            raise

    def table(self) -> str:
        """The rows as a Markdown table."""
        lines = ["| fault | times provoked | lost |", "|---|---|---|"]
        lines += [f"| {name} | {row.provoked:,} | {row.lost} |" for name, row in self.rows.items()]
        return "\n".join(lines)


@contextmanager
def bounded(extra: int = GIB, seconds: float = SECONDS) -> Iterator[None]:
    """Fail the block if it takes more than `seconds` or allocates more than `extra` bytes.

    A larger allocation raises MemoryError, as on a full machine; a longer block raises Hang.  Only
    for blocks in the main thread of this process.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang(f"not finished after {seconds} s")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + extra, hard))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, before)


def _address_space() -> int:
    """The bytes of address space that this process uses now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
