"""Seeds faults into kernels, and notes which check detects each.

A check is a name, which says what it compares, and a function that raises AssertionError; the
simulator's errors are detections too.
"""

import re
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from gpucnn import cuda
from gpucnn.cuda import compiler, launcher
from gpucnn.cuda.counters import forget_counters
from gpucnn.errors import KernelError

Check = tuple[str, Callable[[], object]]

HIGHEST = "fast,schedule=highest"


@dataclass(frozen=True)
class Fault:
    what: str
    file: str
    right: str  # text of the file ...
    wrong: str  # ... and its replacement
    mode: str = "fast"  # the GPUCNN_CUDASIM that detects it


@dataclass
class Table:
    """The faults that this run seeded, each with what detected it: "" if nothing did."""

    rows: list[tuple[Fault, str]] = field(default_factory=list)

    def detect(self, fault: Fault, checks: Iterable[Check]) -> None:
        """Run `checks` on the kernel with the fault; AssertionError if none of them fails.

        Checks that launch no kernel with the fault are left out, and those after the first that
        fails.  A fault that does not compile is not detected.
        """
        detected = ""
        try:
            with seeded(fault) as files:
                detected = first_failure(checks, files)
        finally:
            self.rows.append((fault, detected))
        assert detected, f"{fault.file}, {fault.what}: no check detects it"

    def text(self) -> str:
        lines = [("kernel file", "fault", "mode", "detected by")]
        for fault, detected in sorted(self.rows, key=lambda row: row[0].file):
            mode = fault.mode.replace("fast,", "")
            lines.append((fault.file, fault.what, mode, detected or "NOT DETECTED"))
        widths = [max(len(line[i]) for line in lines) for i in range(3)]
        rows = ["  ".join([*map(str.ljust, line, widths), line[3]]) for line in lines]
        caught = sum(bool(detected) for _, detected in self.rows)
        return "\n".join([*rows, f"{caught} of {len(self.rows)} seeded faults detected"])


TABLE = Table()  # printed at the end of the run by conftest.py


@contextmanager
def seeded(fault: Fault) -> Iterator[set[str]]:
    """Compile kernels with the fault in the block; the .cu files whose text it changes."""
    assemble = cuda.assemble

    def assemble_with_fault(file: str, *rest: Any) -> str:
        text = assemble(file, *rest)
        return text.replace(fault.right, fault.wrong) if file in files else text

    possible = {kernel.file for kernel in cuda.kernels().values()}
    if not fault.file.endswith(".cuh"):
        possible &= {fault.file}
    files = {file for file in possible if fault.right in assemble(file)}
    assert files, f"{fault.file} has changed: update the text that the fault replaces"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "assemble", assemble_with_fault)
        patch.setenv("GPUCNN_CUDASIM", fault.mode)
        forget()
        try:
            yield files
        finally:
            forget()


def forget() -> None:
    """Drop modules compiled from another source, and counters that a fault left above zero."""
    compiler.load_module.cache_clear()
    launcher.checked_kernel.cache_clear()
    forget_counters()


def first_failure(checks: Iterable[Check], files: set[str]) -> str:
    """What the first check fails with that launches a kernel of `files`; "" if all pass."""
    for name, run in checks:
        if not files & launched_files(name, run):
            continue
        try:
            run()
        except AssertionError:
            return f"values: {name}"
        except KernelError as error:
            if "cannot compile" in str(error):
                raise
            said = re.sub(r".*?: block \(.*?\), thread \(.*?\) ", "", str(error), count=1)
            return f"simulator: {textwrap.shorten(said, 90, placeholder=' ...')}"
    return ""


def launched_files(name: str, run: Callable[[], object]) -> set[str]:
    """The .cu files of the kernels that a check launches; found out once, without running them."""
    if name not in _launched:
        with warnings.catch_warnings(), suppress(AssertionError):  # the results are undefined
            warnings.simplefilter("ignore")
            with cuda.record_launches(run=False) as launches:
                run()
        _launched[name] = {launch.kernel.file for launch in launches}
    return _launched[name]


_launched: dict[str, set[str]] = {}  # by the check's name
