"""Counters belong to a stream: two that run side by side never share them."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from types import SimpleNamespace

import numpy as np
import pytest

from gpucnn.cuda.counters import counters, forget_counters


class Fake:
    """A device whose current stream has the address `pointer`."""

    def __init__(self, pointer):
        stream = SimpleNamespace(ptr=pointer)
        self.xp = SimpleNamespace(
            cuda=SimpleNamespace(get_current_stream=lambda: stream), zeros=np.zeros
        )


@pytest.fixture(autouse=True)
def _forgotten():
    yield
    forget_counters()


@pytest.mark.parametrize(("pointer", "shared"), [(0, True), (1, True), (12345, True), (2, False)])
def test_only_cudas_default_stream_of_a_thread_is_another_one_in_each_thread(pointer, shared):
    device, both = Fake(pointer), Barrier(2)

    def take():
        both.wait(10)  # two threads at a time
        return counters(device, 8)

    with ThreadPoolExecutor(2) as pool:
        first, second = (future.result() for future in [pool.submit(take) for _ in range(2)])
    assert (first is second) == shared


def test_more_counters_replace_the_array():
    device = Fake(0)
    few = counters(device, 8)
    assert counters(device, few.size) is few
    assert counters(device, few.size + 1).size > few.size
