"""Part 4: the tests for GPUs, if gpucnn is imported from a checkout."""

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TextIO

from gpucnn.commands.check.part import Out
from gpucnn.commands.check.runner import CHECKOUT, ROOT, environment
from gpucnn.cpu import usable_cores

_MARGIN = 3.0  # seconds between the end of the tests and that of the part
_WORKERS = 8  # each has a CUDA context of its own: about half a GiB
_NAMED = 20  # failures
_LINES = 25  # of what pytest says of one
# On the simulator, what a quick run has time for
_FEW = "cudasim and (refuses or devices_do_not_meet or loader)"


def examine(out: Out) -> None:
    if not (CHECKOUT and (ROOT / "tests").is_dir()):
        out.skip("tests", "gpucnn is installed, and the tests are in a checkout", "git clone it")
    elif importlib.util.find_spec("pytest") is None:
        out.skip("tests", "pytest is not installed", 'pip install "gpucnn[test]"')
    else:
        out.run("tests", _tests, out)


def _tests(out: Out) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-W", "default", "--tb=short", "--color=no"]
    command += ["-p", "no:cacheprovider", "-p", "gpucnn.commands.check.pytest_results"]
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(min(usable_cores(), _WORKERS)), "--dist", "loadfile"]
    command += ["-m", "not slow" if out.simulated else "gpu and not slow"]
    if out.task.quick:
        command += ["tests/gpu"]
    if out.simulated:
        command += ["-k", _FEW if out.task.quick else "cudasim"]
    with tempfile.TemporaryDirectory() as folder:
        output, path = Path(folder, "output"), Path(folder, "results")
        path.touch()
        env = environment(PYTEST_ADDOPTS="", GPUCNN_CHECK_RESULTS=str(path))
        with open(output, "wb") as file:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=env,
            )
        results = Results(out)
        with open(path, encoding="utf-8") as lines:
            while process.poll() is None and out.left() > _MARGIN:
                time.sleep(0.2)
                results.read(lines)
            results.read(lines)
        # Tests that are still at work end with this process: the runner ends its group.
        results.close(process.poll(), output.read_text(errors="replace"))


class Results:
    """What became of the tests so far; a failure is said at once."""

    def __init__(self, out: Out) -> None:
        self._out = out
        self._counts: Counter[str] = Counter()
        self._failed = 0
        self._last = "none"
        self._rest = ""  # of a line that is not complete

    def read(self, file: TextIO) -> None:
        """Take what is new in the file of pytest_results.py."""
        *lines, self._rest = (self._rest + file.read()).split("\n")
        for line in lines:
            result = json.loads(line)
            self._last = result["test"]
            self._counts[result["outcome"]] += 1
            if result["text"]:
                self._failed += 1
                if self._failed <= _NAMED:
                    self._fail(result["text"].strip().splitlines())

    def _fail(self, text: list[str]) -> None:
        reason = next((line for line in reversed(text) if line.startswith("E ")), text[-1])
        self._out.fail(self._last, reason.removeprefix("E").strip(), "\n".join(text[-_LINES:]))

    def close(self, status: int | None, output: str) -> None:
        """status: pytest's, or None if it is still at work; output: what it printed."""
        counts = sorted(self._counts.items())
        found = ", ".join(f"{n} {name}" for name, n in counts) or "none ran"
        if self._failed > _NAMED:
            self._out.fail("tests", f"{self._failed - _NAMED} more failed")
        if status is None:
            cut = f"{found}, and then there was no time left, after {self._last}"
            self._out.note("tests", cut, "run them by themselves: pytest -m gpu")
        elif status == 0:
            self._out.ok("tests", found)
        elif not self._failed:
            end = "\n".join(output.strip().splitlines()[-_LINES:])
            self._out.fail("tests", f"pytest ended with status {status}: {found}", end)
        self._out.headline(found + (", then cut" if status is None else ""))
