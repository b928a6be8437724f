"""A part of a check that crashes, hangs and fails, to see what becomes of it."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from gpucnn.commands.check.part import Out
from gpucnn.errors import ShapeError


def examine(out: Out) -> None:
    for name in os.environ["VICTIMS"].split():
        out.run(name, CASES[name], out)


def fine(out: Out) -> None:
    out.row("Numbers", {"of": "a | b", "ms": 1.25})
    out.ok("fine", "as it should be")


def raises(out: Out) -> None:
    raise ZeroDivisionError("a mistake")


def mistaken(out: Out) -> None:
    raise ShapeError("conv2d: x has 3 channels\n  build the layer with in_channels=3")


def crashes(out: Out) -> None:
    print("the last words", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(out: Out) -> None:
    """It starts a process that hangs too, and writes both numbers down."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(os.environ["VICTIMS_PIDS"]).write_text(f"{os.getpid()} {child.pid}")
    out.ok("before hanging")
    time.sleep(600)


def excused(out: Out) -> None:
    out.excuse("others take as long")
    time.sleep(600)


def lingers(out: Out) -> None:
    out.ok("done")
    threading.Thread(target=time.sleep, args=[600]).start()


def last(out: Out) -> None:
    out.ok("last", f"after all others, with {out.left():.0f} s left")


CASES = {
    function.__name__: function
    for function in (fine, raises, mistaken, crashes, hangs, excused, lingers, last)
}
