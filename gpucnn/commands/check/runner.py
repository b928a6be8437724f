"""Run the parts of a check, each in its own process, and write their findings as they arrive.

If a process crashes or hangs, another continues after the case at fault.  At its time limit a part
is killed, with every process that it started.
"""

import contextlib
import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpucnn.commands.check.part import LOST, Task
from gpucnn.commands.check.report import PartReport, Report

ROOT = Path(__file__).parents[3]  # the root of the checkout, or site-packages
CHECKOUT = (ROOT / "pyproject.toml").is_file()
_LOG_LINES = 40  # lines to report of a crashed part's standard error
_MIN_RESTART = 2.0  # seconds; with less time left, a part is not restarted


@dataclass(frozen=True)
class Part:
    """A part of a check and its time limits, in seconds."""

    name: str
    title: str
    seconds: float
    quick: float  # limit with --quick
    case: float = 1.0  # the share of the limit after which one case counts as hanging
    module: str = ""  # the module with `examine`; default: gpucnn.commands.check.NAME
    patience: float = 1.0  # it is killed after so many times the limit, for which it plans


def run(
    device: str,
    quick: bool,
    model: str,
    folder: Path,
    parts: Sequence[Part],
    limit: float | None = None,
) -> int:
    """Run the parts and write the report to `folder`.

    limit, in seconds, caps the time limit of each part.  Returns the exit status: 0, 1 if a part
    failed, 130 if interrupted.
    """
    report = Report(folder, device, quick, model)
    report.keep_previous()
    for part in parts:
        seconds = (part.quick if quick else part.seconds) * part.patience
        seconds = min(seconds, limit) if limit else seconds
        report.parts.append(PartReport(part.name, part.title, seconds))
    status = 0
    try:
        for part, part_report in zip(parts, report.parts, strict=True):
            if report.unusable:
                part_report.add("skip", "not run", report.unusable)
            else:
                _PartRunner(part, part_report, report).run()
            part_report.done = True
            report.write()
            print(part_report.line(), flush=True)
    except KeyboardInterrupt:
        report.stopped = True
        status = 130
    report.finished = True
    report.write()
    print("", *report.summary(), sep="\n")
    print(f"\n{folder / 'report.md'}")
    return status or int(any(part.state == "fail" for part in report.parts))


class _PartRunner:
    """Runs one part, in as many processes as crashes and hangs require."""

    def __init__(self, part: Part, part_report: PartReport, report: Report) -> None:
        self.part, self.part_report, self.report = part, part_report, report
        self.begun: list[str] = []  # the cases begun so far
        self.excuse = ""  # of the last one
        self.start = time.monotonic()

    def run(self) -> None:
        while self._run_process():
            pass
        self.part_report.seconds = time.monotonic() - self.start
        if not self.part_report.findings and not self.part_report.tables:
            self.part_report.add("fail", "the part", "reported nothing")

    def _seconds_left(self) -> float:
        return self.start + self.part_report.limit - time.monotonic()

    def _run_process(self) -> bool:
        """Run one process to its end; True if another must continue after it."""
        task = Task(
            self.report.device,
            self.report.quick,
            self.report.model,
            self._seconds_left() / self.part.patience,
            self.begun,
            self.report.facts,
        )
        begun_before = len(self.begun)
        with tempfile.TemporaryFile() as log:
            child = _Child(self.part.module or f"gpucnn.commands.check.{self.part.name}", task, log)
            try:
                reason = self._listen(child)
            finally:
                child.kill()
            status = child.process.returncode
            if not reason and status not in (0, LOST):
                reason = f"its process ended with {_status_name(status)}"
            progressed = len(self.begun) > begun_before
            if reason:
                log.seek(0)
                lines = log.read().decode(errors="replace").splitlines()[-_LOG_LINES:]
                case = self.begun[-1] if progressed else "startup"
                if self.excuse and self._seconds_left() <= 0:
                    self.part_report.add("note", case, f"{reason}: {self.excuse}")
                else:
                    self.part_report.add("fail", case, reason, "\n".join(lines))
                self.report.write()
        unfinished = bool(reason) or status == LOST
        return unfinished and progressed and self._seconds_left() > _MIN_RESTART

    def _listen(self, child: "_Child") -> str:
        """Handle the child's events to the last; return "", or why the child must be killed."""
        case_limit = self.part_report.limit * self.part.case
        case_end = time.monotonic() + case_limit
        while True:
            now = time.monotonic()
            try:
                event = child.events.get(timeout=max(min(self._seconds_left(), case_end - now), 0))
            except queue.Empty:
                if self._seconds_left() <= 0:
                    return f"killed at the part's limit of {self.part_report.limit:.0f} s"
                return f"hangs: killed after {case_limit:.0f} s"
            while event is not None:
                if "begin" in event:
                    self.begun.append(event["begin"])
                    self.excuse = ""
                    case_end = time.monotonic() + case_limit
                self.excuse = event.get("excuse", self.excuse)
                self.report.handle(self.part_report, event)
                try:
                    event = child.events.get_nowait()
                except queue.Empty:
                    break
            else:
                return child.wait(self._seconds_left())
            self.part_report.seconds = time.monotonic() - self.start
            self.report.write()


class _Child:
    """The process of a part, and a queue of its events; None marks the end."""

    def __init__(self, module: str, task: Task, log: Any) -> None:
        self.events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "gpucnn.commands.check.child", module, _json(task)],
            stdin=subprocess.PIPE,  # closes when this process ends: end_with_parent in child.py
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment(),
            start_new_session=True,  # a process group, so that its children can be killed too
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                event = json.loads(line)
            except ValueError:  # a partial line: the process was killed
                continue
            self.events.put(event)
        self.events.put(None)

    def wait(self, seconds: float) -> str:
        """Wait for the process to end after its last event; return "", or why to kill it."""
        try:
            self.process.wait(max(seconds, 0))
        except subprocess.TimeoutExpired:
            return "its process finished its work but did not exit"
        return ""

    def kill(self) -> None:
        """Kill the process and everything that it started; do nothing if it has ended."""
        kill_group(self.process)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def kill_group(process: subprocess.Popen[Any]) -> None:
    """Kill a process that leads a process group, and the group."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def environment(**variables: str) -> dict[str, str]:
    """The environment for a child process that imports this gpucnn, whatever its directory."""
    env = {**os.environ, **variables}
    if CHECKOUT:
        paths = env.get("PYTHONPATH")
        env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([paths] if paths else [])])
    return env


def _json(task: Task) -> str:
    return json.dumps(dataclasses.asdict(task))


def _status_name(status: int) -> str:
    """An exit status in words: "exit status 3" or "SIGSEGV"."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
