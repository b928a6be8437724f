"""Download a file from the first mirror that serves it, and resume interrupted transfers.

Uses the standard library: downloads must work after a plain `pip install`, and common downloaders
verify a hash but restart an interrupted transfer from zero.
"""

import errno
import hashlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from tqdm import tqdm

from gpucnn.arguments import printable, report
from gpucnn.data.dataset import DataNotFound

if TYPE_CHECKING:  # imported on first use: few runs download
    from gpucnn.data.transfer import Meter

TIMEOUT = 6.0  # seconds without a response or a byte
PATIENCE = 15.0  # seconds without a response from any mirror
MINIMUM_SPEED = 250e3  # bytes per second; slower mirrors are tried again when all have been tried
SLOWEST = 10e3  # bytes per second; slower mirrors are not used
SPEED_WINDOW = 10.0  # seconds over which the speed is measured
GRACE = 120.0  # seconds for the whole download, besides those of a transfer at SLOWEST
LONGEST_WAIT = 30.0  # seconds to wait for a mirror that is busy
# Errors of the disk, for which no other mirror helps.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


class Expected(NamedTuple):
    """The hexadecimal SHA-256 and the size in bytes of a published file."""

    sha256: str
    size: int


@dataclass
class _Mirror:
    url: str
    failure: str = ""  # why the last attempt failed
    rejected: bool = False
    busy_until: float = 0.0


def refuse_missing_folder(root: "str | os.PathLike[str] | None") -> None:
    """Raise DataNotFound if root is None and GPUCNN_DATA names a folder that does not exist.

    The name is probably misspelt, so a download must not create it.  Only the default folder in
    the user's cache is created.
    """
    chosen = os.environ.get("GPUCNN_DATA")
    if root is None and chosen and not Path(chosen).expanduser().exists():
        raise DataNotFound(
            f"GPUCNN_DATA: {chosen} does not exist\n"
            "  correct the name, or make the folder (mkdir) to download the data into it"
        )


def sha256_of(path: Path) -> str:
    """The file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(urls: Sequence[str], path: Path, expected: Expected, quiet: bool = False) -> Path:
    """Download the `expected` file to `path`; returns `path`.

    The mirrors in `urls` serve the same bytes over https and are tried in order: in the first
    round at MINIMUM_SPEED or more, in the second at SLOWEST or more.  Nothing beyond the expected
    size is read.  Partial data is kept in `path`.part, and later calls resume it; `path` itself is
    created only when complete and verified.  If another process is downloading the file, this one
    waits for it.  Shows a progress bar on stderr unless quiet.

    Raises DataNotFound if the folder is not writable or full, or if no mirror served the file; its
    text gives the reason for each mirror.  Without a network this takes at most PATIENCE + TIMEOUT
    seconds, otherwise at most GRACE seconds more than a transfer at SLOWEST; it waits as long for
    another process.
    """
    seconds = GRACE + expected.size / SLOWEST
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _part_file(path, seconds, quiet) as (part, file):
            if path.is_file() and sha256_of(path) == expected.sha256:
                return path  # downloaded by the process that this one waited for
            mirrors = [_Mirror(url) for url in urls]
            until = time.monotonic() + seconds
            with tqdm(
                desc=path.name, total=expected.size, unit="B", unit_scale=True, disable=quiet,
                leave=False,
            ) as bar:  # fmt: skip
                complete = _from_any(mirrors, file, expected, until, bar)
            if complete:
                os.fsync(file.fileno())
                if sys.platform == "win32":  # which does not rename open files
                    file.close()
                os.replace(part, path)
                return path
    except OSError as error:
        raise DataNotFound(
            f"{path}: cannot be written ({error.strerror or error})\n"
            "  choose a writable folder with GPUCNN_DATA or --data"
        ) from error
    reasons = "; ".join(f"{urlsplit(m.url).hostname}: {m.failure}" for m in mirrors if m.failure)
    raise DataNotFound(
        f"{path.name} could not be downloaded ({printable(reasons)})\n"
        f"  try again later (the download resumes), or save {urls[-1]} in {path.parent}"
    )


@contextmanager
def _part_file(path: Path, seconds: float, quiet: bool) -> Iterator[tuple[Path, FileIO]]:
    """Lock `path`.part, after waiting for any other process that downloads it; (its path, it).

    The system releases the lock when the file is closed or the process ends.  Where it has no
    locks, the part gets a name of its own, which no later call resumes.  An empty part is removed.
    """
    part = path.with_name(f"{path.name}.part")
    until = None
    while True:
        with _opened(part) as file:
            locked = _lock(file)
            if locked and _is_at(part, file):
                try:
                    yield part, file
                finally:
                    if not file.closed and os.fstat(file.fileno()).st_size == 0:
                        part.unlink(missing_ok=True)
                return
        if locked is None:
            break
        if locked:  # the process that had the lock renamed or removed what was opened here
            continue
        if until is None:
            until = time.monotonic() + seconds
            if not quiet:
                report(f"waiting: another process is downloading {path.name}")
        if time.monotonic() > until:
            raise DataNotFound(
                f"{path.name}: another process has been downloading it for too long\n"
                f"  stop that process, or remove {part}"
            )
        time.sleep(0.1)
    if part.stat().st_size == 0:
        part.unlink()
    own = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with _opened(own) as file:
            yield own, file
    finally:
        own.unlink(missing_ok=True)


def _opened(part: Path) -> FileIO:
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)  # on Windows
    return FileIO(os.open(part, flags, 0o666), "r+b")


def _lock(file: FileIO) -> bool | None:
    """Whether this process has locked the file; None if the system cannot lock it."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True


def _is_at(path: Path, file: FileIO) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _is_expected(file: FileIO, expected: Expected) -> bool:
    if os.fstat(file.fileno()).st_size != expected.size:
        return False
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest() == expected.sha256


def _from_any(
    mirrors: list[_Mirror], file: FileIO, expected: Expected, until: float, bar: "tqdm[None]"
) -> bool:
    """Complete `file` from the mirrors, in two rounds; whether that succeeded."""
    from gpucnn.data.transfer import FAILURES, Busy, Meter, Rejected

    answered = time.monotonic()
    for speed in (MINIMUM_SPEED, SLOWEST):
        for mirror in mirrors:
            wait = mirror.busy_until - time.monotonic()
            if mirror.rejected or wait > LONGEST_WAIT:
                continue
            time.sleep(max(0.0, wait))
            now = time.monotonic()
            if now > until or now - answered - max(0.0, wait) > PATIENCE:
                return False
            meter = Meter(TIMEOUT, speed, SPEED_WINDOW, until)
            try:
                _from_one(mirror, file, expected, meter, bar)
                return True
            except Rejected as error:
                mirror.failure, mirror.rejected = str(error), True
            except Busy as error:
                mirror.failure = str(error)
                mirror.busy_until = time.monotonic() + error.seconds
            except FAILURES as error:
                if isinstance(error, OSError) and error.errno in _DISK:
                    raise
                mirror.failure = str(error)[:200] or type(error).__name__
            if meter.received:
                answered = time.monotonic()
    return False


def _from_one(
    mirror: _Mirror, file: FileIO, expected: Expected, meter: "Meter", bar: "tqdm[None]"
) -> None:
    """Complete `file` from one mirror."""
    from gpucnn.data.transfer import Rejected, WrongRange, transfer

    def show(size: int) -> None:
        bar.update(size - bar.n)

    ranges = True
    while True:
        begun = os.fstat(file.fileno()).st_size
        if begun < expected.size:
            try:
                transfer(mirror.url, file, expected.size, meter, ranges, show)
            except WrongRange:
                ranges = False
                continue
        if _is_expected(file, expected):
            return
        file.truncate(0)
        if begun == 0:
            raise Rejected("wrong SHA-256")
        # The bytes that were there before may be the wrong ones: take all of them from this mirror.
