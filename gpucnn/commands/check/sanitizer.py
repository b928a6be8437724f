"""Part 5: NVIDIA's compute-sanitizer on every kernel, or the simulator's own checks."""

import re
import sys

from gpucnn.commands.check.part import Out
from gpucnn.commands.check.tools import find_or_skip, output

_TOOLS = ("memcheck", "racecheck", "initcheck")
_PROGRAM = ["-P", "-m", "gpucnn.commands.check.program", "kernels"]
_LINES = 25


def examine(out: Out) -> None:
    if out.simulated:
        if out.task.quick:
            out.skip(
                "compute-sanitizer", "for GPUs; the simulator's own checks run without --quick"
            )
            return
        for mode in ("address", "race"):
            out.run(f"GPUCNN_CUDASIM={mode}", _simulator, out, mode)
        return
    path = find_or_skip(out, "compute-sanitizer")
    if path is None:
        return
    for left, tool in zip((3, 2, 1), _TOOLS, strict=True):
        out.run(tool, _sanitize, out, path, tool, out.left() / left - 1)


def _simulator(out: Out, mode: str) -> None:
    found = output(
        [sys.executable, *_PROGRAM, out.task.device], out.left() / 2, GPUCNN_CUDASIM=mode
    )
    _judge(out, f"GPUCNN_CUDASIM={mode}", found.text, found.status, found.status == 0)


def _sanitize(out: Out, path: str, tool: str, seconds: float) -> None:
    found = output(
        [path, "--tool", tool, "--error-exitcode", "9", sys.executable, *_PROGRAM, out.task.device],
        seconds,
    )
    summary = re.search(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:error|hazard)", found.text)
    if found.status is not None and summary is None and found.status != 0:
        out.fail(tool, "the tool did not run to its end", _end(found.text))
        return
    _judge(out, tool, found.text, found.status, bool(summary) and found.status == 0)


def _judge(out: Out, tool: str, text: str, status: int | None, clean: bool) -> None:
    ran = len(re.findall(r"^ran ", text, re.MULTILINE))
    reported = [line for line in text.splitlines() if _is_report(line)]
    if reported or (status is not None and not clean):
        out.fail(tool, reported[0].strip("= ") if reported else "failed", _end(text))
    elif status is None:
        out.note(tool, f"nothing found in the {ran} cases that there was time for")
    else:
        out.ok(tool, f"nothing found in {ran} cases")


def _is_report(line: str) -> bool:
    found = re.search(r"Invalid __|Uninitialized __|hazard|Race reported|^WRONG|KernelError", line)
    return found is not None and "SUMMARY" not in line


def _end(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-_LINES:])
