"""Run one part of a check in its own process.

    python -m gpucnn.commands.check.child MODULE TASK     TASK is a JSON object: the fields of Task

The part's events (part.py) go to standard output.  Whatever else the part or its kernels print goes
to standard error.
"""

import importlib
import json
import os
import signal
import sys
import threading

from gpucnn.commands.check.part import Reporter, Task


def main() -> None:
    module, task = sys.argv[1], Task(**json.loads(sys.argv[2]))
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # prints of Python and of kernels must not mix with the events
    end_with_parent()
    importlib.import_module(module).examine(Reporter(task, stream))
    stream.flush()


def end_with_parent() -> None:
    """Kill this process and its group as soon as the parent ends, even if the parent is killed.

    The parent holds the other end of standard input, which closes when the parent ends.
    """
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    os.read(0, 1)
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    main()
