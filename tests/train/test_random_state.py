import json

import numpy as np
import pytest

from gpucnn.errors import CheckpointError
from gpucnn.train.random_state import generator_state, restore_generator

KINDS = [np.random.Philox, np.random.PCG64, np.random.PCG64DXSM, np.random.SFC64, np.random.MT19937]


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_in_json_continues_with_the_same_numbers(kind):
    one, other = np.random.Generator(kind(3)), np.random.Generator(kind(4))
    one.integers(10, size=7, dtype=np.uint32)  # half of a 64-bit number is left over
    restore_generator(other, json.loads(json.dumps(generator_state(one))))
    assert one.integers(2**32, size=9).tolist() == other.integers(2**32, size=9).tolist()


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (np.random.Philox, {"buffer_pos": 5}),  # NumPy would read behind its buffer
        (np.random.Philox, {"buffer_pos": -1}),
        (np.random.Philox, {"buffer": [1, 2, 3]}),
        (np.random.Philox, {"uinteger": 2**32}),
        (np.random.Philox, {"has_uint32": 2}),
        (np.random.Philox, {"state": {"counter": [0] * 4, "key": [2**64, 0]}}),
        (np.random.Philox, {"bit_generator": "PCG64"}),
        (np.random.PCG64, {"state": {"state": 2**128, "inc": 1}}),
        (np.random.PCG64, {"state": 3}),
        (np.random.MT19937, {"state": {"key": [0] * 624, "pos": 625}}),
        (np.random.MT19937, {"state": {"key": [2**32] * 624, "pos": 3}}),
    ],
)
def test_a_value_that_a_state_cannot_have_is_refused_and_changes_nothing(kind, change):
    generator = np.random.Generator(kind(3))
    before = generator_state(generator)
    with pytest.raises(CheckpointError, match=r"the state of a random generator.*: expected"):
        restore_generator(generator, before | change)
    assert generator_state(generator) == before
