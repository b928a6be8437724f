"""Shared by command lines: checked values, the output folder, printable text, the exit status."""

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gpucnn.errors import ArgumentError, GpucnnError, OutputError
from gpucnn.random import MAX_SEED

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_BYTES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def positive_int(text: str) -> int:
    """An argparse type: an int of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {value}")
    return value


def non_negative_int(text: str) -> int:
    """An argparse type: an int of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected 0 or more, got {value}")
    return value


def seed(text: str) -> int:
    """An argparse type: an int from 0 to MAX_SEED."""
    value = non_negative_int(text)
    if value > MAX_SEED:
        raise argparse.ArgumentTypeError(f"expected at most {MAX_SEED}, got {value}")
    return value


def non_negative_float(text: str) -> float:
    """An argparse type: a finite number of at least 0."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected 0 or more, got {text}")
    return value


def duration(text: str) -> float:
    """An argparse type: seconds, from minutes ("10", "0.5") or a number with s, m, h or d."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)([smhd]?)", text.strip().lower())
    if match is None:
        raise argparse.ArgumentTypeError(
            f"expected minutes, or a time such as 90s, 10m or 2h, got {text!r}"
        )
    return float(match[1]) * _SECONDS[match[2] or "m"]


def size(text: str) -> int:
    """An argparse type: bytes, from a number with K, M, G or T (powers of 1024), as in "1.5G"."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)([KMGT]?)(?:I?B)?", text.strip().upper())
    if match is None or not (value := int(float(match[1]) * _BYTES[match[2]])):
        raise argparse.ArgumentTypeError(f"expected a size such as 800M or 2G, got {text!r}")
    return value


def output_folder(path: str | Path) -> Path:
    """Create the --out folder and its parents if missing; ArgumentError if that fails."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"--out: {folder} cannot be created ({error.strerror})") from error
    return folder


def printable(text: str) -> str:
    """`text` with control characters, other than tabs and line breaks, as escapes: "\\x1b".

    Names from files, such as class names, could otherwise send commands to the terminal.
    """
    return "".join(c if c.isprintable() or c in "\t\n" else ascii(c)[1:-1] for c in text)


# name=True or name="text" in a sentence; runs/graph=True/ is the name of a folder
_ARGUMENT = re.compile(r"""(?<![\w/.-])([a-z_]+)=(?:(True|False)|"([\w-]+)"|'([\w-]+)')(?![\w/])""")
_flags: frozenset[str] = frozenset()


@contextmanager
def naming_flags(arguments: Iterable[str]) -> Iterator[None]:
    """In the block, `report` writes these Python arguments as flags of the command line.

    on_error="skip" becomes --on-error skip, graph=True --graph, and graph=False --no-graph.
    """
    global _flags
    before, _flags = _flags, frozenset(arguments)
    try:
        yield
    finally:
        _flags = before


def _as_flag(match: "re.Match[str]") -> str:
    name, flag = match[1], match[1].replace("_", "-")
    if name not in _flags:
        return match[0]
    if match[2]:
        return f"--{flag}" if match[2] == "True" else f"--no-{flag}"
    return f"--{flag} {match[3] or match[4]}"


def report(text: str) -> None:
    """Print `text`, escaped, to standard error; do nothing if that is closed or full."""
    if sys.stderr is not None:
        text = _ARGUMENT.sub(_as_flag, text)
        with suppress(OSError, ValueError):
            print(printable(text), file=sys.stderr, flush=True)


class Stopped(KeyboardInterrupt):
    """Raised to end a command line that was told to stop; `status` is its exit status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def exit_status(
    run: Callable[[], object],
    output_required: bool = False,
    tell: Callable[[str], None] = report,
) -> int:
    """Call `run` and return the exit status.

    That is the int that `run` returns, or 0; 2 after a GpucnnError or MemoryError, which `tell`
    prints; the status of Stopped; 130 after Ctrl-C.

    Standard output and error may be closed or full: `run` can print as usual.  With
    output_required, printing to a full standard output raises OutputError, and to one whose
    reader has gone, as in `| head`, SystemExit(0).  Otherwise what cannot be printed is dropped,
    with one warning if the output is full.
    """
    with _standard_streams(_required if output_required else _dropped()):
        try:
            try:
                result = run()
            finally:
                sys.stdout.flush()
        except GpucnnError as error:
            tell(f"error: {error}")
            return 2
        except MemoryError as error:  # outside of ops, which raise OutOfMemory
            tell(
                f"error: out of memory ({str(error) or 'no details'})\n"
                "  use a smaller model, batch or data set, or end other programs"
            )
            return 2
        except KeyboardInterrupt as stop:
            return stop.status if isinstance(stop, Stopped) else 128 + signal.SIGINT
        return result if isinstance(result, int) else 0


# --- standard output and error ---


class Lenient:
    """A text stream; an error when writing to it goes to `failed` instead of the caller.

    Text that the stream's encoding lacks is written as escapes.
    """

    def __init__(self, stream: Any, failed: Callable[[Exception], None] | None = None) -> None:
        self._stream = stream
        self._failed = failed or (lambda error: None)
        self._error: Exception | None = None  # the first

    def write(self, text: str) -> int:
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError as error:
                name = error.encoding
                self._stream.write(text.encode(name, "backslashreplace").decode(name))
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            self._error = self._error or error
            self._failed(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._error = self._error or error
        if self._error is not None:  # also if a caller has suppressed it, as argparse does
            self._failed(self._error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _standard_streams(failed: Callable[[Exception], None]) -> Iterator[None]:
    """Make standard output and error safe to print to; `failed` gets the errors of the output."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed: take its number before another file gets it
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", closefd=False))
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Lenient(before[0], failed), Lenient(before[1])
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in before:
            _settle(stream)


def _settle(stream: Any) -> None:
    """Flush `stream`; if that fails, discard its text, which Python would flush again at exit."""
    try:
        stream.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


def _required(error: Exception) -> None:
    if isinstance(error, BrokenPipeError):  # the reader, such as `head`, has read enough
        raise SystemExit(0) from None
    raise OutputError(
        f"{_reason(error)}\n  free some space there, or redirect it elsewhere"
    ) from error


def _dropped() -> Callable[[Exception], None]:
    """Warn of the first error, unless the reader has gone."""
    warned = False

    def failed(error: Exception) -> None:
        nonlocal warned
        if not warned and not isinstance(error, BrokenPipeError):
            warned = True
            report(f"warning: {_reason(error)}; continuing without it")

    return failed


def _reason(error: Exception) -> str:
    return f"standard output cannot be written ({getattr(error, 'strerror', None) or error})"
