"""Stop on a signal between two steps, not inside one."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from gpucnn.arguments import Stopped

_INTERRUPTED = 128 + signal.SIGINT
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP


class StopRequest:
    """Asks training to stop between two steps; `status` is the exit status, None if unasked."""

    def __init__(self) -> None:
        self.status: int | None = None

    def set(self, status: int) -> None:
        """Ask; the first request determines the status."""
        if self.status is None:
            self.status = status


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Yield a request that SIGINT (Ctrl-C), SIGTERM and SIGHUP set, with status 128 + the signal.

    Ctrl-C after one of these raises Stopped at once.  SIGTERM and SIGHUP do not: a closing
    terminal or a shutdown sends several of them.  Where SIGHUP is ignored, as under nohup, it stays
    ignored.  Outside the main thread, where Python handles no signals, nothing sets the request.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    received = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal received
        if received and number == signal.SIGINT:
            raise Stopped(_INTERRUPTED)
        received = True
        request.set(128 + number)

    before: dict[signal.Signals, Any] = {}
    for name in _NAMES:
        number = getattr(signal, name, None)
        if number is None or (name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN):
            continue
        before[number] = signal.signal(number, handle)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
