"""Writing files atomically, with errors that name the file and a way out."""

import errno
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gpucnn.errors import ArgumentError, OutputError

_WAYS_OUT = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some of your quota there",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    errno.EACCES: "make that folder writable, or choose another",
    errno.EPERM: "make that folder writable, or choose another",
    errno.EROFS: "choose a folder on a writable disk",
    errno.EISDIR: "move the folder of that name away",
    errno.EINVAL: "choose the name of a file",
    errno.ENOENT: "create its folder again",
    errno.ENOTDIR: "choose another folder",
}
_being_written: set[str] = set()  # names of temporary files of this process


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn an OSError in the block, which writes `path`, into an OutputError with a way out."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        way_out = _WAYS_OUT.get(error.errno or 0, "check the disk, or choose another folder")
        raise OutputError(
            f"{path} cannot be written ({error.strerror or error}): {way_out}"
        ) from error


def write_whole(path: str | Path, content: str | bytes | Iterable[bytes | memoryview]) -> None:
    """Write `content` (a str as UTF-8, or pieces in order) to `path` atomically.

    Readers see the old file or the new one, never a part of it, even after a crash or kill -9.
    Processes and threads may write the same path at once: each file is whole, and one of them
    stays.  If path is a symbolic link, the file that it points to is replaced.  Temporary files
    that killed processes left for the same path are removed.

    Raises OutputError if the file cannot be written: no such folder, no permission, a full disk,
    something other than a file at `path`.  The old file is then intact, and no temporary file is
    left.
    """
    target = Path(os.path.realpath(path))
    if isinstance(content, str):
        content = content.encode()
    pieces = [content] if isinstance(content, bytes) else content
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    with writing(path):
        _refuse_special(target)
        _remove_litter(target)
        _being_written.add(temporary.name)
        try:
            with temporary.open("xb") as file:
                for piece in pieces:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with suppress(OSError):  # report the first error
                temporary.unlink()
            raise
        finally:
            _being_written.discard(temporary.name)
        sync_folder(target.parent)


def refuse_same_file(who: str, source: str | Path, target: str | Path) -> None:
    """Raise ArgumentError if `target` is the file `source`, perhaps through a link."""
    try:
        same = os.path.samefile(source, target)
    except OSError:  # one of them does not exist
        return
    if same:
        raise ArgumentError(
            f"{who}: {target} is the file to read, {source}\n  choose another name for the result"
        )


def _refuse_special(target: Path) -> None:
    """Raise an OSError for a folder, and for a device or pipe, which must not be replaced."""
    if target.exists() and not target.is_file():
        code = errno.EISDIR if target.is_dir() else errno.EINVAL
        reason = os.strerror(code) if target.is_dir() else "not a regular file"
        raise OSError(code, reason)


def _remove_litter(target: Path) -> None:
    """Remove temporary files of `target` whose process no longer lives."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.(\d+)\.[0-9a-f]{{8}}\.part")
    with suppress(OSError):  # perhaps the folder cannot be listed, or another process was faster
        for name in os.listdir(target.parent):
            if (match := pattern.fullmatch(name)) and not _in_use(name, int(match[1])):
                (target.parent / name).unlink()


def _in_use(name: str, pid: int) -> bool:
    if pid == os.getpid():  # in a container, the killed run often had this pid too
        return name in _being_written
    if os.name != "posix":  # os.kill(pid, 0) is a Ctrl-C on Windows
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def sync_folder(folder: Path) -> None:
    """Write the folder's entries to the disk, where the system can: the rename is one of them."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
