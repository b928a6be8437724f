"""Public functions work on the device of their arrays, even if CuPy's current device is another."""

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from devices import CUDASIM, SECOND_CUDA, assert_close, leaf, relative
from gpu.calls import Target, numbers
from gpu.public_functions import TABLE

import gpucnn
from gpucnn import ops, train
from gpucnn.device import Device, working_on

SCRIPT = Path(__file__).parents[2] / "examples" / "train_alexnet_cifar10.py"


@pytest.fixture(params=[CUDASIM, SECOND_CUDA])
def elsewhere(request):
    """A device that is not CuPy's current one, while a stream of the current one is active."""
    device = Device.parse(request.param)
    cuda = device.xp.cuda
    with ExitStack() as block:
        block.enter_context(cuda.Device(0))
        if device.kind == "cuda":
            block.enter_context(cuda.Stream(non_blocking=True))
        yield request.param
        assert cuda.runtime.getDevice() == 0


@pytest.fixture(autouse=True)
def _exact(conv_algorithm):
    conv_algorithm("exact")


@pytest.mark.parametrize("name", TABLE)
def test_a_public_function_gives_the_cpus_results_on_a_device_that_is_not_current(
    name, elsewhere, tmp_path, compiler
):
    ours = list(numbers(TABLE[name](Target(elsewhere, tmp_path))))
    theirs = list(numbers(TABLE[name](Target("cpu", tmp_path))))
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == other.dtype
        if mine.dtype.kind == "f":
            assert relative(mine, other) <= 1e-5
        else:
            np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("name", [SECOND_CUDA])
def test_working_on_makes_a_device_current_and_restores_the_previous_one(name):
    getDevice = Device.parse(name).xp.cuda.runtime.getDevice
    with working_on(Device("cuda", 1)):
        with gpucnn.device("cuda:0"):
            assert getDevice() == 0
            with working_on(Device("cuda", 1)):
                assert getDevice() == 1
            assert getDevice() == 0
        assert getDevice() == 1
        with working_on(Device("cuda", 1)):
            assert getDevice() == 1


@pytest.mark.parametrize("name", [SECOND_CUDA])
def test_the_script_learns_the_same_bits_on_both_gpus(name, tmp_path):
    runs = {}
    for device in ("cuda:0", name):
        out = tmp_path / device[-1]
        flags = "--dataset synthetic --limit 4 --batch-size 2 --epochs 1 --seed 1 --quiet".split()
        command = [sys.executable, SCRIPT, *flags, "--device", device, "--out", out]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        assert (done.returncode, done.stderr) == (0, "")
        rows = [row.split(",")[:5] for row in (out / "metrics.csv").read_text().splitlines()]
        runs[device] = rows, train.read_checkpoint(out / "last.safetensors").tensors
    (rows, tensors), (other_rows, others) = runs.values()
    assert rows == other_rows
    assert abs(float(rows[1][1]) - np.log(10)) > 0.01  # the loss of all-zero weights
    assert tensors.keys() == others.keys()
    for key, array in tensors.items():
        assert array.tobytes() == others[key].tobytes(), key


# --- other libraries: which stream waits for which ---


class Shared:
    """An array of another library, written on `stream` of its device."""

    def __init__(self, array, stream):
        self.array, self.stream = array, stream

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, **options):
        with self.array.device, self.stream:
            return self.array.__dlpack__(**options)


class Exposed(Shared):
    """The same, but offers only __cuda_array_interface__."""

    __dlpack__ = __dlpack_device__ = property()

    @property
    def __cuda_array_interface__(self):
        with self.array.device, self.stream:
            return self.array.__cuda_array_interface__


def late(name):
    """An array on the other GPU, and the stream whose pending work fills it with 6."""
    device = Device.parse(name)
    with device.xp.cuda.Device(device.index):
        stream = device.xp.cuda.Stream(non_blocking=True)
        with stream:
            return device.xp.full(1000, 2, np.float32) * np.float32(3), stream


@pytest.mark.parametrize("kind", [Shared, Exposed])
@pytest.mark.parametrize("name", [SECOND_CUDA])
def test_another_librarys_memory_is_read_after_its_pending_writes(name, kind):
    array, stream = late(name)
    t = gpucnn.tensor(kind(array, stream))
    assert str(t.device) == name
    assert ((t * 2.0).numpy() == 12).all()


@pytest.mark.parametrize("name", [SECOND_CUDA])
def test_another_librarys_stream_waits_for_the_tensors_device_not_the_current_one(name):
    array, stream = late(name)
    cuda, tensor = Device.parse(name).xp.cuda, gpucnn.Tensor(array)
    with array.device:
        theirs = cuda.Stream(non_blocking=True)
        with stream, cuda.Device(0):
            capsule = tensor.__dlpack__(stream=theirs.ptr, max_version=(1, 0))
            assert tensor.__cuda_array_interface__["stream"] == stream.ptr
        with theirs:
            assert (Device.parse(name).xp.from_dlpack(capsule).get() == 6).all()


@pytest.mark.parametrize("name", [SECOND_CUDA])
def test_gradients_flow_through_a_model_on_two_gpus(name, rng):
    arrays = [rng.standard_normal(shape, np.float32) for shape in ((3, 4), (5, 4), (2, 5))]
    found = []
    for first, second in (("cuda:0", name), (name, "cuda:0"), ("cpu", "cpu")):
        x, w1 = (leaf(array, first) for array in arrays[:2])
        w2 = leaf(arrays[2], second)
        y = ops.linear(ops.relu(ops.linear(x, w1)).to(second), w2)
        (y * y).sum().backward()
        assert [str(t.device) for t in (x, w1, y, w2)] == [first, first, second, second]
        found.append([y, x.grad, w1.grad, w2.grad])
    for ours in found[:2]:
        for mine, other in zip(ours, found[2], strict=True):
            assert_close(mine, other)
