"""Part 4: the GPU tests, if gpucnn is imported from a checkout."""

import importlib.util
import json
import subprocess
import sys
import time
from collections import Counter
from typing import TextIO

from gpucnn.commands.check.part import Reporter
from gpucnn.commands.check.runner import CHECKOUT, ROOT, environment
from gpucnn.cpu import usable_cores
from gpucnn.temporary import temporary_folder

_MARGIN = 3.0  # seconds between the end of the tests and the part's time limit
_WORKERS = 8  # each has its own CUDA context: about half a GiB
_MAX_FAILURES = 20  # reported one by one
_OUTPUT_LINES = 25  # of pytest's output for a failure
# The tests for a quick run on the simulator
_QUICK_TESTS = "cudasim and (refuses or devices_do_not_meet or loader)"


def examine(reporter: Reporter) -> None:
    if not (CHECKOUT and (ROOT / "tests").is_dir()):
        reporter.skip("tests", "only a checkout of gpucnn contains them", "clone the repository")
    elif importlib.util.find_spec("pytest") is None:
        reporter.skip("tests", "pytest is not installed", 'pip install "gpucnn[test]"')
    else:
        reporter.run("tests", _tests, reporter)


def _tests(reporter: Reporter) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-W", "default", "--tb=short", "--color=no"]
    command += ["-p", "no:cacheprovider", "-p", "gpucnn.commands.check.pytest_results"]
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(min(usable_cores(), _WORKERS)), "--dist", "loadfile"]
    command += ["-m", "not slow" if reporter.simulated else "gpu and not slow"]
    if reporter.task.quick:
        command += ["tests/gpu"]
    if reporter.simulated:
        command += ["-k", _QUICK_TESTS if reporter.task.quick else "cudasim"]
    with temporary_folder("gpucnn-check-") as folder:
        output, path = folder / "output", folder / "results"
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
        results = Results(reporter)
        with open(path, encoding="utf-8") as lines:
            while process.poll() is None and reporter.seconds_left() > _MARGIN:
                time.sleep(0.2)
                results.read(lines)
            results.read(lines)
        # The runner kills the process group of this part, including tests that still run.
        results.close(process.poll(), output.read_text(errors="replace"))


class Results:
    """Reads test results as they arrive, and reports each failure at once."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._counts: Counter[str] = Counter()
        self._failed = 0
        self._last = "none"
        self._rest = ""  # an incomplete line

    def read(self, file: TextIO) -> None:
        """Read the new lines of the file that pytest_results.py writes."""
        *lines, self._rest = (self._rest + file.read()).split("\n")
        for line in lines:
            result = json.loads(line)
            self._last = result["test"]
            self._counts[result["outcome"]] += 1
            if result["text"]:
                self._failed += 1
                if self._failed <= _MAX_FAILURES:
                    self._fail(result["text"].strip().splitlines())

    def _fail(self, text: list[str]) -> None:
        reason = next((line for line in reversed(text) if line.startswith("E ")), text[-1])
        self._reporter.fail(
            self._last, reason.removeprefix("E").strip(), "\n".join(text[-_OUTPUT_LINES:])
        )

    def close(self, status: int | None, output: str) -> None:
        """Report the outcome.  status: pytest's, None if it still runs; output: its output."""
        counts = sorted(self._counts.items())
        outcomes = ", ".join(f"{n} {name}" for name, n in counts) or "none ran"
        if self._failed > _MAX_FAILURES:
            self._reporter.fail("tests", f"{self._failed - _MAX_FAILURES} more failed")
        if status is None:
            self._reporter.note(
                "tests",
                f"{outcomes}; reached the time limit after {self._last}",
                "run them separately: pytest -m gpu",
            )
        elif status == 0:
            self._reporter.ok("tests", outcomes)
        elif not self._failed:
            end = "\n".join(output.strip().splitlines()[-_OUTPUT_LINES:])
            self._reporter.fail("tests", f"pytest ended with status {status}: {outcomes}", end)
        self._reporter.headline(outcomes + (", then stopped" if status is None else ""))
