"""How the simulator runs kernels: what the words in GPUCNN_CUDASIM mean.

    GPUCNN_CUDASIM=fast                     the default: optimised, blocks on all cores
    GPUCNN_CUDASIM=address                  stops at an access outside an array, at a read of what
                                            was never written, at a misaligned vector
    GPUCNN_CUDASIM=race,schedule=highest    stops where two threads touch the same bytes unordered
    GPUCNN_CUDASIM=banks                    stops at a bank conflict in shared memory; banks=2 at
                                            one of three turns or more
    GPUCNN_CUDASIM=fast,schedule=random:7   threads and blocks in an order drawn from seed 7
    GPUCNN_CUDASIM=debug                    unoptimised, one core: for gdb
    GPUCNN_CUDASIM=memory=64M               a device of 64 MiB

Words are separated by commas: one of fast, address, race, banks and banks=WAYS; schedule=lowest,
schedule=highest or schedule=random:SEED; threads=N; memory=N with K, M or G (binary) after it or
nothing; debug.
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
    """One way to run kernels."""

    mode: str = "fast"
    schedule: str = "lowest"
    seed: int = 0
    threads: int = 0  # 0: as many as there are cores
    memory: int = 0  # bytes of the device; 0: as many as the host has
    debug: bool = False
    ways: int = 1  # turns that an access to shared memory may take, in mode banks

    @property
    def checked(self) -> bool:
        """Whether every access to memory is looked at."""
        return self.mode != "fast"

    @property
    def workers(self) -> int:
        """How many cores blocks run on: one where somebody looks, so that the order is fixed."""
        if self.debug or self.checked:
            return 1
        if self.threads:
            return self.threads
        if hasattr(os, "sched_getaffinity"):  # the cores that this process may use
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1


def current() -> Settings:
    """The settings that GPUCNN_CUDASIM asks for now; ArgumentError if a word is unknown."""
    return parse(os.environ.get(VARIABLE, ""))


@functools.lru_cache(maxsize=64)
def parse(text: str) -> Settings:
    """The settings that `text` names."""
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
                f"{VARIABLE}={text}: {word!r} contradicts a word before it\n  {_GRAMMAR}"
            )
        found |= given
    return Settings(**found)  # type: ignore[arg-type]  # the names are Settings' own
