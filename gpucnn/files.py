"""Writing files atomically, with errors that name the file and a way out."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gpucnn.errors import OutputError

_WAYS_OUT = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some of your quota there",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    errno.EACCES: "make that folder writable, or choose another",
    errno.EPERM: "make that folder writable, or choose another",
    errno.EROFS: "choose a folder on a writable disk",
    errno.EISDIR: "move the folder of that name away",
    errno.ENOENT: "create its folder again",
    errno.ENOTDIR: "choose another folder",
}


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


def write_whole(path: str | Path, content: bytes | str) -> None:
    """Write `content` (a str as UTF-8) to `path` atomically.

    Readers see the old file or the new one, never a part of it, even after a crash.
    Raises OutputError if the file cannot be written: no such folder, no permission, a full disk.
    The old file is then intact, and no temporary file is left.
    """
    path = Path(path)
    if isinstance(content, str):
        content = content.encode()
    temporary = path.with_name(f".{path.name}.part")
    with writing(path):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):  # report the first error
                temporary.unlink()
            raise
