"""What command lines share: numbers that are checked, a folder, an exit status."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from gpucnn.errors import ArgumentError, GpucnnError


def positive_int(text: str) -> int:
    """For argparse: an int of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {value}")
    return value


def non_negative_int(text: str) -> int:
    """For argparse: an int of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected 0 or more, got {value}")
    return value


def non_negative_float(text: str) -> float:
    """For argparse: a finite number of at least 0."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected 0 or more, got {text}")
    return value


def output_folder(path: str | Path) -> Path:
    """The folder that --out names, made if need be.  Raises ArgumentError if it cannot be."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"--out: {folder} cannot be made ({error.strerror})") from error
    return folder


def exit_status(run: Callable[[], object]) -> int:
    """Run a program: 0 done, 2 a mistake in what was asked (its text is printed), 130 stopped."""
    try:
        run()
    except GpucnnError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0
