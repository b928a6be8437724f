"""Parts by name, a module's device and dtype by PyTorch's names, and states that fit in part."""

import numpy as np
import pytest
from devices import host, tensor

import gpucnn
from gpucnn import nn
from gpucnn.errors import ArgumentError, CheckpointError, DeviceError


class Net(nn.Module):
    def __init__(self):
        self.body = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        self.heads = {"left": nn.Linear(3, 1)}


def test_registered_parts_are_those_of_pytorch():
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    states = []
    for library, weight, mean in (
        (nn, nn.Parameter(np.ones(2)), gpucnn.zeros(2)),
        (torch.nn, torch.nn.Parameter(torch.ones(2)), torch.zeros(2)),
    ):
        module = library.Module()
        module.register_parameter("weight", weight)
        module.register_parameter("bias", None)
        module.register_buffer("mean", mean)
        module.add_module("inner", library.Linear(2, 2))
        module.register_module("last", library.ReLU())
        assert module.bias is None
        assert module.get_parameter("weight") is weight
        assert module.get_parameter("inner.bias") is module.inner.bias
        assert module.get_buffer("mean") is mean
        assert module.get_submodule("last") is module.last
        assert module.get_submodule("") is module
        states.append(list(module.state_dict()))
    assert states[0] == states[1]


def test_parts_in_lists_and_dicts_are_found_by_their_names():
    net = Net()
    assert net.get_submodule("body.1") is net.body[1]
    assert net.get_submodule("heads.left") is net.heads["left"]
    assert net.get_parameter("heads.left.bias") is net.heads["left"].bias
    assert net.get_buffer("body.1.running_var") is net.body[1].running_var


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.get_submodule("body.7"), "get_submodule: there is no 'body.7'; it has 'body"),
        (lambda m: m.get_parameter("body.1.running_var"), "get_parameter: there is no"),
        (lambda m: m.get_buffer("body.0.weight"), "get_buffer: there is no"),
        (lambda m: m.register_parameter("a.b", None), "expected a name without dots, got 'a.b'"),
        (lambda m: m.register_parameter("forward", None), "'forward' exists already"),
        (lambda m: m.register_parameter("w", gpucnn.zeros(2)), "w is a Tensor that is not trained"),
        (lambda m: m.register_parameter("body", nn.Parameter(np.ones(1))), "'body' exists already"),
        (lambda m: m.add_module("x", nn.ReLU), "x is a type; expected a module or None"),
        (lambda m: m.add_module("training", nn.ReLU()), "'training' exists already"),
        (lambda m: m.body.add_module("conv", nn.ReLU()), "expected the next index, 2, as the name"),
    ],
)
def test_a_part_that_cannot_be_set_or_found_is_an_error(call, message):
    with pytest.raises(ArgumentError, match=message):
        call(Net())


def test_a_module_is_added_to_a_sequential_under_the_next_index():
    model = nn.Sequential(nn.ReLU())
    model.add_module("1", nn.Linear(2, 2))
    assert list(model.state_dict()) == ["1.weight", "1.bias"]


def test_dtypes_have_pytorchs_names_and_each_method_returns_the_module():
    net = Net()
    for method, dtype in (("half", "float16"), ("double", "float64"), ("float", "float32")):
        assert getattr(net, method)() is net
        assert {str(v.dtype) for v in net.state_dict().values()} == {dtype}
    assert net.cpu() is net


def test_cuda_goes_to_a_cuda_device_or_says_why_there_is_none(device):
    if not device.startswith("cuda:"):
        try:
            gpucnn.Device.parse("cuda")
        except DeviceError:
            with pytest.raises(DeviceError, match="device cuda"):
                Net().cuda()
            return
    assert str(Net().cuda().get_parameter("body.0.weight").device) == "cuda:0"


def test_a_state_that_fits_in_part_is_loaded_if_it_need_not_fit_whole(device):
    net = Net().to(device)
    state = {name: host(array) + 1 for name, array in net.state_dict().items()}
    expected = {name: host(array).copy() for name, array in net.state_dict().items()}
    del state["heads.left.bias"]
    state["other"] = np.zeros(2)
    expected |= {name: state[name] for name in expected if name in state}
    found = net.load_state_dict(state, strict=False)
    assert found.missing_keys == ["heads.left.bias"]
    assert found.unexpected_keys == ["other"]
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(host(array), expected[name])
    assert net.load_state_dict(net.state_dict()) == ([], [])


def test_another_shape_is_refused_even_if_the_state_need_not_fit_whole():
    net = Net()
    state = {"body.0.bias": np.ones(3, np.float32), "heads.left.bias": np.ones(2, np.float32)}
    with pytest.raises(CheckpointError, match=r"heads.left.bias: expected \(1,\), got \(2,\)"):
        net.load_state_dict(state, strict=False)
    assert not net.body[0].bias.data.any()
    with pytest.raises(CheckpointError, match="missing: heads"):
        net.load_state_dict({"body.0.bias": np.ones(3, np.float32)})


def test_a_module_dict_behaves_as_pytorchs():
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    seen = []
    for library in (nn, torch.nn):
        modules = library.ModuleDict({"b": library.Linear(2, 2), "a": library.ReLU()})
        modules["c"] = library.Tanh()
        modules.update([("d", library.Linear(1, 1))])
        modules.add_module("e", library.Sigmoid())
        modules.pop("e")
        del modules["c"]
        assert "a" in modules
        assert "c" not in modules
        assert [type(m).__name__ for m in modules.values()] == ["Linear", "ReLU", "Linear"]
        seen.append((list(modules), list(modules.keys()), len(modules), list(modules.state_dict())))
        seen[-1] += ([key for key, _ in modules.items()],)
        modules.clear()
        assert len(modules) == 0
    assert seen[0] == seen[1]


def test_the_modules_of_a_module_dict_are_trained(rng):
    class Heads(nn.Module):
        def __init__(self):
            self.heads = nn.ModuleDict({"left": nn.Linear(2, 1), "right": nn.Linear(2, 1)})

        def forward(self, x, side):
            return self.heads[side](x)

    model = Heads()
    model(tensor(rng.random((3, 2)).astype(np.float32), "cpu"), "right").sum().backward()
    gradients = {name: p.grad is not None for name, p in model.named_parameters()}
    assert gradients == {
        "heads.left.weight": False, "heads.left.bias": False,
        "heads.right.weight": True, "heads.right.bias": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"a.b": nn.ReLU()}, "expected a key without dots, got 'a.b'"),
        ({1: nn.ReLU()}, "expected a key without dots, got 1"),
        ({"a": nn.ReLU}, "expected modules, a is a type"),
        ([nn.ReLU()], "expected a dict of modules, got a list"),
    ],
)
def test_a_module_dict_refuses_what_has_no_name_or_is_no_module(wrong, message):
    modules = nn.ModuleDict({"x": nn.ReLU()})
    with pytest.raises(ArgumentError, match=message):
        modules.update(wrong)
    assert list(modules) == ["x"]
