"""cuda.Timer on the CPU and on the simulated device."""

import time

import pytest

import gpucnn
from gpucnn import cudasim
from gpucnn.cuda import Timer


@pytest.mark.parametrize("device", ["cpu", "cudasim"])
def test_blocks_add_up(device):
    timer = Timer(gpucnn.Device(device))
    assert (timer.seconds, timer.count) == (0, 0)
    for _ in range(3):
        with timer:
            time.sleep(0.004)
        time.sleep(0.01)
    assert timer.count == 3
    first = timer.seconds
    assert first >= 0.012
    with timer:
        time.sleep(0.004)
    assert timer.seconds >= first + 0.004


def test_timing_waits_for_the_device_only_when_it_is_read():
    timer = Timer(gpucnn.Device("cudasim"))
    before = cudasim.cuda.counters.host_syncs
    for _ in range(100):
        with timer:
            pass
    assert cudasim.cuda.counters.host_syncs == before
    assert timer.seconds > 0


def test_events_that_have_passed_are_not_kept():
    timer = Timer(gpucnn.Device("cudasim"))
    for _ in range(50):
        with timer:
            pass
    assert len(timer._clock._pairs) <= 1


def test_without_a_device_the_timer_measures_on_the_default_device():
    with gpucnn.device(gpucnn.Device("cudasim")):
        assert str(Timer().device) == "cudasim"
    assert str(Timer().device) == "cpu"
