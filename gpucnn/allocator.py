"""Keep freed memory for the next step, and give it back after setting up, where libc is glibc.

glibc gives every array of more than 128 KiB back to the system when it is freed, and the next
one of that size costs a page fault for each 4 KiB and the system's zeroing of it.  A training
step frees and asks for the same sizes over and over: that was up to a tenth of its time.
"""

import ctypes
import os
import sys

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST = 2**31 - 1  # mallopt takes an int


def keep_freed_memory() -> bool:
    """Ask glibc to keep what is freed; False if it is another C library or refuses.

    Whoever has set MALLOC_MMAP_THRESHOLD_ or MALLOC_TRIM_THRESHOLD_ in the environment has
    chosen already, and keeps the choice.
    """
    chosen = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & os.environ.keys()
    libc = None if chosen else _glibc()
    return libc is not None and all(
        libc.mallopt(option, _LARGEST) == 1 for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD)
    )


def give_back_freed_memory() -> bool:
    """Give all that is free to the system; False if there was nothing, or libc is another.

    For the end of setting up.  What is kept from there has holes of sizes that a training step
    does not ask for: for alexnet_keras in batches of 8 they were 126 MiB of 1,176.
    """
    libc = _glibc()
    return libc is not None and libc.malloc_trim(0) == 1


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  musl has a mallopt that does nothing
    except (OSError, AttributeError):
        return None
    return libc
