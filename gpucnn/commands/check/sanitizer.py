"""Part 5: run every kernel under NVIDIA's compute-sanitizer, or under cudasim's checks."""

import re
import sys

from gpucnn.commands.check.part import Reporter
from gpucnn.commands.check.tools import Output, find_or_skip, output

_TOOLS = ("memcheck", "racecheck", "initcheck")
_PROGRAM = ["-P", "-m", "gpucnn.commands.check.program", "kernels"]
_OUTPUT_LINES = 25


def examine(reporter: Reporter) -> None:
    if reporter.simulated:
        if reporter.task.quick:
            reporter.skip("cudasim's checks", "they do not run with --quick")
            return
        for mode in ("address", "race"):
            reporter.run(f"GPUCNN_CUDASIM={mode}", _simulator, reporter, mode)
        return
    path = find_or_skip(reporter, "compute-sanitizer")
    if path is None:
        return
    for remaining, tool in zip((3, 2, 1), _TOOLS, strict=True):
        seconds = reporter.seconds_left() / remaining - 1
        reporter.run(tool, _sanitize, reporter, path, tool, seconds)


def _simulator(reporter: Reporter, mode: str) -> None:
    command = [sys.executable, *_PROGRAM, reporter.task.device]
    done = output(command, reporter.seconds_left() / 2, GPUCNN_CUDASIM=mode)
    _judge(reporter, f"GPUCNN_CUDASIM={mode}", done, done.status == 0)


def _sanitize(reporter: Reporter, path: str, tool: str, seconds: float) -> None:
    program = [sys.executable, *_PROGRAM, reporter.task.device]
    done = output([path, "--tool", tool, "--error-exitcode", "9", *program], seconds)
    summary = re.search(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:error|hazard)", done.text)
    if done.status is not None and summary is None and done.status != 0:
        reporter.fail(tool, "the tool did not finish", _end(done.text))
        return
    _judge(reporter, tool, done, bool(summary) and done.status == 0)


def _judge(reporter: Reporter, tool: str, done: Output, clean: bool) -> None:
    cases = len(re.findall(r"^ran ", done.text, re.MULTILINE))
    errors = [line for line in done.text.splitlines() if _is_error(line)]
    if errors or (done.status is not None and not clean):
        reporter.fail(tool, errors[0].strip("= ") if errors else "failed", _end(done.text))
    elif done.status is None:
        reporter.note(tool, f"no errors in {cases} cases; there was no time for the others")
    else:
        reporter.ok(tool, f"no errors in {cases} cases")


def _is_error(line: str) -> bool:
    match = re.search(r"Invalid __|Uninitialized __|hazard|Race reported|^WRONG|KernelError", line)
    return match is not None and "SUMMARY" not in line


def _end(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-_OUTPUT_LINES:])
