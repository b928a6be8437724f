"""Every public function works on its arrays' device while CuPy's current device is another."""

from contextlib import ExitStack

import numpy as np
import pytest
from calls import Place, numbers
from devices import CUDASIM, place, relative
from public_functions import ARRAYLESS, TABLE

import gpucnn
from gpucnn import data, inspect, models, nn, ops, optim, train
from gpucnn.device import Device, working_on

MODULES = {
    "gpucnn": gpucnn,
    "ops": ops,
    "nn": nn,
    "optim": optim,
    "data": data,
    "train": train,
    "inspect": inspect,
    "models": models,
}


def second_gpu():
    """cuda:1 as a parameter: skipped, with the reason, where there is none."""
    param = place("cuda:1")
    return pytest.param("cuda:1", marks=[pytest.mark.gpu, *param.marks])


@pytest.fixture(params=[CUDASIM, second_gpu()])
def elsewhere(request):
    """A device that is not CuPy's current one, and whose streams are not the current ones."""
    device = Device.parse(request.param)
    cuda = device.xp.cuda
    with ExitStack() as block:
        block.enter_context(cuda.Device(0))
        if device.kind == "cuda":
            block.enter_context(cuda.Stream(non_blocking=True))
        yield request.param
        assert cuda.runtime.getDevice() == 0


@pytest.fixture(autouse=True)
def _exact():
    before = gpucnn.get_conv_algorithm()
    gpucnn.set_conv_algorithm("exact")
    yield
    gpucnn.set_conv_algorithm(before)


@pytest.mark.parametrize("name", TABLE)
def test_a_public_function_gives_the_cpus_numbers_on_a_device_that_is_not_the_current_one(
    name, elsewhere, tmp_path, compiler
):
    if elsewhere == "cudasim" and name in ("inspect.analyze", "inspect.training_memory"):
        pytest.skip("cudasim's arrays do not say whose memory they share")
    ours = list(numbers(TABLE[name](Place(elsewhere, tmp_path))))
    theirs = list(numbers(TABLE[name](Place("cpu", tmp_path))))
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == other.dtype
        if mine.dtype.kind == "f":
            assert relative(mine, other) <= 1e-5
        else:
            np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("module", MODULES)
def test_no_public_function_is_missing_from_the_table(module):
    listed = {name.partition(".")[2] for name in TABLE if name.partition(".")[0] == module}
    without = set(ARRAYLESS[module].split())
    assert not listed & without
    assert listed | without == set(MODULES[module].__all__)


def test_a_block_with_another_device_works_there_and_comes_back(elsewhere):
    if elsewhere == "cudasim":
        pytest.skip("there is one cudasim")
    getDevice = Device.parse(elsewhere).xp.cuda.runtime.getDevice
    with working_on(Device("cuda", 1)):
        with gpucnn.device("cuda:0"):
            assert getDevice() == 0
            with working_on(Device("cuda", 1)):
                assert getDevice() == 1
            assert getDevice() == 0
        assert getDevice() == 1
        with working_on(Device("cuda", 1)):
            assert getDevice() == 1
