"""The default random generator, generators of layers, and the part of a batch that draws."""

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn.errors import ArgumentError

MAX_SEED = 2**128 - 1  # of what a checkpoint stores

_generator = np.random.Generator(np.random.Philox(0))
_state = threading.local()


def default_generator() -> np.random.Generator:
    """The generator that dropout, initialisation and shuffling use by default."""
    return _generator


def manual_seed(seed: int) -> None:
    """Seed the default generator: the same seed gives the same numbers."""
    _generator.bit_generator.state = np.random.Philox(seed).state


def get_state() -> dict[str, Any]:
    """The state of the default generator, for a checkpoint; `set_state` restores it."""
    return dict(_generator.bit_generator.state)


def set_state(state: dict[str, Any]) -> None:
    """Restore a state of the default generator that `get_state` returned."""
    _generator.bit_generator.state = state


def spawned(generator: np.random.Generator | None) -> np.random.Generator | None:
    """A generator of its own for a layer of a network that `generator` initialises; None for None.

    It is Philox, so that a GPU can draw from it.  `generator` draws the same numbers as without
    this call.
    """
    if generator is None:
        return None
    seeds: Any = generator.bit_generator.seed_seq
    if not isinstance(seeds, np.random.bit_generator.ISpawnableSeedSequence):  # seeded by a key
        seeds = np.random.SeedSequence(copy.deepcopy(generator).integers(2**63, size=2).tolist())
    return np.random.Generator(np.random.Philox(seeds.spawn(1)[0]))


# --- several processes, each with a part of one batch ---


@dataclass(frozen=True)
class BatchPart:
    """Images start .. start + count - 1 of a batch of `total`; count 0 is a filler image."""

    start: int
    count: int
    total: int


@contextmanager
def batch_part(start: int, count: int, total: int) -> Iterator[None]:
    """Inside the block, this thread works on images start .. start + count - 1 of `total`.

    Dropout then keeps what it would keep of these images in the whole batch, and its generator
    advances as for the whole batch.  So generators with one seed give the same masks however
    many processes share a batch.  The first axis of an input of dropout holds the images, or
    several rows of each, image by image.

    A process without an image runs a filler image with count 0: its masks are those of some image
    of the batch.

    Raises ArgumentError unless the part lies inside a batch of at least one image.
    """
    if total < 1 or not 0 <= start <= start + count <= total:
        raise ArgumentError(
            "batch_part: expected a part of a batch of at least one image, got "
            f"start={start}, count={count}, total={total}"
        )
    outer = current_part()
    _state.part = None if count == total else BatchPart(start, count, total)
    try:
        yield
    finally:
        _state.part = outer


def current_part() -> BatchPart | None:
    """The part of a batch that this thread works on; None for a whole batch."""
    part: BatchPart | None = getattr(_state, "part", None)
    return part
