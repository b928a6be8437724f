"""Whether a process has ended."""

import time
from pathlib import Path


def is_gone(pid: int, within: float = 60.0) -> bool:
    """Whether the process ends within that many seconds; a zombie counts as ended."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False
