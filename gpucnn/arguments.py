"""Shared by command lines: checked numbers, the output folder, the exit status."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from gpucnn.errors import ArgumentError, GpucnnError


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


def non_negative_float(text: str) -> float:
    """An argparse type: a finite number of at least 0."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected 0 or more, got {text}")
    return value


def output_folder(path: str | Path) -> Path:
    """Create the --out folder and its parents if missing; ArgumentError if that fails."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"--out: {folder} cannot be created ({error.strerror})") from error
    return folder


def exit_status(run: Callable[[], object]) -> int:
    """Call `run`; return 0, or 2 after printing a GpucnnError, or 130 after Ctrl-C."""
    try:
        run()
    except GpucnnError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0
