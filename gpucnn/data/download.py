"""Download a file from the first mirror that serves it, and resume interrupted transfers.

Uses the standard library: downloads must work after a plain `pip install`, and common downloaders
verify a hash but restart an interrupted transfer from zero.  urllib is imported on first use:
it would take a tenth of the time of `import gpucnn`, and few runs download.
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

TIMEOUT = 6.0  # seconds without a response or a byte
PATIENCE = 15.0  # seconds without a response from any mirror
MINIMUM_SPEED = 250e3  # bytes per second; slower mirrors are tried last
SPEED_WINDOW = 10.0  # seconds before the speed is checked
_CHUNK = 1 << 18
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no other mirror helps


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


def fetch(urls: Sequence[str], path: Path, sha256: str, quiet: bool = False) -> Path:
    """Download the file with hash `sha256` to `path`; returns `path`.

    The mirrors in `urls` serve the same bytes and are tried in order: in the first round only fast
    ones are accepted, in the second any that works.  Partial data is kept in `path`.part, and later
    calls resume it; `path` itself is created only when complete and verified.  Shows a progress
    bar on stderr unless quiet.

    Raises DataNotFound if the folder is not writable or full, or if no mirror served the file; its
    text gives the reason for each mirror.  Without a network this takes at most PATIENCE + TIMEOUT
    seconds.
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
    rejected = set()
    last_response = time.monotonic()
    for attempt, url in enumerate([*urls, *urls]):
        if time.monotonic() - last_response > PATIENCE:
            break
        if url in rejected:
            continue
        size = part.stat().st_size
        try:
            _transfer(url, part, MINIMUM_SPEED if attempt < len(urls) - 1 else 0.0, quiet)
            if sha256_of(part) == sha256:
                os.replace(part, path)
                return path
            part.write_bytes(b"")
            failures[url] = "wrong SHA-256"
            if size == 0:  # all bytes are from this mirror; otherwise an earlier part may be wrong
                rejected.add(url)
        except urllib.error.HTTPError as error:
            failures[url] = f"HTTP {error.code} {error.reason}"
            rejected.add(url)
            error.close()
        except (OSError, HTTPException, ValueError) as error:
            if isinstance(error, OSError) and error.errno in _FULL:
                raise _unwritable(path, error) from error
            failures[url] = str(getattr(error, "reason", error)) or type(error).__name__
        if part.stat().st_size != size or url in rejected:
            last_response = time.monotonic()
    if part.stat().st_size == 0:
        part.unlink()
    reasons = "; ".join(f"{urlsplit(url).hostname}: {why}" for url, why in failures.items())
    raise DataNotFound(
        f"{path.name} could not be downloaded ({reasons})\n"
        f"  try again later (the download resumes), or save {urls[-1]} in {path.parent}"
    )


def _unwritable(path: Path, error: OSError) -> DataNotFound:
    return DataNotFound(
        f"{path}: cannot be written ({error.strerror})\n"
        "  choose a writable folder with GPUCNN_DATA or --data"
    )


def _transfer(url: str, part: Path, minimum_speed: float, quiet: bool) -> None:
    """Append the rest of `url` to `part`; OSError if the transfer stalls, breaks off or is slow."""
    import urllib.error
    import urllib.request

    offset = part.stat().st_size
    headers = {"User-Agent": "gpucnn", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT
        )
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        error.close()  # no bytes after the offset: `part` is complete or wrong; the hash decides
        return
    with response:
        resumed = str(response.headers.get("Content-Range", "")).startswith(f"bytes {offset}-")
        if response.status != 206 or not resumed:
            offset = 0  # the server sends the whole file
        length = response.headers.get("Content-Length")
        total = offset + int(length) if length is not None else None
        bar = tqdm(
            desc=part.stem,
            initial=offset,
            total=total,
            unit="B",
            unit_scale=True,
            disable=quiet,
            leave=False,
        )
        with part.open("r+b") as file, bar:
            file.truncate(offset)
            file.seek(offset)
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
