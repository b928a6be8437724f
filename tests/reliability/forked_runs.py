"""Runs of small_script.py as forked processes: gpucnn is imported once, and a run takes 0.1 s.

As a program, this is the server: each line of its input is a JSON request to start a process or to
wait for one.
"""

import csv
import json
import os
import resource
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import small_script

from gpucnn.train.run_folder import kept

NEW = ("--out", "run", "--quiet", "--threads", 1)
RESUME = ("--resume", "--out", "run", "--quiet")


def next_flags(folder: Path, new: tuple[Any, ...] = NEW) -> tuple[Any, ...]:
    """The command line that continues the run in `folder`; `new` if nothing was saved."""
    return RESUME if kept(folder / "run") else new


def metrics(folder: Path) -> list[list[str]]:
    """The rows of metrics.csv, without times."""
    text = (folder / "run" / "metrics.csv").read_text()
    return [row[:6] for row in csv.reader(text.splitlines())]


def assert_same(folder: Path, whole: Path) -> None:
    """Assert that two runs ended with the same bits and the same metrics."""
    assert small_script.same_bits(folder / "run", whole / "run"), "the runs end with other bits"
    assert metrics(folder) == metrics(whole), "the runs have other metrics"


class Runs:
    """The client of a server that `prefix` may wrap, as in ("unshare", "-m")."""

    def __init__(self, *prefix: str) -> None:
        path = os.pathsep.join(filter(None, sys.path))
        self.process = subprocess.Popen(
            [*prefix, sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()

    def start(self, folder: Path, *flags: object, setup: str = "", said: Path | None = None) -> int:
        """Start small_script.py with these flags in `folder`; return the process's number.

        setup is Python code that runs before.  What the process prints is added to the files
        stdout and stderr in `said`, or in `folder` if that is None.
        """
        words = [str(flag) for flag in flags]
        return self._ask(folder=str(folder), flags=words, setup=setup, said=str(said or folder))

    def wait(self, pid: int) -> int:
        """The exit status; -9 after kill -9."""
        return self._ask(wait=pid)

    def run(self, *arguments: Any, **options: Any) -> int:
        """`start`, then `wait`."""
        return self.wait(self.start(*arguments, **options))

    def finish(self, folder: Path, whole: Path, new: tuple[Any, ...] = NEW) -> None:
        """Bring the run in `folder` to its end; assert that it ends as the one in `whole`."""
        status = self.run(folder, *next_flags(folder, new))
        errors = (folder / "stderr").read_text()
        assert status == 0, errors
        assert "Traceback" not in errors, errors
        assert_same(folder, whole)

    def _ask(self, **request: Any) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())


# --- the server ---


def serve() -> None:
    sys.modules["matplotlib"] = None  # type: ignore[assignment]  # drawing takes most of the time
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        pid = os.fork()
        if not pid:
            try:
                child(small_script.my_script()[0], **request)
            finally:
                os._exit(130)  # Ctrl-C outside the script
        print(pid, flush=True)


def child(main: Any, folder: str, flags: list[str], setup: str, said: str) -> None:
    os.chdir(folder)
    for number, name in enumerate((os.devnull, "stdout", "stderr")):
        file = os.open(os.path.join(said, name), os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    try:
        exec(setup, globals())
        status = main(*flags)
        sys.stdout.flush()
    except Exception:
        traceback.print_exc()
        status = 99
    os._exit(status)


def _counted(name: str, state: dict[str, int]) -> None:
    call = getattr(os, name)

    def counted(*arguments: Any, **options: Any) -> Any:
        state["left"] -= 1
        if not state["left"]:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)

    setattr(os, name, counted)


def die_before(count: int) -> None:
    """Kill this process with kill -9 before its `count`-th operation on files."""
    state = {"left": count}
    for name in ("open", "fsync", "link", "replace", "rename", "unlink"):
        _counted(name, state)


def limit(kind: str, value: int) -> None:
    """Set a resource limit of this process; a file that grows too long is an error, no signal."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    number = getattr(resource, kind)
    resource.setrlimit(number, (value, resource.getrlimit(number)[1]))


def in_step(number: int, action: Any) -> None:
    """Call `action` in that training step, counted from 1."""
    from gpucnn import train

    train_step = train.Trainer.train_step

    def with_action(self: Any, images: Any, labels: Any) -> None:
        if self.step == number - 1:
            action()
        train_step(self, images, labels)

    train.Trainer.train_step = with_action  # type: ignore[method-assign]


if __name__ == "__main__":
    serve()
