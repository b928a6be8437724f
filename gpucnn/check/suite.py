"""Part 4: the tests for GPUs, if gpucnn is imported from a checkout."""

import importlib.util
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TextIO

from gpucnn.check.part import Out
from gpucnn.check.runner import CHECKOUT, ROOT, environment
from gpucnn.threads import usable_cores

_MARGIN = 3.0  # seconds between the end of the tests and that of the part
_WORKERS = 8  # each has a CUDA context of its own: about half a GiB
_NAMED = 20  # failures
_WORDS = "PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS"
_RESULT = re.compile(rf"(?P<test>tests/\S+::.*?)\s+(?P<result>{_WORDS})\b")
# pytest-xdist puts the result first
_PARALLEL = re.compile(rf"^\[gw\d+\].*?(?P<result>{_WORDS})\s+(?P<test>tests/\S+::.*?)\s*$")


def examine(out: Out) -> None:
    if not (CHECKOUT and (ROOT / "tests").is_dir()):
        out.skip("tests", "gpucnn is installed, and the tests are in a checkout", "git clone it")
    elif importlib.util.find_spec("pytest") is None:
        out.skip("tests", "pytest is not installed", 'pip install "gpucnn[test]"')
    else:
        out.run("tests", _tests, out)


def _tests(out: Out) -> None:
    command = [sys.executable, "-m", "pytest", "-v", "-W", "default", "--tb=short", "--color=no"]
    command += ["-p", "no:cacheprovider", "-rfE"]
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(min(usable_cores(), _WORKERS)), "--dist", "loadfile"]
    if out.simulated:
        command += ["-m", "not slow", "-k", "cudasim"]
    else:
        command += ["-m", "gpu and not slow"]
    if out.task.quick:
        command += ["tests/gpu"] if not out.simulated else ["tests/gpu", "-k", _FEW]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "output")
        with open(path, "w", encoding="utf-8") as file:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment(PYTEST_ADDOPTS=""),
            )
        results = _Results()
        with open(path, encoding="utf-8", errors="replace") as file:
            while process.poll() is None and out.left() > _MARGIN:
                time.sleep(0.2)
                results.read(file)
            results.read(file)
    # Tests that are still at work end with this process: the runner ends its group.
    _report(out, results, process.poll())


class _Results:
    """What pytest has printed so far."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.failed: list[str] = []
        self.lines: list[str] = []
        self.last = ""  # the last test that has a result
        self._rest = ""  # of a line that is not complete

    def read(self, file: TextIO) -> None:
        """Take what is new in its output."""
        *lines, self._rest = (self._rest + file.read()).split("\n")
        for line in lines:
            self.lines.append(line.rstrip())
            found = _RESULT.match(line) or _PARALLEL.search(line)
            if found:
                self.last = found["test"]
                self.counts[found["result"]] += 1
                if found["result"] in ("FAILED", "ERROR"):
                    self.failed.append(self.last)

    def __str__(self) -> str:
        counts = sorted(self.counts.items())
        return ", ".join(f"{n} {name.lower()}" for name, n in counts) or "none ran"


# On the simulator, what a quick run has time for
_FEW = "cudasim and (refuses or devices_do_not_meet or loader)"


def _report(out: Out, results: _Results, status: int | None) -> None:
    """status: pytest's, or None if it is still at work."""
    for name in results.failed[:_NAMED]:
        out.fail(name, *_reason(name, results.lines))
    if len(results.failed) > _NAMED:
        out.fail("tests", f"{len(results.failed) - _NAMED} more failed")
    if status is None:
        found = f"{results}, and then there was no time left, after {results.last or 'none'}"
        out.note("tests", found, "pytest -m gpu")
    elif status == 0:
        out.ok("tests", str(results))
    elif not results.failed:
        end = "\n".join(results.lines[-15:])
        out.fail("tests", f"pytest ended with status {status}: {results}", end)
    out.headline(f"{results}{', then cut' if status is None else ''}")


def _reason(name: str, lines: list[str]) -> tuple[str, str]:
    """pytest's own line on a failure, and the part of its report on it."""
    short = next(
        (line for line in lines if line.startswith(("FAILED ", "ERROR ")) and name in line), ""
    )
    test = name.rpartition("::")[2]
    heads = [i for i, line in enumerate(lines) if re.match(r"_+ .*_+$", line)]
    for i, start in enumerate(heads):
        if test in lines[start]:
            end = heads[i + 1] if i + 1 < len(heads) else len(lines)
            return short.partition(" - ")[2] or "failed", "\n".join(lines[start + 1 : end][-25:])
    return short.partition(" - ")[2] or "failed", ""
