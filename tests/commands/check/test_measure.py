"""Device times come from work that is queued behind a spin."""

import numpy as np
import pytest
from fake_cuda import TimedDevice

from gpucnn import models
from gpucnn.commands.check import measure
from gpucnn.device import Device


def test_the_operations_of_a_step_are_those_of_its_matrix_products():
    model = models.lenet5(generator=np.random.default_rng(0))
    conv1, conv2 = 28 * 28 * 6 * 25, 10 * 10 * 16 * 25 * 6
    dense = 400 * 120 + 120 * 84 + 84 * 10
    # forward, gradients of weights and of inputs; the images need none
    expected = 2 * (3 * (conv2 + dense) + 2 * conv1)
    assert measure.training_operations(model, "lenet5") == expected


class Calls(TimedDevice):
    """A device that logs its calls; each spin before number `spins_needed` ends too early."""

    def __init__(self, spins_needed):
        super().__init__()
        self.log, self.clock, self.spins, self.spins_needed = [], 0.0, 0, spins_needed

    def record(self):
        self.log.append("event")
        return self.clock

    def has_passed(self, time):
        return self.spins < self.spins_needed

    def spin(self, grid, block, arguments):
        self.spins += 1
        self.log.append("spin")

    def work(self):
        self.log.append("work")
        self.clock += 3.0


def test_work_is_queued_behind_a_spin_and_again_behind_a_longer_one_if_it_ended_early():
    device = Calls(spins_needed=6)  # 4 of these measure the spin itself
    spin = measure.Spin(device)
    device.log.clear()
    duration = spin._duration
    queued = spin.queue(device.work)
    assert device.log == ["spin", "event", "work", "event"] * 2
    assert (queued.device_ms, queued.covered) == (3.0, True)
    assert spin._duration >= 2 * duration


def test_a_call_is_timed_by_queueing_as_many_as_the_queue_holds():
    device = Calls(spins_needed=0)
    spin = measure.Spin(device)
    device.log.clear()
    time, covered = spin.milliseconds(device.work, launches=100, repeats=50, rounds=1)
    assert (time, covered) == (3.0, True)
    assert device.log.count("work") == 512 // 100


@pytest.mark.usefixtures("compiler")
def test_on_the_simulator_work_is_timed_without_a_spin():
    device = Device.parse("cudasim")
    queued = measure.Spin(device).queue(lambda: None)
    assert not queued.covered
    assert queued.device_ms >= 0
