"""Files that a program leaves behind: whole or not at all, and an error that names the file."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gpucnn.errors import CheckpointError, GpucnnError, OutputError

_WAYS_OUT = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some of your quota there",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    errno.EACCES: "make that folder writable, or choose another",
    errno.EPERM: "make that folder writable, or choose another",
    errno.EROFS: "choose a folder on a disk that can be written",
    errno.EISDIR: "move the folder of that name away",
    errno.ENOENT: "make its folder again",
    errno.ENOTDIR: "choose another folder",
}


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Around the writing of `path`: turns an OSError into an OutputError with the way out.

    A CheckpointError that an OSError caused becomes one too; other errors pass.
    """
    try:
        yield
    except (OSError, CheckpointError) as error:
        reason = error.__cause__ if isinstance(error, CheckpointError) else error
        if not isinstance(reason, OSError) or isinstance(reason, GpucnnError):
            raise
        way_out = _WAYS_OUT.get(reason.errno or 0, "check the disk, or choose another folder")
        raise OutputError(
            f"{path} cannot be written ({reason.strerror or reason}): {way_out}"
        ) from reason


def write_whole(path: str | Path, content: bytes | str) -> None:
    """Write `content` (a str as UTF-8) to `path`, all or nothing: a failure keeps the old file.

    Raises OutputError.
    """
    path = Path(path)
    if isinstance(content, str):
        content = content.encode()
    temporary = path.with_name(f".{path.name}.part")
    with writing(path):
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
