"""Read files of any kind and size: without waiting for a pipe, and never more than expected."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from gpucnn.errors import DataError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file, or a link to one, for reading in binary.

    Raises DataError for a folder, pipe, socket or device, and for a file that is missing or may not
    be read.
    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0)  # on Windows
    flags |= getattr(os, "O_NONBLOCK", 0)  # elsewhere: opening a pipe would wait for its writer
    try:
        descriptor = os.open(path, flags)
        try:
            kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
            if kind != stat.S_IFREG:
                raise DataError(
                    f"{path}: cannot be read: expected a file, got {_KINDS.get(kind, 'no file')}"
                )
            return os.fdopen(descriptor, "rb")
        except BaseException:
            os.close(descriptor)
            raise
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file") from error
    except OSError as error:
        raise unreadable(path, error) from error


def read_bounded(path: Path, limit: int, expected: str) -> bytes:
    """The content of a regular file of at most `limit` bytes; `expected` says so in the error.

    Raises DataError for a larger file, before any of it is read; for a file that changes while it
    is read; and as `open_regular` does.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise DataError(
                f"{path}: expected {expected}, got {size:,} bytes\n"
                "  the file is damaged or from another data set; get a fresh copy"
            )
        try:
            content = file.read(size + 1)
        except OSError as error:
            raise unreadable(path, error) from error
    if len(content) != size:
        raise DataError(
            f"{path}: its size changed from {size:,} bytes while it was read\n"
            "  try again when nothing writes to it"
        )
    return content


def unreadable(path: Path, error: OSError) -> DataError:
    """The DataError for an error of the operating system."""
    return DataError(f"{path}: cannot be read ({error.strerror or error})")
