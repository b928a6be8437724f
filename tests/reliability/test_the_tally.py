"""The checks of these tests see what they must: seeded faults."""

import time

import numpy as np
import pytest
from reliability.tally import GIB, Hang, Tally, bounded


def test_a_block_that_fails_is_counted_as_lost():
    tally = Tally()
    with tally("a fault", times=3):
        pass
    with pytest.raises(AssertionError), tally("a fault"):
        raise AssertionError
    assert tally.table().splitlines()[2] == "| a fault | 4 | 1 |"


def test_an_allocation_beyond_the_bound_fails():
    with pytest.raises(MemoryError), bounded(extra=GIB):
        np.empty(2 * GIB, np.uint8)
    with bounded(extra=GIB):
        np.empty(GIB // 2, np.uint8)


def test_a_block_that_takes_too_long_fails():
    with pytest.raises(Hang), bounded(seconds=0.05):
        time.sleep(5)
