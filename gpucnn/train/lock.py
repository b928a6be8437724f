"""A lock on the folder of a run, so that two processes never write to one folder."""

import os
import sys
from contextlib import suppress
from pathlib import Path

from gpucnn.errors import ArgumentError
from gpucnn.files import writing

if sys.platform != "win32":
    import fcntl

_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


class FolderLock:
    """Locks `folder` until `release` or the end of the process, also by kill -9.

    The lock is the operating system's, on the file run.lock, which names the process.  Windows and
    file systems without locks lock nothing.

    Raises ArgumentError if another process holds the lock, OutputError if the file cannot be
    written.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "run.lock"
        with writing(path):
            self._file: int | None = os.open(path, _FLAGS, 0o666)
        if sys.platform == "win32":
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(self._file, 20).strip()
            self.release()
            process = f"process {int(owner)}" if owner.isdigit() else "another process"
            raise ArgumentError(
                f"--out: {folder} is in use by {process}\n"
                "  wait until it has ended, or choose another folder"
            ) from None
        except OSError:
            return  # a file system without locks
        with suppress(OSError):  # a full disk: the lock holds without the number
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Unlock the folder; run.lock stays, because removing it would be a race."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
