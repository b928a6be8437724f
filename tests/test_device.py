import inspect
import sys
import types

import numpy as np
import pytest

import gpucnn
from gpucnn.device import CPU, Device, array_module, by_device, choose_device, device_of, to_device
from gpucnn.errors import DeviceError, DeviceMismatch


@pytest.fixture(autouse=True)
def _without_the_environment_variable(monkeypatch):
    monkeypatch.delenv("GPUCNN_DEVICE", raising=False)


@pytest.fixture
def without_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)  # import cupy raises ImportError


@pytest.fixture
def cupy_without_driver(monkeypatch):
    def fail():
        raise RuntimeError("cudaErrorInsufficientDriver")

    runtime = types.SimpleNamespace(getDeviceCount=fail)
    cupy = types.SimpleNamespace(
        cuda=types.SimpleNamespace(runtime=runtime), ndarray=type("A", (), {})
    )
    monkeypatch.setitem(sys.modules, "cupy", cupy)


def test_cuda_without_cupy_is_a_one_line_error_with_the_pip_command(without_cupy):
    with pytest.raises(DeviceError, match=r'needs CuPy.*pip install "gpucnn\[cuda12\]"') as error:
        Device.parse("cuda")
    assert "\n" not in str(error.value)


def test_cuda_without_a_driver_is_a_one_line_error_with_the_remedy(cupy_without_driver):
    with pytest.raises(DeviceError, match=r"needs an NVIDIA driver.*pip install") as error:
        Device.parse("cuda:0")
    assert "\n" not in str(error.value)


def test_auto_falls_back_to_the_cpu_and_says_why(without_cupy):
    device, reason = choose_device()
    assert device == CPU
    assert "CuPy" in reason
    assert Device.parse("auto") == CPU


def test_the_environment_variable_overrides_auto(without_cupy, monkeypatch):
    for wish, chosen in (("", CPU), ("auto", CPU), ("cpu", CPU), ("cudasim", Device("cudasim"))):
        monkeypatch.setattr("gpucnn.cudasim.require_compiler", lambda: None)
        monkeypatch.setenv("GPUCNN_DEVICE", wish)
        assert Device.parse("auto") == chosen
    assert choose_device()[1] == "GPUCNN_DEVICE=cudasim"
    assert Device.parse("cpu") == Device.parse(None) == CPU
    for wish, message in (("tpu", "device 'tpu' is unknown"), ("cuda:1", "device cuda needs CuPy")):
        monkeypatch.setenv("GPUCNN_DEVICE", wish)
        with pytest.raises(DeviceError, match=f"^GPUCNN_DEVICE={wish}: {message}"):
            Device.parse("auto")


def test_the_error_for_a_missing_device_lists_those_that_exist(monkeypatch):
    runtime = types.SimpleNamespace(getDeviceCount=lambda: 2)
    cupy = types.SimpleNamespace(
        cuda=types.SimpleNamespace(runtime=runtime), ndarray=type("A", (), {})
    )
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert Device.parse("cuda:1") == Device("cuda", 1)
    assert choose_device()[0] == Device("cuda", 0)
    with pytest.raises(DeviceError, match=r"cuda:2 does not exist\n.*cuda:0, cuda:1"):
        Device.parse("cuda:2")


def test_array_module_and_device_of_recognise_an_array():
    x = np.zeros(2)
    assert array_module(x) is np
    assert device_of(x) == CPU
    assert to_device(x, CPU) is x
    assert (str(CPU), repr(CPU)) == ("cpu", "Device('cpu')")
    assert str(Device("cuda", 1)) == "cuda:1"
    with pytest.raises(TypeError, match="expected a NumPy or CuPy array, got list"):
        array_module([1])


def test_by_device_dispatches_on_the_first_argument():
    call = by_device(cpu=lambda x, y: ("cpu", y), cuda=lambda x, y: ("cuda", y))
    assert call(np.zeros(1), 3) == ("cpu", 3)
    assert call(object(), 4) == ("cuda", 4)


def test_the_two_halves_of_every_op_have_one_signature():
    checked = 0
    for module in {
        m for name, m in sys.modules.items() if name.startswith(("gpucnn.ops.", "gpucnn.optim."))
    }:
        for name, value in vars(module).items():
            if inspect.isfunction(value) and hasattr(value, "cpu"):  # by_device made it
                halves = [list(inspect.signature(f).parameters) for f in (value.cpu, value.cuda)]
                assert halves[0] == halves[1], f"{module.__name__}.{name}"
                checked += 1
    assert checked >= 6


def test_an_op_refuses_tensors_on_two_devices_and_names_itself(monkeypatch):
    elsewhere = gpucnn.tensor([1.0])
    monkeypatch.setattr(
        gpucnn.Tensor, "device", property(lambda t: Device("cuda", 1) if t is elsewhere else CPU)
    )
    with pytest.raises(
        DeviceMismatch, match=r"add: one input is on cpu, another on cuda:1\n.*move"
    ):
        gpucnn.tensor([1.0]) + elsewhere
