"""A part of a check whose cases fail, crash and hang."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from gpucnn.commands.check.part import Reporter
from gpucnn.errors import ShapeError


def examine(reporter: Reporter) -> None:
    for name in os.environ["VICTIMS"].split():
        reporter.run(name, CASES[name], reporter)


def fine(reporter: Reporter) -> None:
    reporter.row("Numbers", {"of": "a | b", "ms": 1.25})
    reporter.ok("fine", "as it should be")


def raises(reporter: Reporter) -> None:
    raise ZeroDivisionError("a mistake")


def mistaken(reporter: Reporter) -> None:
    raise ShapeError("conv2d: x has 3 channels\n  build the layer with in_channels=3")


def crashes(reporter: Reporter) -> None:
    print("the last words", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(reporter: Reporter) -> None:
    """Start a process that hangs too, and write both process IDs to a file."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(os.environ["VICTIMS_PIDS"]).write_text(f"{os.getpid()} {child.pid}")
    reporter.ok("before hanging")
    time.sleep(600)


def excused(reporter: Reporter) -> None:
    reporter.excuse("others take as long")
    time.sleep(600)


def lingers(reporter: Reporter) -> None:
    reporter.ok("done")
    threading.Thread(target=time.sleep, args=[600]).start()


def last(reporter: Reporter) -> None:
    reporter.ok("last", f"after all others, with {reporter.seconds_left():.0f} s left")


CASES = {
    function.__name__: function
    for function in (fine, raises, mistaken, crashes, hangs, excused, lingers, last)
}
