"""Where a module finds its parts: attributes, lists, tuples and dicts; and what it refuses."""

from collections import OrderedDict, deque

import numpy as np
import pytest
from devices import host, tensor

import gpucnn
from gpucnn import nn, optim
from gpucnn.errors import ArgumentError, GraphError


class Everywhere(nn.Module):
    """A part in every place where a module finds one."""

    def __init__(self):
        self.scale = nn.Parameter(np.ones(3, np.float32))
        self.shift = gpucnn.tensor([0.0, 0.0, 0.0], requires_grad=True)
        self.mean = gpucnn.tensor([0.0, 0.0, 0.0])
        self.blocks = [nn.Linear(3, 3), nn.Linear(3, 3, bias=False)]
        self.heads = {"left": nn.Linear(3, 2), "right": [nn.Dropout(), {1: nn.Linear(3, 2)}]}
        self.gains = [nn.Parameter(np.ones(3, np.float32)), (gpucnn.tensor([0.0, 0.0, 0.0]),)]
        self.table = OrderedDict(a=gpucnn.tensor([1.0, 1.0, 1.0], requires_grad=True))
        self.late = []
        self.notes = ["words", 3, {"a.b": 1, "": 2, 2.5: 3}, {4, 5}, None]

    def forward(self, x):
        x = x * self.scale + self.shift - self.mean
        for block in self.blocks:
            x = block(x)
        x = x * self.gains[0] * self.table["a"] - self.gains[1][0]
        return self.heads["left"](x) + self.heads["right"][1][1](x)


PARAMETERS = """
    scale shift gains.0 table.a blocks.0.weight blocks.0.bias blocks.1.weight
    heads.left.weight heads.left.bias
    heads.right.1.1.weight heads.right.1.1.bias
""".split()


def test_parameters_and_buffers_are_found_in_lists_tuples_and_dicts_however_nested():
    model = Everywhere()
    assert [name for name, _ in model.named_parameters()] == PARAMETERS
    assert [name for name, _ in model.named_buffers()] == ["mean", "gains.1.0"]
    assert [name for name, _ in model.named_modules()] == [
        "",
        "blocks.0",
        "blocks.1",
        "heads.left",
        "heads.right.0",
        "heads.right.1.1",
    ]
    assert set(model.state_dict()) == {*PARAMETERS, "mean", "gains.1.0"}


def test_parts_added_to_a_list_later_are_found():
    model = Everywhere()
    model.late.append(nn.Linear(2, 2, bias=False))
    model.late += [nn.Parameter(np.ones(2, np.float32))]
    model.heads["new"] = nn.Linear(1, 1, bias=False)
    found = {name for name, _ in model.named_parameters()}
    assert found - set(PARAMETERS) == {"late.0.weight", "late.1", "heads.new.weight"}


def test_every_part_is_moved_converted_loaded_trained_and_switched(device, rng):
    model = Everywhere().astype(np.float64).to(device)
    for name, array in model.state_dict().items():
        assert array.dtype == np.float64, name
        assert gpucnn.Tensor(array).device == gpucnn.Device.parse(device), name
    state = {name: host(array) + 1 for name, array in model.state_dict().items()}
    model.load_state_dict(state)
    for name, array in model.state_dict().items():
        assert np.array_equal(host(array), state[name]), name
    assert not any(module.training for _, module in model.eval().named_modules())
    optimizer = optim.SGD(model.parameters(), 0.1)
    model(tensor(rng.standard_normal((4, 3)), device)).sum().backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert not np.array_equal(host(parameter), state[name]), name
    assert np.array_equal(host(model.mean), state["mean"])


def test_a_saved_state_of_every_part_loads_into_a_new_model():
    one, other = Everywhere(), Everywhere()
    other.load_state_dict(one.state_dict())
    x = gpucnn.tensor(np.ones((2, 3), np.float32))
    assert np.array_equal(one.eval()(x).data, other.eval()(x).data)


def test_loading_a_state_between_forward_and_backward_is_an_error(device):
    model = nn.Linear(2, 2).to(device)
    y = (model(tensor(np.ones((1, 2)), device, np.float32)) ** 2).sum()
    model.load_state_dict(model.state_dict())
    with pytest.raises(GraphError, match="changed in place"):
        y.backward()


def test_a_frozen_parameter_is_still_one_and_a_part_of_the_state():
    model = nn.Linear(2, 2)
    model.weight.requires_grad = False
    assert [name for name, _ in model.named_parameters()] == ["weight", "bias"]


@pytest.mark.parametrize("key", ["a.b", "", 2.5, ("a", 1)])
def test_a_key_that_gives_no_name_is_refused(key):
    model = nn.Module()
    model.heads = {key: nn.Linear(1, 1)}
    with pytest.raises(ArgumentError, match=r"heads has a part under .* makes no unique name"):
        model.parameters()


def test_two_keys_of_one_name_are_refused():
    model = nn.Module()
    model.heads = {1: nn.Linear(1, 1), "1": nn.Linear(1, 1)}
    with pytest.raises(ArgumentError, match="heads has a part under the key '1'"):
        model.state_dict()


def test_a_set_of_modules_is_refused_and_a_deque_is_not():
    model = nn.Module()
    model.blocks = deque([nn.Linear(1, 1)])
    assert len(model.parameters()) == 2
    for wrong in ({nn.Linear(1, 1)}, frozenset([nn.Parameter(np.ones(1, np.float32))])):
        model.blocks = wrong
        with pytest.raises(ArgumentError, match="blocks is a set with modules"):
            model.parameters()


# --- replacing a parameter or a buffer ---


@pytest.mark.parametrize(
    "value",
    [
        np.ones((2, 2), np.float32),
        gpucnn.tensor(np.ones((2, 2), np.float32)),
        gpucnn.tensor(np.ones((2, 2), np.float32), requires_grad=True) * 2.0,
        [[1.0, 1.0], [1.0, 1.0]],
        1.0,
    ],
    ids=["array", "tensor", "result", "list", "number"],
)
def test_an_array_in_place_of_a_parameter_is_refused_with_the_way_out(value):
    layer = nn.Linear(2, 2)
    before = layer.weight
    with pytest.raises(ArgumentError, match="Linear: weight is a parameter; expected") as caught:
        layer.weight = value
    assert layer.weight is before
    assert f"got {type(value).__name__}\n" in str(caught.value)
    assert "module.weight.data[...] = array, or assign gpucnn.nn.Parameter(array)" in str(
        caught.value
    )


@pytest.mark.usefixtures("current")
def test_an_array_of_a_gpu_in_place_of_a_parameter_is_refused(gpu):
    layer = nn.Linear(2, 2).to(gpu)
    with pytest.raises(ArgumentError, match=r"weight is a parameter; .* got ndarray"):
        layer.weight = layer.weight.data * 2


def test_an_array_in_place_of_a_buffer_is_refused():
    norm = nn.BatchNorm2d(3)
    with pytest.raises(
        ArgumentError, match=r"running_mean is a buffer; .* got ndarray\n.*\.tensor"
    ):
        norm.running_mean = np.zeros(3, np.float32)
    norm.running_mean = gpucnn.tensor([1.0, 2.0, 3.0])
    assert norm.state_dict()["running_mean"].tolist() == [1, 2, 3]


def test_the_suggested_remedies_work_and_a_parameter_may_replace_a_parameter():
    layer = nn.Linear(2, 2)
    layer.weight.data[...] = np.eye(2)
    layer.bias = nn.Parameter(np.zeros(2, np.float32))
    assert layer(gpucnn.tensor([[3.0, 4.0]])).numpy().tolist() == [[3, 4]]
    layer.weight = gpucnn.tensor(np.ones((2, 2), np.float32), requires_grad=True)
    layer.bias = None
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
    layer.weight = [layer.weight, nn.Linear(1, 1, bias=False)]
    assert [name for name, _ in layer.named_parameters()] == ["weight.0", "weight.1.weight"]


# --- register_buffer ---


def test_a_registered_buffer_is_saved_and_moved_and_not_trained():
    model = nn.Module()
    model.register_buffer("mean", gpucnn.tensor([1.0, 2.0]))
    model.register_buffer("later", None)
    assert list(model.state_dict()) == ["mean"]
    assert model.later is None
    model.register_buffer("later", gpucnn.tensor([3.0]))
    model.register_buffer("mean", gpucnn.tensor([4.0]))
    assert [name for name, _ in model.named_buffers()] == ["mean", "later"]
    assert [float(buffer.data[0]) for buffer in model.buffers()] == [4, 3]
    assert model.parameters() == []
    assert {buffer.dtype for buffer in model.astype(np.float64).buffers()} == {np.dtype(float)}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("a.b", None, "expected a name without dots, got 'a.b'"),
        ("", None, "expected a name without dots, got ''"),
        (3, None, "expected a name without dots, got 3"),
        ("weight", gpucnn.tensor([1.0]), "the attribute 'weight' exists already"),
        ("forward", gpucnn.tensor([1.0]), "the attribute 'forward' exists already"),
        ("mean", np.ones(2), "mean is a ndarray; expected a Tensor .*\n.*gpucnn.tensor"),
        ("mean", gpucnn.tensor([1.0], requires_grad=True), "mean is trained; .*\n.*detach"),
    ],
)
def test_register_buffer_refuses_what_pytorch_refuses(name, value, message):
    layer = nn.Linear(2, 2)
    with pytest.raises(ArgumentError, match=r"Linear\.register_buffer: " + message):
        layer.register_buffer(name, value)
    assert list(layer.state_dict()) == ["weight", "bias"]


# --- shared parts ---


def test_a_shared_module_is_walked_once_and_saved_under_both_names_as_in_pytorch():
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    for kit in (nn, torch.nn):
        layer = kit.Linear(2, 2)
        model = kit.Sequential(layer, kit.ReLU(), layer)
        assert list(model.modules()) == [model, layer, model[1]]
        assert [name for name, _ in model.named_modules()] == ["", "0", "1"]
        every = [name for name, _ in model.named_modules(remove_duplicate=False)]
        assert every == ["", "0", "1", "2"]
        assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias"]
        assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_children_are_the_direct_submodules_and_apply_visits_them_before_their_parent():
    model = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Tanh()))
    assert list(model.children()) == [model[0], model[1]]
    seen = []
    assert model.apply(seen.append) is model
    assert seen == [model[0], model[1][0], model[1], model]
