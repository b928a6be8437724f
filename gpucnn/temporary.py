"""Temporary folders that do not outlive their processes: the next one removes those of killed ones.

A process locks its folders.  The system releases a lock when the process ends, however it ends, so
a folder that another process can lock belongs to nobody.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def temporary_folder(prefix: str, parent: str | Path | None = None) -> Iterator[Path]:
    """Create a folder `prefix`... in `parent` (None: the system's); remove it at the end.

    Folders with this prefix whose processes were killed are removed first.  Where folders cannot be
    locked, as on Windows and some network drives, those stay.  Raises OSError if no folder can be
    created.
    """
    parent = Path(parent or tempfile.gettempdir())
    _remove_abandoned(parent, prefix)
    # Locked before it has its name: nobody takes it for an abandoned one
    folder = Path(tempfile.mkdtemp(prefix=f".new-{prefix}", dir=parent))
    lock, owner = _lock(folder), os.getpid()
    try:
        folder = folder.rename(
            folder.with_name(prefix + folder.name.removeprefix(f".new-{prefix}"))
        )
        yield folder
    finally:
        if os.getpid() == owner:  # not in a forked child that exits
            shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _remove_abandoned(parent: Path, prefix: str) -> None:
    for folder in parent.glob(f"{prefix}*"):
        lock = _lock(folder)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """Lock a folder of this user: a file descriptor to close; None if that is not possible."""
    if fcntl is None:
        return None
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            if os.fstat(descriptor).st_uid == os.geteuid():
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return descriptor
        except OSError:
            pass  # another process uses it
        os.close(descriptor)
    return None
