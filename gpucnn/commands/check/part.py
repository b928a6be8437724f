"""The input of a part of a check, and the events that report its findings.

Each event is one line on the standard output of the part's process (child.py): a JSON object with
one key.

    {"begin": CASE}         the case that starts; reported if the process crashes or hangs in it
    {"finding": {...}}      state, what, found, remedy
    {"row": {...}}          table, cells: one row of a table, by column
    {"headline": TEXT}      for the summary
    {"fact": [NAME, VALUE]} for the parts that follow
    {"excuse": TEXT}        reaching the part's time limit in this case is not a failure
    {"unusable": REASON}    the parts that follow cannot run
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TextIO

from gpucnn.device import Device
from gpucnn.errors import GpucnnError

LOST = 3  # exit status: after a fault, this process can no longer use the device
_TRACEBACK_LINES = 12


@dataclass(frozen=True)
class Task:
    """The input of a part."""

    device: str
    quick: bool
    model: str
    seconds: float  # the time limit
    skip: list[str] = field(default_factory=list)  # cases that an earlier process began
    facts: dict[str, Any] = field(default_factory=dict)  # from earlier parts


class Reporter:
    """Reports the findings of a part; has its task and the time left."""

    def __init__(self, task: Task, stream: TextIO) -> None:
        self.task = task
        self._stream = stream
        self._end = time.monotonic() + task.seconds

    @property
    def device(self) -> Device:
        return Device.parse(self.task.device)

    @property
    def simulated(self) -> bool:
        return self.task.device == "cudasim"

    def seconds_left(self) -> float:
        """Seconds until the time limit of the part."""
        return self._end - time.monotonic()

    def estimated_seconds(self, operations: float) -> float:
        """A lower bound on the time of `operations` float32 operations, in seconds.

        It follows from the matrix product that part `machine` measured; 0 if it measured none.
        Cases skip what would not fit: if CuPy's GPU is simulated, a step takes minutes.
        """
        return float(operations / self.task.facts.get("fp32", float("inf")))

    def ok(self, what: str, found: str = "") -> None:
        self._finding("ok", what, found, "")

    def note(self, what: str, found: str, remedy: str = "") -> None:
        """Report something worth knowing that is not a fault."""
        self._finding("note", what, found, remedy)

    def skip(self, what: str, reason: str, remedy: str = "") -> None:
        self._finding("skip", what, reason, remedy)

    def fail(self, what: str, found: str, remedy: str = "") -> None:
        self._finding("fail", what, found, remedy)

    def row(self, table: str, cells: dict[str, Any]) -> None:
        """Add a row to the table with this title.  Numbers stay numbers in report.json."""
        self._emit("row", {"table": table, "cells": cells})

    def headline(self, text: str) -> None:
        """Add a few words to the summary."""
        self._emit("headline", text)

    def fact(self, name: str, value: Any) -> None:
        """Pass a value to the parts that follow, in Task.facts."""
        self._emit("fact", [name, value])

    def excuse(self, text: str) -> None:
        """Reaching the time limit in the current case becomes a note with this text."""
        self._emit("excuse", text)

    def unusable(self, reason: str) -> None:
        """Skip the parts that follow."""
        self._emit("unusable", reason)

    def run(self, case: str, examine: Callable[..., object], *args: Any) -> None:
        """Call examine(*args); an exception becomes a finding, and the part continues.

        If the device does not recover from the fault, the process exits, and the parent starts
        another, which skips the cases up to this one.
        """
        if case in self.task.skip:
            return
        self._emit("begin", case)
        try:
            examine(*args)
        except GpucnnError as error:
            found, _, remedy = str(error).partition("\n  ")
            self.fail(case, found, remedy.strip())
            self._leave_if_lost()
        except Exception:
            lines = traceback.format_exc().strip().splitlines()
            self.fail(case, lines[-1], "\n".join(lines[-_TRACEBACK_LINES:-1]))
            self._leave_if_lost()

    def _leave_if_lost(self) -> None:
        cupy = sys.modules.get("cupy")
        if cupy is None or self.simulated:
            return
        try:
            cupy.cuda.runtime.deviceSynchronize()
        except Exception:
            self._stream.flush()
            os._exit(LOST)  # without CuPy's destructors, which would only report the fault again

    def _finding(self, state: str, what: str, found: str, remedy: str) -> None:
        self._emit("finding", {"state": state, "what": what, "found": found, "remedy": remedy})

    def _emit(self, kind: str, value: Any) -> None:
        self._stream.write(json.dumps({kind: value}, default=str) + "\n")
        self._stream.flush()
