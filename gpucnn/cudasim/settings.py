"""How the simulator runs kernels: the environment variable GPUCNN_CUDASIM.

    GPUCNN_CUDASIM=fast                     the default: optimised, blocks on all cores
    GPUCNN_CUDASIM=address                  detect out-of-bounds accesses, reads of uninitialised
                                            memory, misaligned vector accesses
    GPUCNN_CUDASIM=race,schedule=highest    detect data races
    GPUCNN_CUDASIM=banks                    detect bank conflicts; banks=2 allows 2-way conflicts
    GPUCNN_CUDASIM=fast,schedule=random:7   run threads and blocks in a random order, seed 7
    GPUCNN_CUDASIM=debug                    unoptimised, one core: for gdb
    GPUCNN_CUDASIM=memory=64M               a device with 64 MiB of memory

Words are separated by commas: one of fast, address, race, banks and banks=WAYS; schedule=lowest,
schedule=highest or schedule=random:SEED; threads=N; memory=N with an optional binary unit K, M or
G; debug.
"""

import functools
import os
import re
from dataclasses import dataclass

from gpucnn.errors import ArgumentError

VARIABLE = "GPUCNN_CUDASIM"
_GRAMMAR = (
    "expected words separated by commas: fast, address, race, banks or banks=WAYS; "
    "schedule=lowest, schedule=highest or schedule=random:SEED; threads=N; "
    "memory=N, NK, NM or NG; debug"
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


@dataclass(frozen=True)
class Settings:
    """The parsed words of GPUCNN_CUDASIM."""

    mode: str = "fast"
    schedule: str = "lowest"
    seed: int = 0
    threads: int = 0  # 0: the number of cores
    memory: int = 0  # of the device, in bytes; 0: all of the host's
    debug: bool = False
    ways: int = 1  # in mode banks: passes that a shared-memory access may take

    @property
    def checked(self) -> bool:
        """Whether every memory access is checked."""
        return self.mode != "fast"

    @property
    def workers(self) -> int:
        """The number of cores that run blocks: one in checked modes and debug, to fix the order."""
        if self.debug or self.checked:
            return 1
        if self.threads:
            return self.threads
        if hasattr(os, "sched_getaffinity"):  # the cores that this process may use
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1


def current() -> Settings:
    """The settings in GPUCNN_CUDASIM now; ArgumentError for an unknown word."""
    return parse(os.environ.get(VARIABLE, ""))


@functools.lru_cache(maxsize=64)
def parse(text: str) -> Settings:
    """Parse the words of `text`."""
    found: dict[str, str | int | bool] = {}
    for word in filter(None, (word.strip() for word in text.split(","))):
        given: dict[str, str | int | bool]
        if word in ("fast", "address", "race", "banks"):
            given = {"mode": word}
        elif (match := re.fullmatch(r"banks=(\d+)", word)) and int(match[1]) > 0:
            given = {"mode": "banks", "ways": int(match[1])}
        elif word in ("schedule=lowest", "schedule=highest"):
            given = {"schedule": word.removeprefix("schedule=")}
        elif match := re.fullmatch(r"schedule=random:(\d+)", word):
            given = {"schedule": "random", "seed": int(match[1])}
        elif (match := re.fullmatch(r"threads=(\d+)", word)) and int(match[1]) > 0:
            given = {"threads": int(match[1])}
        elif (match := re.fullmatch(r"memory=(\d+)([KMG]?)", word)) and int(match[1]) > 0:
            given = {"memory": int(match[1]) * _UNITS[match[2]]}
        elif word == "debug":
            given = {"debug": True}
        else:
            raise ArgumentError(f"{VARIABLE}={text}: {word!r} is unknown\n  {_GRAMMAR}")
        if given.keys() & found.keys():
            raise ArgumentError(
                f"{VARIABLE}={text}: {word!r} contradicts an earlier word\n  {_GRAMMAR}"
            )
        found |= given
    return Settings(**found)  # type: ignore[arg-type]  # the names are Settings' own
