"""The cache of compiled kernels: a folder of libraries that nobody else can write.

An entry is named by its key and by a digest of its content, KEY.DIGEST.so, so a damaged or empty
file is noticed before it is loaded.
"""

import atexit
import contextlib
import functools
import hashlib
import os
import stat
import warnings
from pathlib import Path

from gpucnn.files import writing
from gpucnn.temporary import temporary_folder

_DIGEST = 16  # hexadecimal digits of the digest in a name
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def cache_folder() -> Path:
    """The folder of compiled kernels, created if missing.

    A temporary one, which is removed when the process exits, if that folder cannot be written, or
    if others could put a library there: it belongs to another user, or its mode lets others write.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "gpucnn" / "cudasim"
    try:
        folder.parent.parent.mkdir(parents=True, exist_ok=True)
        for part in (folder.parent, folder):
            part.mkdir(mode=0o755, exist_ok=True)
            if not _is_private(part.stat()):
                _warn_once(part)
                return _process_folder()
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass  # a read-only home: every process compiles again
    return _process_folder()


def find(folder: Path, key: str) -> Path | None:
    """The entry with this key, or None.  Damaged entries are removed."""
    for path in folder.glob(f"{key}.*.so"):
        with contextlib.suppress(OSError):
            found = path.lstat()
            if not stat.S_ISREG(found.st_mode) or not _is_private(found):
                continue
            if path.name == _name(key, path.read_bytes()):
                return path
            path.unlink()
    return None


def add(folder: Path, key: str, made: Path) -> Path:
    """Move the compiled library `made`, a file on the same disk, into the cache atomically.

    Raises OutputError if that fails.
    """
    target = folder / _name(key, made.read_bytes())
    with writing(target):
        made.chmod(0o644)
        with made.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(made, target)
    return target


def _name(key: str, content: bytes) -> str:
    return f"{key}.{hashlib.sha256(content).hexdigest()[:_DIGEST]}.so"


def _is_private(found: os.stat_result) -> bool:
    """Whether this user owns a file or folder, and nobody else can write it."""
    return found.st_uid == os.geteuid() and not found.st_mode & _OTHERS_MAY_WRITE


@functools.cache
def _warn_once(folder: Path) -> None:
    warnings.warn(
        f"cudasim does not use its cache {folder}: other users can write it, so kernels are "
        "compiled again\n  remove that folder, or set XDG_CACHE_HOME to another one",
        RuntimeWarning,
        stacklevel=2,
    )


@functools.cache
def _process_folder() -> Path:
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(temporary_folder("gpucnn-cudasim-"))
