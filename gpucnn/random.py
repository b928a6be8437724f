"""The default random generator."""

from typing import Any

import numpy as np

_generator = np.random.Generator(np.random.Philox(0))


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
