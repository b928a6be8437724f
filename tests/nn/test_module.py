import numpy as np
import pytest
from devices import host, tensor

import gpucnn
from gpucnn import nn
from gpucnn.errors import CheckpointError


class Block(nn.Module):
    def __init__(self):
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.branches = [nn.Linear(4, 2), nn.Linear(4, 2, bias=False)]

    def forward(self, x):
        x = self.norm(self.conv(x).relu()).mean((1, 2))
        return self.branches[0](x) + self.branches[1](x)


def test_parameters_and_buffers_are_named_by_the_attributes_that_hold_them():
    block = Block()
    assert [name for name, _ in block.named_parameters()] == [
        "conv.weight",
        "conv.bias",
        "norm.weight",
        "norm.bias",
        "branches.0.weight",
        "branches.0.bias",
        "branches.1.weight",
    ]
    assert [name for name, _ in block.named_buffers()] == ["norm.running_mean", "norm.running_var"]
    assert len(block.parameters()) == 7
    assert [name for name, _ in nn.Sequential(block, nn.ReLU()).named_modules()][:3] == [
        "",
        "0",
        "0.conv",
    ]


def test_a_shared_parameter_is_listed_once():
    layer = nn.Linear(2, 2)
    assert len(nn.Sequential(layer, layer).parameters()) == 2


def test_loading_a_state_makes_another_model_equal(device, rng):
    x = tensor(rng.random((2, 5, 5, 3)).astype(np.float32), device)
    one, other = Block().to(device), Block().to(device)
    one(x)  # moves the running statistics
    other.load_state_dict(one.state_dict())
    assert np.array_equal(host(one.eval()(x)), host(other.eval()(x)))
    other.conv.weight.data[...] = 0
    assert host(one.conv.weight).any()


def test_a_state_that_does_not_fit_names_each_difference_and_changes_nothing():
    block = Block()
    state = {k: v + 1 for k, v in block.state_dict().items()}
    before = {k: v.copy() for k, v in block.state_dict().items()}
    del state["conv.bias"]
    state["conv.b"] = np.zeros(4)
    state["norm.weight"] = np.zeros(5)
    with pytest.raises(CheckpointError) as error:
        block.load_state_dict(state)
    assert "missing: conv.bias" in str(error.value)
    assert "unexpected: conv.b" in str(error.value)
    assert "norm.weight: expected (4,), got (5,)" in str(error.value)
    for name, value in block.state_dict().items():
        assert np.array_equal(value, before[name])


def test_train_and_eval_reach_every_module():
    model = nn.Sequential(Block(), nn.Dropout())
    assert not any(module.training for _, module in model.eval().named_modules())
    assert all(module.training for _, module in model.train().named_modules())


def test_the_repr_is_a_tree():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.Sequential(nn.ReLU()))
    assert repr(model) == (
        "Sequential(\n"
        "  (0): Conv2d(3, 8, kernel_size=(3, 3), stride=2, bias=False)\n"
        "  (1): Sequential(\n"
        "    (0): ReLU()\n"
        "  )\n"
        ")"
    )


def test_observers_see_every_call_inside_the_block_only():
    model = nn.Sequential(nn.ReLU(), nn.Tanh())
    seen = []
    with nn.observe(lambda module, inputs, output: seen.append(type(module).__name__)):
        model(gpucnn.tensor([[1.0]]))
    model(gpucnn.tensor([[1.0]]))
    assert seen == ["ReLU", "Tanh", "Sequential"]


def test_astype_converts_parameters_and_buffers():
    block = Block().astype(np.float64)
    assert {v.dtype for v in block.state_dict().values()} == {np.dtype(np.float64)}


def test_fusing_the_layers_after_a_convolution_changes_no_bit(rng):
    layers = [
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(8, 16, 3),
        nn.ReLU(),
        nn.ReLU(),
        nn.Conv2d(16, 4, 1),
        nn.MaxPool2d(2, 1),
    ]
    model = nn.Sequential(*layers)

    def one_by_one(x):
        for layer in layers:
            x = layer(x)
        return x

    x = gpucnn.tensor(rng.standard_normal((2, 11, 11, 3), dtype=np.float32))
    results = []
    for run in (model, one_by_one):
        y = run(x)
        (y * y).sum().backward()
        results.append([y.data, *(parameter.grad for parameter in model.parameters())])
        for parameter in model.parameters():
            parameter.grad = None
    for inside, apart in zip(*results, strict=True):
        np.testing.assert_array_equal(inside, apart)


def test_an_observer_sees_the_convolution_and_the_relu_separately(rng):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    outputs = []
    with nn.observe(lambda module, inputs, output: outputs.append(output.data)):
        model(gpucnn.tensor(rng.standard_normal((1, 5, 5, 3), dtype=np.float32)))
    convolved, clipped, result = outputs
    assert convolved.min() < 0
    np.testing.assert_array_equal(np.maximum(convolved, 0), clipped)
    np.testing.assert_array_equal(clipped, result)
