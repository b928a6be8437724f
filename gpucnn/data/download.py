"""Downloads one file from the first mirror that serves it, and goes on where a try stopped.

The standard library does it: data must arrive after a plain `pip install`, and the usual
downloaders check a hash but start a cut transfer from nothing.  Its modules for that are imported
when they are needed: they are a tenth of what `import gpucnn` would take, and few runs download.
"""

import errno
import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gpucnn.data.dataset import DataNotFound

TIMEOUT = 6.0  # seconds without an answer or a byte
PATIENCE = 15.0  # seconds without a sign of life from any mirror
MINIMUM_SPEED = 250e3  # bytes a second, below which another mirror is tried first
SPEED_WINDOW = 10.0  # seconds before a speed is judged
_CHUNK = 1 << 18
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no mirror will help


def refuse_missing_folder(root: "str | os.PathLike[str] | None") -> None:
    """Raises DataNotFound if root is None and GPUCNN_DATA names a folder that does not exist.

    The usual reason is a misspelt name, under which nothing must be made: of default folders only
    the one in the user's cache is made for a download.
    """
    chosen = os.environ.get("GPUCNN_DATA")
    if root is None and chosen and not Path(chosen).expanduser().exists():
        raise DataNotFound(
            f"GPUCNN_DATA: {chosen} does not exist\n"
            "  correct the name, or make the folder (mkdir) to have the data downloaded there"
        )


def sha256_of(path: Path) -> str:
    """The file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(urls: Sequence[str], path: Path, sha256: str, quiet: bool = False) -> Path:
    """Download the file with hash `sha256` to `path`; returns `path`.

    The mirrors in `urls` serve the same bytes and are tried in order: first each that is fast,
    then each that works.  What has arrived stays in `path`.part, from which any later call goes on;
    `path` itself appears only when complete and correct.  A progress bar goes to stderr unless
    quiet.  Raises DataNotFound if the folder cannot be written or is full, or, with a word on each
    mirror, if none served the file; without a network that takes PATIENCE seconds at most, and a
    TIMEOUT.
    """
    import urllib.error
    from http.client import HTTPException
    from urllib.parse import urlsplit

    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.open("ab").close()
    except OSError as error:
        raise _unwritable(path, error) from error
    failures: dict[str, str] = {}
    useless = set()
    sign_of_life = time.monotonic()
    for attempt, url in enumerate([*urls, *urls]):
        if time.monotonic() - sign_of_life > PATIENCE:
            break
        if url in useless:
            continue
        size = part.stat().st_size
        try:
            _transfer(url, part, MINIMUM_SPEED if attempt < len(urls) - 1 else 0.0, quiet)
            if sha256_of(part) == sha256:
                os.replace(part, path)
                return path
            part.write_bytes(b"")
            failures[url] = "wrong SHA-256"
            if size == 0:  # all of it came from here; else an earlier piece may be at fault
                useless.add(url)
        except urllib.error.HTTPError as error:
            failures[url] = f"HTTP {error.code} {error.reason}"
            useless.add(url)
            error.close()
        except (OSError, HTTPException, ValueError) as error:
            if isinstance(error, OSError) and error.errno in _FULL:
                raise _unwritable(path, error) from error
            failures[url] = str(getattr(error, "reason", error)) or type(error).__name__
        if part.stat().st_size != size or url in useless:
            sign_of_life = time.monotonic()
    if part.stat().st_size == 0:
        part.unlink()
    reasons = "; ".join(f"{urlsplit(url).hostname}: {why}" for url, why in failures.items())
    raise DataNotFound(
        f"{path.name} could not be downloaded ({reasons})\n"
        f"  try again later (it goes on where it stopped), or put {urls[-1]} into {path.parent}"
    )


def _unwritable(path: Path, error: OSError) -> DataNotFound:
    return DataNotFound(
        f"{path}: cannot be written ({error.strerror})\n"
        "  choose a folder that can be, with GPUCNN_DATA or --data"
    )


def _transfer(url: str, part: Path, minimum_speed: float, quiet: bool) -> None:
    """Append to `part` what `url` still has of it; OSError if it stalls, breaks off or is slow."""
    import urllib.error
    import urllib.request

    have = part.stat().st_size
    headers = {"User-Agent": "gpucnn", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT
        )
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        error.close()  # nothing lies beyond what we have: the hash decides whether that is right
        return
    with response:
        resumed = str(response.headers.get("Content-Range", "")).startswith(f"bytes {have}-")
        if response.status != 206 or not resumed:
            have = 0  # the server sends the whole file
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        bar = tqdm(
            desc=part.stem,
            initial=have,
            total=total,
            unit="B",
            unit_scale=True,
            disable=quiet,
            leave=False,
        )
        with part.open("r+b") as file, bar:
            file.truncate(have)
            file.seek(have)
            _copy(response, file, bar, minimum_speed)
            if total is not None and file.tell() < total:
                raise ConnectionAbortedError(f"broke off at {file.tell()} of {total} bytes")


def _copy(response: Any, file: Any, bar: Any, minimum_speed: float) -> None:
    start, received = time.monotonic(), 0
    while chunk := response.read1(_CHUNK):
        file.write(chunk)
        bar.update(len(chunk))
        received += len(chunk)
        elapsed = time.monotonic() - start
        if elapsed > SPEED_WINDOW and received < minimum_speed * elapsed:
            raise ConnectionAbortedError(f"only {received / elapsed / 1e3:.0f} kB/s")
