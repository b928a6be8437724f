"""One part of a check, in a process of its own that says what it finds as it goes.

    python -m gpucnn.commands.check.part MODULE TASK     TASK is a JSON object: the fields of Task

Each line on standard output is one event, a JSON object with one key:

    {"begin": CASE}         what is being looked at: named if the process crashes or hangs there
    {"finding": {...}}      state, what, found, remedy
    {"row": {...}}          table, cells: one row of a table, by column
    {"headline": TEXT}      for the summary
    {"fact": [NAME, VALUE]} for the parts after this one
    {"excuse": TEXT}        the case at work may be ended at the part's limit: no fault of gpucnn's
    {"unusable": REASON}    the parts after this one cannot run

What a part prints otherwise, and what its kernels print, goes to standard error.
"""

import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TextIO

from gpucnn.device import Device
from gpucnn.errors import GpucnnError

LOST = 3  # exit status: a fault has made the device useless for this process
_LINES = 12  # of a traceback


@dataclass(frozen=True)
class Task:
    """What a part is told."""

    device: str
    quick: bool
    model: str
    seconds: float  # until it is ended
    skip: list[str] = field(default_factory=list)  # cases that an earlier try has been through
    facts: dict[str, Any] = field(default_factory=dict)  # of the parts before


class Out:
    """Where a part says what it finds."""

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

    def left(self) -> float:
        """Seconds until the part is ended."""
        return self._end - time.monotonic()

    def seconds(self, operations: float) -> float:
        """What so many floating-point operations take at least, by the card's own product; 0 if
        that was not measured.  A device that is a simulator in disguise takes minutes for a step.
        """
        return float(operations / self.task.facts.get("fp32", float("inf")))

    def ok(self, what: str, found: str = "") -> None:
        self._finding("ok", what, found, "")

    def note(self, what: str, found: str, remedy: str = "") -> None:
        """Something to know that is no fault."""
        self._finding("note", what, found, remedy)

    def skip(self, what: str, reason: str, remedy: str = "") -> None:
        self._finding("skip", what, reason, remedy)

    def fail(self, what: str, found: str, remedy: str = "") -> None:
        self._finding("fail", what, found, remedy)

    def row(self, table: str, cells: dict[str, Any]) -> None:
        """One row of the table of that title.  Numbers stay numbers in report.json."""
        self._say("row", {"table": table, "cells": cells})

    def headline(self, text: str) -> None:
        """A few words for the summary."""
        self._say("headline", text)

    def fact(self, name: str, value: Any) -> None:
        self._say("fact", [name, value])

    def excuse(self, text: str) -> None:
        """If the part is ended in this case, that is a note with this text."""
        self._say("excuse", text)

    def unusable(self, reason: str) -> None:
        self._say("unusable", reason)

    def run(self, case: str, look: Callable[..., object], *args: Any) -> None:
        """look(*args): what it raises is a finding, and the part goes on.

        A fault that the device does not recover from ends the process; the parent starts another,
        which skips the cases up to this one.
        """
        if case in self.task.skip:
            return
        self._say("begin", case)
        try:
            look(*args)
        except GpucnnError as error:
            found, _, remedy = str(error).partition("\n  ")
            self.fail(case, found, remedy.strip())
            self._leave_if_lost()
        except Exception:
            lines = traceback.format_exc().strip().splitlines()
            self.fail(case, lines[-1], "\n".join(lines[-_LINES:-1]))
            self._leave_if_lost()

    def _leave_if_lost(self) -> None:
        cupy = sys.modules.get("cupy")
        if cupy is None or self.simulated:
            return
        try:
            cupy.cuda.runtime.deviceSynchronize()
        except Exception:
            self._stream.flush()
            os._exit(LOST)  # CuPy's destructors would only report the same fault again

    def _finding(self, state: str, what: str, found: str, remedy: str) -> None:
        self._say("finding", {"state": state, "what": what, "found": found, "remedy": remedy})

    def _say(self, kind: str, value: Any) -> None:
        self._stream.write(json.dumps({kind: value}, default=str) + "\n")
        self._stream.flush()


def main() -> None:
    module, task = sys.argv[1], Task(**json.loads(sys.argv[2]))
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # prints of Python, and of kernels, are no events
    end_with_the_parent()
    importlib.import_module(module).examine(Out(task, stream))
    stream.flush()


def end_with_the_parent() -> None:
    """From now on this process and its group end when the parent does, however it ends.

    The parent holds the other end of standard input, which closes then.
    """
    threading.Thread(target=_wait_for_the_end, daemon=True).start()


def _wait_for_the_end() -> None:
    os.read(0, 1)
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    main()
