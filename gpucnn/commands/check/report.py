"""The report of a check: the findings of each part, as report.md and report.json."""

import json
import os
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gpucnn

_MARKS = {"ok": "ok", "note": "note", "skip": "skipped", "fail": "FAILED"}
_MAX_FAILURES = 8  # listed in the summary


@dataclass
class PartReport:
    """The findings of one part so far."""

    name: str
    title: str
    limit: float  # seconds
    seconds: float = 0.0
    done: bool = False
    findings: list[dict[str, str]] = field(default_factory=list)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # rows by title
    headlines: list[str] = field(default_factory=list)
    case: str = ""  # the current one

    def add(self, state: str, what: str, found: str, remedy: str = "") -> None:
        self.findings.append({"state": state, "what": what, "found": found, "remedy": remedy})

    @property
    def state(self) -> str:
        """ok, skip (everything was skipped) or fail; "waiting" or "running" until it is done."""
        states = {finding["state"] for finding in self.findings}
        if "fail" in states:
            return "fail"
        if not self.done:
            return "running" if self.case or states or self.tables else "waiting"
        return "skip" if states == {"skip"} and not self.tables else "ok"

    def line(self) -> str:
        """One line for the summary."""
        mark = _MARKS.get(self.state, self.state)
        words = list(self.headlines)
        failed = sum(finding["state"] == "fail" for finding in self.findings)
        if failed:
            words.insert(0, f"{failed} failed")
        if self.state == "skip":
            words.append(self.findings[0]["found"].splitlines()[0])
        if self.state == "running" and self.case:
            words.append(f"at {self.case}")
        return f"{self.name:<10} {mark:<8} {self.seconds:5.1f} s  {'; '.join(words)}".rstrip()

    def markdown(self, number: int) -> list[str]:
        mark = _MARKS.get(self.state, self.state)
        lines = [f"## {number}. {self.title}", ""]
        lines += [f"`{self.name}`: {mark}, {self.seconds:.1f} s of at most {self.limit:.0f}", ""]
        for finding in self.findings:
            lines += _finding(finding)
        for title, rows in self.tables.items():
            lines += ["", f"**{title}**", "", *_table(rows)]
        return [*lines, ""]


@dataclass
class Report:
    """The findings of all parts, and the files that show them."""

    folder: Path
    device: str
    quick: bool
    model: str
    parts: list[PartReport] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    unusable: str = ""  # why the device cannot be used
    finished: bool = False
    stopped: bool = False
    started: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M:%S %z"))
    begin: float = field(default_factory=time.monotonic)

    def keep_previous(self) -> None:
        """Rename the report of an earlier run to report.before.md and report.before.json."""
        for suffix in (".md", ".json"):
            path = self.folder / f"report{suffix}"
            if path.exists():
                os.replace(path, self.folder / f"report.before{suffix}")

    def handle(self, part: PartReport, event: dict[str, Any]) -> None:
        """Add an event of a part; part.py describes them."""
        ((kind, value),) = event.items()
        if kind == "begin":
            part.case = value
        elif kind == "finding":
            part.findings.append(value)
        elif kind == "row":
            part.tables.setdefault(value["table"], []).append(value["cells"])
        elif kind == "headline":
            part.headlines.append(value)
        elif kind == "fact":
            self.facts[value[0]] = value[1]
        elif kind == "unusable":
            self.unusable = value

    def write(self) -> None:
        """Write both files, each atomically: a reader never sees a partial report."""
        content = {
            "gpucnn": gpucnn.__version__,
            "command": _command(),
            "started": self.started,
            "seconds": round(time.monotonic() - self.begin, 1),
            "finished": self.finished,
            "device": self.device,
            "quick": self.quick,
            "model": self.model,
            "facts": self.facts,
            "parts": [{**vars(part), "state": part.state} for part in self.parts],
            "summary": self.summary(),
        }
        _replace(self.folder / "report.json", json.dumps(content, indent=1) + "\n")
        _replace(self.folder / "report.md", self.markdown())

    def markdown(self) -> str:
        card = self.facts.get("card")
        lines = [
            f"# gpucnn check: {self.device}" + (f", {card}" if card else ""),
            "",
            f"gpucnn {gpucnn.__version__}, `{_command()}`, started {self.started}",
            "",
        ]
        if self.device == "cudasim":
            lines += [
                "Times and speeds are those of the simulator: they say nothing about a GPU.",
                "",
            ]
        for number, part in enumerate(self.parts, 1):
            lines += part.markdown(number)
        lines += ["## Summary", "", "```", *self.summary(), "```"]
        return "\n".join(lines) + "\n"

    def summary(self) -> list[str]:
        """At most 20 lines: the verdict, each part, the first failures."""
        failures = [
            f"  {part.name}: {finding['what']}: {finding['found'].splitlines()[0]:.150}"
            for part in self.parts
            for finding in part.findings
            if finding["state"] == "fail" and finding["found"]
        ]
        failed = sum(part.state == "fail" for part in self.parts)
        verdict = f"{failed} of {len(self.parts)} parts failed" if failed else "nothing failed"
        if self.stopped:
            verdict += ", interrupted"
        elif not self.finished:
            verdict += " so far; still running, or killed"
        seconds = time.monotonic() - self.begin
        card = self.facts.get("card")
        lines = [f"{self.device}{f' ({card})' if card else ''}: {verdict}, {seconds:.0f} s"]
        lines += [part.line() for part in self.parts]
        if failures:
            lines += ["failed:", *failures[:_MAX_FAILURES]]
        if len(failures) > _MAX_FAILURES:
            lines.append(f"  and {len(failures) - _MAX_FAILURES} more")
        return lines


def _command() -> str:
    return shlex.join(["gpucnn", *sys.argv[1:]])


def _finding(finding: dict[str, str]) -> list[str]:
    """A list item; a remedy of several lines, such as a traceback, becomes a code block."""
    found, remedy = finding["found"].strip(), finding["remedy"].strip()
    first, *rest = found.splitlines() or [""]
    line = f"- {_MARKS[finding['state']]}: {finding['what']}"
    lines = [f"{line}: {first}" if first else line]
    if rest:
        lines += ["", "  ```", *(f"  {text}" for text in rest), "  ```", ""]
    if "\n" in remedy:
        lines += ["", "  ```", *(f"  {text}" for text in remedy.splitlines()), "  ```", ""]
    elif remedy:
        lines.append(f"  → {remedy}")
    return lines


def _table(rows: list[dict[str, Any]]) -> list[str]:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in rows:
        lines.append("| " + " | ".join(_cell(row.get(name)) for name in columns) + " |")
    return lines


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def _replace(path: Path, text: str) -> None:
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
