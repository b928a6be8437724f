"""Runs the parts: a process for each, ended at its limit, its findings written as they come."""

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

ROOT = Path(__file__).parents[2]  # of a checkout, or site-packages
CHECKOUT = (ROOT / "pyproject.toml").is_file()
_LOG = 40  # lines of a crashed part's standard error
_WORTH = 2.0  # seconds: with less left, a part is not started again


@dataclass(frozen=True)
class Part:
    """What a part is called, and the seconds that it has."""

    name: str
    title: str
    seconds: float
    quick: float  # seconds with --quick
    case: float = 1.0  # share of these that one case may take before it counts as hanging
    module: str = ""  # whose function `examine` it is; gpucnn.commands.check.NAME if none is given


PARTS = (
    Part("machine", "Versions, driver, card and its ceilings", 30, 25),
    Part("agreement", "Every kernel beside NumPy", 85, 60, 0.5),
    Part("compiled", "Compile times, registers and local memory", 50, 25),
    Part("suite", "The tests for GPUs", 120, 30),
    Part("sanitizer", "compute-sanitizer", 60, 20),
    Part("step", "The training step", 75, 30),
    Part("peer", "PyTorch beside it", 75, 25),
    Part("profiles", "Each kernel of a step", 50, 20),
    Part("probes", "DLPack, memory, streams, graphs, peers", 25, 15, 0.5),
)


def run(
    device: str,
    quick: bool,
    model: str,
    folder: Path,
    chosen: Sequence[Part] = PARTS,
    limit: float | None = None,
) -> int:
    """Run these parts and write the report; exit status 0, 1 if a part failed, 130 if stopped.

    limit is the most seconds that a part may take.
    """
    report = Report(folder, device, quick, model)
    report.keep_the_one_before()
    for part in chosen:
        seconds = part.quick if quick else part.seconds
        seconds = min(seconds, limit) if limit else seconds
        report.parts.append(PartReport(part.name, part.title, seconds))
    status = 0
    try:
        for part, found in zip(chosen, report.parts, strict=True):
            if report.unusable:
                found.add("skip", "not run", report.unusable)
            else:
                _Runner(part, found, report).run()
            found.done = True
            report.write()
            print(found.line(), flush=True)
    except KeyboardInterrupt:
        report.stopped = True
        status = 130
    report.finished = True
    report.write()
    print("", *report.summary(), sep="\n")
    print(f"\n{folder / 'report.md'}")
    return status or int(any(part.state == "fail" for part in report.parts))


class _Runner:
    """One part: as many processes as crashes and hangs make necessary."""

    def __init__(self, part: Part, found: PartReport, report: Report) -> None:
        self.part, self.found, self.report = part, found, report
        self.seen: list[str] = []  # cases that were begun
        self.excuse = ""  # of the last of them
        self.start = time.monotonic()

    def run(self) -> None:
        while self._once():
            pass
        self.found.seconds = time.monotonic() - self.start
        if not self.found.findings and not self.found.tables:
            self.found.add("fail", "the part", "said nothing")

    def _left(self) -> float:
        return self.start + self.found.limit - time.monotonic()

    def _once(self) -> bool:
        """Run a process to its end; whether another has to go on after it."""
        task = Task(
            self.report.device,
            self.report.quick,
            self.report.model,
            self._left(),
            self.seen,
            self.report.facts,
        )
        begun = len(self.seen)
        with tempfile.TemporaryFile() as log:
            child = _Child(self.part.module or f"gpucnn.commands.check.{self.part.name}", task, log)
            try:
                reason = self._listen(child)
            finally:
                child.end()
            status = child.process.returncode
            if not reason and status not in (0, LOST):
                reason = f"its process ended with {_name(status)}"
            if reason:
                log.seek(0)
                lines = log.read().decode(errors="replace").splitlines()[-_LOG:]
                where = self.seen[-1] if len(self.seen) > begun else "its start"
                if self.excuse and self._left() <= 0:
                    self.found.add("note", where, f"{reason}: {self.excuse}")
                else:
                    self.found.add("fail", where, reason, "\n".join(lines))
                self.report.write()
        going_on = bool(reason) or status == LOST
        return going_on and len(self.seen) > begun and self._left() > _WORTH

    def _listen(self, child: "_Child") -> str:
        """Take what the child says until it is done: ""; or why it has to be ended."""
        case_limit = self.found.limit * self.part.case
        case_end = time.monotonic() + case_limit
        while True:
            now = time.monotonic()
            try:
                event = child.events.get(timeout=max(min(self._left(), case_end - now), 0))
            except queue.Empty:
                if self._left() <= 0:
                    return f"ended at the part's limit of {self.found.limit:.0f} s"
                return f"hangs: ended after {case_limit:.0f} s"
            while event is not None:
                if "begin" in event:
                    self.seen.append(event["begin"])
                    self.excuse = ""
                    case_end = time.monotonic() + case_limit
                self.excuse = event.get("excuse", self.excuse)
                self.report.take(self.found, event)
                try:
                    event = child.events.get_nowait()
                except queue.Empty:
                    break
            else:
                return child.wait(self._left())
            self.found.seconds = time.monotonic() - self.start
            self.report.write()


class _Child:
    """A part's process, and a queue of what it says; None at the end."""

    def __init__(self, module: str, task: Task, log: Any) -> None:
        self.events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "gpucnn.commands.check.part", module, _json(task)],
            stdin=subprocess.PIPE,  # held open: it closes when this process ends, however it ends
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment(),
            start_new_session=True,  # a group of its own, to be ended with all that it started
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                event = json.loads(line)
            except ValueError:  # half a line of a process that was killed
                continue
            self.events.put(event)
        self.events.put(None)

    def wait(self, seconds: float) -> str:
        """Wait for a process that has said all: "" when it has ended, or why it has to be."""
        try:
            self.process.wait(max(seconds, 0))
        except subprocess.TimeoutExpired:
            return "its process was done, and did not end"
        return ""

    def end(self) -> None:
        """End it with everything that it started; nothing happens if it has ended."""
        end_group(self.process)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def end_group(process: subprocess.Popen[Any]) -> None:
    """End a process that leads a group, and the group."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def environment(**more: str) -> dict[str, str]:
    """A child's environment, in which it imports this gpucnn."""
    env = {**os.environ, **more}
    if CHECKOUT:  # wherever the working directory is
        before = env.get("PYTHONPATH")
        env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([before] if before else [])])
    return env


def _json(task: Task) -> str:
    return json.dumps(dataclasses.asdict(task))


def _name(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
