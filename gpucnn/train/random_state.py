"""States of random generators as plain JSON data."""

from typing import Any

import numpy as np

from gpucnn import schema

# The largest index of NumPy's generators into their buffers, which NumPy does not check
_POSITIONS = {"Philox": 4, "MT19937": 624}


def generator_state(generator: np.random.Generator) -> dict[str, Any]:
    """The state of `generator` as plain JSON data."""
    return _plain(generator.bit_generator.state)  # type: ignore[no-any-return]


def restore_generator(generator: np.random.Generator, state: dict[str, Any]) -> None:
    """Restore a state from `generator_state`.

    Raises CheckpointError, and changes nothing, if it is the state of another kind of generator, or
    has a value that this kind cannot have.
    """
    own = generator_state(generator)
    _like(own)(state, "the state of a random generator")
    generator.bit_generator.state = _arrays(state)


def _like(own: dict[str, Any], kind: str = "") -> schema.Check:
    """A check for states like `own`: of the same kind of generator, every number in its range."""
    kind = own.get("bit_generator", kind)
    ranges = {"has_uint32": 1, "uinteger": 2**32 - 1}
    if kind in _POSITIONS:
        ranges |= dict.fromkeys(("buffer_pos", "pos"), _POSITIONS[kind])
    word = 2**32 - 1 if kind == "MT19937" else 2**64 - 1
    checks: dict[str, schema.Check] = {}
    for key, value in own.items():
        if isinstance(value, dict):
            checks[key] = _like(value, kind)
        elif isinstance(value, list):
            checks[key] = schema.list_of(schema.integer(0, word), len(value))
        elif isinstance(value, int):
            checks[key] = schema.integer(0, ranges.get(key, 2**128 - 1))  # PCG64 has 128 bits
        else:
            checks[key] = schema.exactly(value)
    return schema.record(checks)


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
