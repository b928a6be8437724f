"""What a kernel's plan needs to know of a GPU.

    card_of(device)                         the GPU itself
    set_reference_card("sm80-108")          plan as for an A100, whatever the GPU is

The number of multiprocessors decides tiles and splits, and splits decide the order of float32 sums:
with the same card results have the same bits.
"""

import functools
import re
from dataclasses import dataclass

from gpucnn.device import Device
from gpucnn.errors import ArgumentError

# Bytes of shared memory: per multiprocessor, and per block by opt-in.  Source: CUDA C++ Programming
# Guide, table of technical specifications per compute capability.
_SHARED = {
    75: (64 << 10, 64 << 10),
    80: (164 << 10, 163 << 10),
    86: (100 << 10, 99 << 10),
    87: (164 << 10, 163 << 10),
    89: (100 << 10, 99 << 10),
    90: (228 << 10, 227 << 10),
    100: (228 << 10, 227 << 10),
    103: (228 << 10, 227 << 10),
    120: (100 << 10, 99 << 10),
    121: (100 << 10, 99 << 10),
}
# The most threads of a multiprocessor.  Source: the same table.
_THREADS = {75: 1024, 80: 2048, 86: 1536, 87: 1536, 89: 1536, 90: 2048, 100: 2048, 120: 1536}
_SIMULATED = "sm90-132"  # the card that cudasim plans for: an H100


@dataclass(frozen=True)
class Card:
    """A GPU: compute capability times ten, and number of multiprocessors."""

    sm: int
    multiprocessors: int

    @staticmethod
    def parse(name: str) -> "Card":
        """The card of a name such as "sm80-108"; ArgumentError for anything else."""
        match = re.fullmatch(r"sm(\d{2,3})-(\d+)", name) if isinstance(name, str) else None
        if match is None or int(match[1]) < 50 or int(match[2]) < 1:
            raise ArgumentError(
                f"card: expected a name such as sm80-108, got {name!r}\n"
                "  the compute capability without the point, and the number of multiprocessors"
            )
        return Card(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"sm{self.sm}-{self.multiprocessors}"

    @property
    def shared(self) -> int:
        """Bytes of shared memory per multiprocessor."""
        return self._sizes[0]

    @property
    def shared_block(self) -> int:
        """Bytes of shared memory that a block can have."""
        return self._sizes[1]

    @property
    def threads(self) -> int:
        """The most threads of a multiprocessor."""
        return _THREADS[max((sm for sm in _THREADS if sm <= self.sm), default=75)]

    @property
    def _sizes(self) -> tuple[int, int]:
        known = [sm for sm in _SHARED if sm <= self.sm]
        return _SHARED[max(known)] if known else (48 << 10, 48 << 10)


_reference: Card | None = None


def set_reference_card(card: "str | Card | None") -> None:
    """Plan kernels as for `card`, such as "sm80-108"; None: as for the device that runs them.

    Split sums then have the same order, and float32 results the same bits, on every GPU with
    the instructions of the card.  A GPU that is older than the card refuses kernels that it cannot
    run.  Raises ArgumentError if the name is not a card's.
    """
    global _reference
    _reference = Card.parse(card) if isinstance(card, str) else card


def card_of(device: Device) -> Card:
    """The reference card if one is set, else the device's own.  cudasim is an H100, sm90-132."""
    return _reference or _own(device)


@functools.cache
def _own(device: Device) -> Card:
    if device.kind != "cuda":
        return Card.parse(_SIMULATED)
    unit = device.xp.cuda.Device(device.index)
    return Card(int(unit.compute_capability), int(unit.attributes["MultiProcessorCount"]))
