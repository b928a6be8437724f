"""`with gpucnn.device(...)`: the device of new tensors, models and data, and CuPy's current one."""

import sys
import threading
import types

import numpy as np
import pytest
from fake_cuda import device_class

import gpucnn
from gpucnn import cudasim, data, nn
from gpucnn.device import Device, default_device, working_on
from gpucnn.errors import DeviceError

SIM = Device("cudasim")


def test_new_tensors_parameters_buffers_and_batches_are_on_the_default_device():
    images = data.Dataset(np.zeros((4, 6, 6, 3), np.uint8), np.zeros(4, np.int64), ("a",))
    with gpucnn.device(SIM) as chosen:
        assert chosen == SIM
        made = [
            gpucnn.tensor([1.0]),
            gpucnn.tensor(np.zeros(3)),
            nn.Conv2d(3, 4, 3).weight,
            nn.BatchNorm2d(4).running_mean,
            nn.BatchNorm2d(4).weight,
            *next(iter(data.DataLoader(images, 2))),
        ]
        given = [
            gpucnn.tensor([1.0], device="cpu"),
            gpucnn.tensor([1.0]).to("cpu"),
            next(iter(data.DataLoader(images, 2, device="cpu")))[0],
        ]
    assert {str(t.device) for t in made} == {"cudasim"}
    assert {str(t.device) for t in given} == {"cpu"}
    assert str(gpucnn.tensor([1.0]).device) == str(nn.Linear(2, 2).weight.device) == "cpu"
    assert isinstance(next(iter(data.DataLoader(images, 2)))[0], np.ndarray)


def test_an_array_on_another_device_stays_there():
    x = gpucnn.tensor([1.0], device=SIM)
    with gpucnn.device("cpu"):
        assert gpucnn.tensor(x).data is x.data
        assert gpucnn.tensor(x.data).data is x.data
        assert str((x * 2).device) == "cudasim"


def test_a_model_runs_on_the_default_device():
    with gpucnn.device(SIM):
        model = nn.Sequential(nn.Linear(4, 3), nn.Sigmoid())
        y = model(gpucnn.tensor(np.ones((2, 4), np.float32)))
        y.sum().backward()
    assert str(y.device) == "cudasim"
    assert isinstance(model[0].weight.grad, cudasim.ndarray)


def test_a_saved_model_is_loaded_onto_the_default_device(tmp_path):
    from gpucnn import models

    gpucnn.save(tmp_path / "m.safetensors", models.build("lenet5"), "lenet5")
    with gpucnn.device(SIM):
        there = gpucnn.load(tmp_path / "m.safetensors").parameters()
        here = gpucnn.load(tmp_path / "m.safetensors", device="cpu").parameters()
    assert {str(p.device) for p in there} == {"cudasim"}
    assert {str(p.device) for p in here} == {"cpu"}


def test_blocks_nest_and_an_error_leaves_them():
    assert default_device() is None
    with gpucnn.device(SIM):
        with gpucnn.device("cpu"):
            assert default_device() == Device("cpu")
        assert default_device() == SIM
        with pytest.raises(KeyError), gpucnn.device("cpu"):
            raise KeyError
        assert default_device() == SIM
        with pytest.raises(DeviceError, match="unknown"), gpucnn.device("gpu"):
            pass
        assert default_device() == SIM
    assert default_device() is None


def test_device_is_a_decorator_too():
    @gpucnn.device(SIM)
    def make():
        return gpucnn.tensor([1.0])

    assert [str(make().device) for _ in range(2)] == ["cudasim"] * 2


def test_other_threads_have_their_own_default_device():
    found = []
    with gpucnn.device(SIM):
        thread = threading.Thread(target=lambda: found.append(default_device()))
        thread.start()
        thread.join()
    assert found == [None]


def test_the_module_device_can_still_be_imported():
    from gpucnn.device import by_device

    assert callable(by_device)
    assert sys.modules["gpucnn.device"].by_device is by_device


# --- a fake CuPy with two GPUs ---


@pytest.fixture
def cupy(monkeypatch):
    """A fake CuPy with two GPUs; .current[-1] is its current device."""
    fake = types.SimpleNamespace(current=[0], ndarray=type("ndarray", (), {}))

    fake.cuda = types.SimpleNamespace(
        Device=device_class(fake.current),
        runtime=types.SimpleNamespace(getDeviceCount=lambda: 2),
        get_allocator=cudasim.cuda.get_allocator,
        using_allocator=cudasim.cuda.using_allocator,
    )
    monkeypatch.setitem(sys.modules, "cupy", fake)
    return fake


def test_cupys_current_device_follows(cupy):
    with gpucnn.device("cuda:1"):
        assert cupy.current[-1] == 1
        with gpucnn.device("cuda:0"):
            assert cupy.current[-1] == 0
        with gpucnn.device("cpu"):
            assert str(default_device()) == "cpu"
        with pytest.raises(KeyError), gpucnn.device("cuda"):
            raise KeyError
        assert cupy.current[-1] == 1
    assert cupy.current == [0]


def test_an_op_works_on_its_tensors_device_even_if_another_one_is_current(cupy):
    class Where(gpucnn.autograd.Function):
        name = "where"

        def forward(self, x):
            seen.append(cupy.current[-1])
            return x

        def backward(self, dy):
            seen.append(cupy.current[-1])
            return dy

    seen = []
    x = cupy.ndarray()
    x.device, x.shape, x.dtype, x.size = types.SimpleNamespace(id=1), (), np.dtype("f4"), 1
    x.flags, x.copy, x.base = types.SimpleNamespace(c_contiguous=True), lambda: x, None
    cupy.ones_like, cupy.may_share_memory = lambda x: x, lambda a, b: a is b
    y = Where()(gpucnn.Tensor(x, requires_grad=True))
    y.backward()
    assert seen == [1, 1]
    assert cupy.current == [0]


def test_nested_work_on_one_device_enters_it_once(cupy):
    with working_on(Device("cuda", 1)), working_on(Device("cuda", 1)):
        assert cupy.current == [0, 1]
        with working_on(Device("cuda", 0)):
            assert cupy.current == [0, 1, 0]
        assert cupy.current == [0, 1]
    assert cupy.current == [0]
