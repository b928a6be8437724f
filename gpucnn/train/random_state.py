"""States of random generators as plain JSON data."""

from typing import Any

import numpy as np

from gpucnn.errors import CheckpointError


def generator_state(generator: np.random.Generator) -> dict[str, Any]:
    """The state of `generator` as plain JSON data."""
    return _plain(generator.bit_generator.state)  # type: ignore[no-any-return]


def restore_generator(generator: np.random.Generator, state: dict[str, Any]) -> None:
    """Restore a state from `generator_state`; CheckpointError if it is of another kind."""
    try:
        generator.bit_generator.state = _arrays(state)
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"resume: a random generator's state does not fit: {error}"
        ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return [int(v) for v in value]
    return int(value) if isinstance(value, np.integer) else value


def _arrays(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _arrays(v) for k, v in value.items()}
    return np.array(value, dtype=np.uint64) if isinstance(value, list) else value
