"""Readers with faults, one each: a run over these TARGETS must report every one of them."""

import ctypes
import os
import pickle
import tempfile
import time
from pathlib import Path

import numpy as np

from fuzzing.cases import Target
from fuzzing.mutators import anywhere
from gpucnn.errors import DataError


def _raises(path: Path) -> None:
    raise KeyError("labels")


def _leaves_a_file(path: Path) -> None:
    path.with_suffix(".part").touch()
    raise DataError("damaged")


def _writes_elsewhere(path: Path) -> None:
    (Path(tempfile.gettempdir()) / "written by a faulty reader").touch()


def _writes_above(path: Path) -> None:
    (path.parent / ".." / "written by a faulty reader").touch()


def _starts_a_program(path: Path) -> None:
    try:
        os.system("true")
    except BaseException as error:
        raise DataError("damaged") from error


def _imports_a_name(path: Path) -> None:
    pickle.loads(b"cos\nsystem\n.")


def _hides_an_allocation(path: Path) -> None:
    try:
        np.empty(3 << 30, np.uint8)
    except MemoryError as error:
        raise DataError("damaged") from error


def _hangs(path: Path) -> None:
    time.sleep(60)


def _says_nothing(path: Path) -> None:
    raise DataError


class _Pages(DataError):
    def __str__(self) -> str:
        return "damaged " * 10_000


def _says_too_much(path: Path) -> None:
    raise _Pages


def _crashes(path: Path) -> None:
    ctypes.string_at(0)


FAULTS = {
    "an exception": (_raises, "raised KeyError"),
    "a file left behind": (_leaves_a_file, "left files behind: file.part"),
    "a file elsewhere": (_writes_elsewhere, "may: open"),
    "a file above the folder": (_writes_above, "may: open"),
    "a program started": (_starts_a_program, "may: os.system"),
    "a name imported": (_imports_a_name, "may: pickle.find_class"),
    "an allocation": (_hides_an_allocation, "allocated more than 1 GiB"),
    "a hang": (_hangs, "not finished after"),
    "a message without words": (_says_nothing, "without a message"),
    "a message of many pages": (_says_too_much, "80000 characters"),
    "a crash": (_crashes, "ended the process with status -11"),
}
TARGETS = [
    Target(name, "a fault", "file", lambda: [b"content"], (anywhere,), read)
    for name, (read, _) in FAULTS.items()
]
