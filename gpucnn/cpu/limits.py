"""How much memory this process uses, and how much more it may allocate, as Linux reports it.

On other systems both are unknown.  Allocations do not come here: only errors, checks before
training, and code that is about to start threads.
"""

import re
import sys
from pathlib import Path

from gpucnn.cpu.memory import heap_bytes

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_THREAD = 32 << 20  # bytes: a stack of 8 MiB, and a margin for the other threads
_CGROUPS = Path("/sys/fs/cgroup")


def memory_in_use() -> int:
    """The bytes that arrays and other objects of this process use; 0 if unknown."""
    return heap_bytes()[0] or resident_bytes()


def resident_bytes() -> int:
    """The physical memory of this process in bytes, freed memory included; 0 if unknown."""
    return _status().get("VmRSS", 0)


def free_memory() -> int:
    """The bytes that this process may still allocate; 0 if unknown.

    That is mappable_memory, plus what the C library keeps after it was freed.
    """
    rooms = _rooms()
    return min(rooms) + heap_bytes()[1] if rooms else 0


def mappable_memory() -> int:
    """The bytes that the system still gives this process, for threads and BLAS; 0 if unknown.

    That is what is left of the machine's memory and of the limits of this process (ulimit -v, -d)
    and its container (cgroup).
    """
    return min(_rooms(), default=0)


def allocations_may_fail() -> bool:
    """Whether the system refuses memory before the machine is full: see free_memory."""
    return bool(_limits()) or _text(Path("/proc/sys/vm/overcommit_memory")).strip() == "2"


def room_for_a_thread() -> bool:
    """Whether there is memory to start a thread: without it, Thread.start could wait forever."""
    return not allocations_may_fail() or mappable_memory() > _THREAD


def _rooms() -> list[int]:
    """What each limit leaves, at least 0."""
    return [max(room, 0) for room in (*_limits(), *_machine(), *_containers())]


def _limits() -> list[int]:
    """What the limits of the process leave."""
    if resource is None or not sys.platform.startswith("linux"):
        return []
    status = _status()
    rooms = []
    for number, used in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        soft = resource.getrlimit(number)[0]
        if soft != resource.RLIM_INFINITY and used in status:
            rooms.append(soft - status[used])
    return rooms


def _machine() -> list[int]:
    """What is left of memory and swap, and of what the kernel promises if it does so strictly."""
    memory = _sizes(Path("/proc/meminfo"))
    rooms = []
    if "MemAvailable" in memory:
        rooms.append(memory["MemAvailable"] + memory.get("SwapFree", 0))
    if _text(Path("/proc/sys/vm/overcommit_memory")).strip() == "2":
        rooms.append(memory["CommitLimit"] - memory["Committed_AS"])
    return rooms


def _containers() -> list[int]:
    """What the limits of the process's cgroup and of those around it leave."""
    match = re.search(r"^0::(/.*)$", _text(Path("/proc/self/cgroup")), re.MULTILINE)
    if match is None:
        return []
    rooms = []
    folder = _CGROUPS / match[1].lstrip("/")
    for group in (folder, *folder.parents):
        limit, used = _text(group / "memory.max").strip(), _text(group / "memory.current").strip()
        if limit.isdecimal() and used.isdecimal():
            cached = re.search(r"^inactive_file (\d+)$", _text(group / "memory.stat"), re.MULTILINE)
            rooms.append(int(limit) - int(used) + (int(cached[1]) if cached else 0))
        if group == _CGROUPS:
            break
    return rooms


def _status() -> dict[str, int]:
    return _sizes(Path("/proc/self/status"))


def _sizes(path: Path) -> dict[str, int]:
    """The lines "Name:  123 kB" of a file in /proc, in bytes; empty without the file."""
    found = re.findall(r"^(\w+):\s+(\d+) kB$", _text(path), re.MULTILINE)
    return {name: int(size) << 10 for name, size in found}


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
