"""Sequential and ModuleList."""

import numpy as np
import pytest

import gpucnn
from gpucnn import nn, ops
from gpucnn.errors import ArgumentError


def test_sequential_is_indexed_and_sliced():
    layers = [nn.ReLU(), nn.Tanh(), nn.Flatten()]
    model = nn.Sequential(*layers)
    assert len(model) == 3
    assert model[1] is layers[1]
    assert model[-1] is layers[2]
    assert type(model[1:]) is nn.Sequential
    assert list(model[1:]) == layers[1:]


def test_a_layer_appended_to_a_sequential_runs_last_and_is_found():
    model = nn.Sequential(nn.Flatten())
    assert model.append(nn.Linear(4, 2)) is model
    assert model(gpucnn.tensor(np.ones((3, 2, 2), np.float32))).shape == (3, 2)
    assert list(model.state_dict()) == ["1.weight", "1.bias"]


@pytest.mark.parametrize("wrong", [[nn.ReLU()], ops.relu, nn.ReLU, None])
def test_a_sequential_refuses_anything_but_modules(wrong):
    with pytest.raises(ArgumentError, match=r"Sequential: expected modules, layer 1 is a \w+\n"):
        nn.Sequential(nn.ReLU(), wrong)


@pytest.mark.parametrize("patched", [0, 1])
def test_a_layer_with_a_forward_of_its_own_is_not_fused_with_its_neighbour(patched):
    layers = nn.Linear(3, 4), nn.ReLU()
    model, x = nn.Sequential(*layers), gpucnn.tensor(np.ones((2, 3), np.float32))
    expected = model(x).numpy()
    inner = layers[patched].forward
    layers[patched].forward = lambda x: inner(x) * 2.0
    np.testing.assert_array_equal(model(x).numpy(), 2 * expected)


def test_other_parts_of_a_sequential_subclass_are_found():
    class Net(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Linear(2, 2, bias=False))
            self.head = nn.Linear(2, 1, bias=False)
            self.gain = nn.Parameter(np.ones(1, np.float32))

    assert [name for name, _ in Net().named_parameters()] == ["gain", "0.weight", "head.weight"]


class Tower(nn.Module):
    def __init__(self, depth):
        self.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(depth))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def test_the_modules_of_a_module_list_are_named_by_their_indices_and_trained(rng):
    model = Tower(2)
    assert list(model.state_dict()) == [
        "blocks.0.weight", "blocks.0.bias", "blocks.1.weight", "blocks.1.bias"
    ]  # fmt: skip
    model(gpucnn.tensor(rng.standard_normal((3, 2), dtype=np.float32))).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_module_list_has_the_names_and_the_repr_of_pytorchs():
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    ours = nn.ModuleList([nn.Linear(2, 2), nn.ReLU()])
    theirs = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.ReLU()])
    for both in ((ours, nn.Linear(2, 3)), (theirs, torch.nn.Linear(2, 3))):
        modules, extra = both
        modules.append(extra)
        modules.insert(1, modules.pop(0))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert repr(ours) == repr(theirs)


def test_a_module_list_is_changed_like_a_list():
    a, b, c, d = (nn.ReLU() for _ in range(4))
    modules = nn.ModuleList([a])
    assert modules.append(b).extend([c, d]) is modules
    assert list(modules) == [a, b, c, d]
    modules.insert(0, d)
    del modules[1]
    modules[1] = a
    assert list(modules) == [d, a, c, d]
    assert modules.pop() is d
    assert len(modules) == 3
    assert type(modules[1:]) is nn.ModuleList
    assert list(modules[1:]) == [a, c]
    assert modules[-1] is c


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.append(ops.relu), "layer 1 is a function"),
        (lambda m: m.extend([nn.ReLU(), None]), "layer 2 is a NoneType"),
        (lambda m: m.insert(0, [nn.ReLU()]), "layer 0 is a list"),
        (lambda m: m.__setitem__(0, nn.ReLU), "layer 0 is a type"),
        (lambda m: nn.ModuleList(nn.ReLU()), "expected a list of modules, got a ReLU"),
    ],
)
def test_a_module_list_refuses_anything_but_modules_and_stays_unchanged(change, message):
    modules = nn.ModuleList([nn.Tanh()])
    with pytest.raises(ArgumentError, match=f"ModuleList: .*{message}"):
        change(modules)
    assert [type(module) for module in modules] == [nn.Tanh]


def test_a_module_list_has_no_forward():
    with pytest.raises(NotImplementedError, match="ModuleList has no forward"):
        nn.ModuleList([nn.ReLU()])(gpucnn.tensor([1.0]))
