"""Part 4: the tests for GPUs, if gpucnn is imported from a checkout."""

import importlib.util
import re
import subprocess
import sys
import threading
from collections import Counter

from gpucnn.check.part import Out
from gpucnn.check.runner import CHECKOUT, ROOT, environment
from gpucnn.threads import usable_cores

_MARGIN = 3.0  # seconds between the end of the tests and that of the part
_WORKERS = 8  # each has a CUDA context of its own: about half a GiB
_NAMED = 20  # failures
_RESULT = re.compile(r"(tests/\S+::.*?)\s+(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")
# pytest-xdist puts the result first
_PARALLEL = re.compile(r"(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\s+(tests/\S+::.*?)\s*$")


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
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment(PYTEST_ADDOPTS=""),
    )
    timer = threading.Timer(max(out.left() - _MARGIN, 1), process.kill)
    timer.start()
    counts: Counter[str] = Counter()
    failed: list[str] = []
    lines: list[str] = []
    last = ""
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line.rstrip())
        found = _RESULT.match(line) or _PARALLEL.search(line)
        if found:
            first, second = found.groups()
            last, result = (second, first) if first.isupper() else (first, second)
            counts[result] += 1
            if result in ("FAILED", "ERROR"):
                failed.append(last)
    status = process.wait()
    cut = not timer.is_alive()
    timer.cancel()
    _report(out, counts, failed, lines, last if cut else "", status)


# On the simulator, what a quick run has time for
_FEW = "cudasim and (refuses or devices_do_not_meet or loader)"


def _report(
    out: Out, counts: Counter[str], failed: list[str], lines: list[str], cut: str, status: int
) -> None:
    text = ", ".join(f"{counts[name]} {name.lower()}" for name in sorted(counts)) or "none ran"
    for name in failed[:_NAMED]:
        out.fail(name, *_reason(name, lines))
    if len(failed) > _NAMED:
        out.fail("tests", f"{len(failed) - _NAMED} more failed")
    if cut:
        out.note("tests", f"{text}, and then there was no time left, at {cut}", "pytest -m gpu")
    elif status == 0:
        out.ok("tests", text)
    elif not failed:
        out.fail("tests", f"pytest ended with status {status}: {text}", "\n".join(lines[-15:]))
    out.headline(text + (", then cut" if cut else ""))


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
