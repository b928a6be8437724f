"""One mutated file and one reader: what may happen, and what is a finding."""

import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from reliability.tally import Hang, bounded

from fuzzing.mutators import Mutator, anywhere
from gpucnn.errors import GpucnnError

LONGEST_MESSAGE = 11_000  # characters
FORBIDDEN = {  # audit events
    "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "subprocess.Popen",
    "pickle.find_class", "socket.connect", "socket.bind",
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A reader.

    name      of the reader and its file
    row       its row in the table of faults
    file      the name, in the target's folder, of the file that is mutated
    seeds     makes the good files
    mutators  those that know the format; `anywhere` is used beside them
    read      called as read(path)
    others    files that lie beside it: {name: content}
    writes    names that `read` may create in the folder when it succeeds
    share     how often this target is drawn
    """

    name: str
    row: str
    file: str
    seeds: Callable[[], Sequence[bytes]]
    mutators: tuple[Mutator, ...]
    read: Callable[[Path], Any]
    others: Callable[[], dict[str, bytes]] = dict
    writes: tuple[str, ...] = ()
    share: float = 1.0

    @cached_property
    def corpus(self) -> Sequence[bytes]:
        return self.seeds()

    def prepare(self, folder: Path) -> None:
        """Create the target's folder below `folder`, with the files that stay as they are."""
        for name, content in self.others().items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        (folder / self.file).parent.mkdir(parents=True, exist_ok=True)


@dataclass(frozen=True)
class Finding:
    """A reader that did what it must not."""

    target: str  # its name
    what: str
    content: bytes


class _Forbidden(BaseException):
    """Raised inside a reader that starts a program, imports a name, or writes elsewhere."""


class Watch:
    """Sees what this process does, and stops it: only inside `with watch.over(folder)`."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._folder = ""  # that the reader may write to; "" while nothing is watched
        sys.addaudithook(self._hook)

    @contextmanager
    def over(self, folder: Path) -> Iterator[None]:
        self.seen.clear()
        self._folder = os.path.join(os.path.abspath(folder), "")
        try:
            yield
        finally:
            self._folder = ""

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._folder:
            return
        if event in FORBIDDEN or (event == "open" and self._is_elsewhere(*arguments)):
            self.seen.append(f"{event} {arguments!r}"[:200])
            raise _Forbidden(self.seen[-1])

    def _is_elsewhere(self, path: Any, mode: Any, flags: Any) -> bool:
        """Whether a file is opened for writing outside the folder."""
        if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return False
        if isinstance(path, int):
            return False
        name = os.path.abspath(os.fsdecode(path))  # "folder/../x" is elsewhere
        return not name.startswith(self._folder) and "__pycache__" not in name


def mutated(targets: Sequence[Target], seed: int, case: int) -> tuple[Target, bytes]:
    """The target and the content of a case; the same for the same numbers."""
    rng = random.Random(f"{seed}/{case}")
    (target,) = rng.choices(targets, [target.share for target in targets])
    content, other = rng.choice(target.corpus), rng.choice(target.corpus)
    try:
        return target, mutator_of(target, rng)(rng, content, other)
    except RecursionError:  # the mutator met a nest of its own
        return target, content


def mutator_of(target: Target, rng: random.Random) -> Mutator:
    """One of the target's mutators, or `anywhere`."""
    return rng.choice((anywhere, *target.mutators * 2))


def verdict(target: Target, folder: Path, content: bytes, watch: Watch, seconds: float = 10) -> str:
    """Let `target` read `content` from `folder`; "" if all is well, else what is wrong."""
    path = folder / target.file
    path.write_bytes(content)
    before = _names(folder)
    wrong, started = "", time.perf_counter()
    try:
        with bounded(seconds=seconds), watch.over(folder):
            target.read(path)
        succeeded = True
    except GpucnnError as error:
        succeeded = False
        wrong = _wrong_with(error)
    except Hang:
        succeeded, wrong = False, f"not finished after {seconds} s"
    except BaseException as error:
        succeeded, wrong = False, f"raised {type(error).__name__}: {str(error)[:300]}"
    if not wrong and time.perf_counter() - started > seconds:
        wrong = f"took {time.perf_counter() - started:.1f} s"
    created = _names(folder) - before
    for name in created:
        _remove(folder / name)
    if watch.seen:
        return f"did what no reader may: {watch.seen[0]}"
    if created - (set(target.writes) if succeeded else set()):
        return f"left files behind: {', '.join(sorted(created))}"
    return wrong


def _names(folder: Path) -> set[str]:
    return {entry.name for entry in os.scandir(folder)}


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        path.unlink()


def _wrong_with(error: GpucnnError) -> str:
    """What is wrong with this error of gpucnn as an answer to a bad file; "" if nothing is."""
    text = str(error)
    if not text.strip():
        return f"{type(error).__name__} without a message"
    if len(text) > LONGEST_MESSAGE:
        return f"{type(error).__name__} with a message of {len(text)} characters"
    cause: BaseException | None = error
    while cause is not None:  # a reader must not try: on a larger machine it would succeed
        if isinstance(cause, MemoryError):
            return (
                f"allocated more than 1 GiB before it raised {type(error).__name__}: {text[:200]}"
            )
        cause = cause.__cause__ or cause.__context__
    return ""
