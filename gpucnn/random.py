"""The random numbers that gpucnn draws when it is given no generator."""

from typing import Any

import numpy as np

_generator = np.random.Generator(np.random.Philox(0))


def default_generator() -> np.random.Generator:
    """The generator that dropout, initialisation and shuffling use unless they are given one."""
    return _generator


def manual_seed(seed: int) -> None:
    """Start the default generator anew: the same seed gives the same numbers."""
    _generator.bit_generator.state = np.random.Philox(seed).state


def get_state() -> dict[str, Any]:
    """Where the default generator stands, for a checkpoint: `set_state` goes back there."""
    return dict(_generator.bit_generator.state)


def set_state(state: dict[str, Any]) -> None:
    """Put the default generator where `get_state` found it."""
    _generator.bit_generator.state = state
