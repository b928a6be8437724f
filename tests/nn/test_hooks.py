"""Forward hooks and pre-hooks of a module, which also keep a Sequential from fusing it."""

import copy

import numpy as np
import pytest

import gpucnn
from gpucnn import nn


def ones(*shape):
    return gpucnn.tensor(np.ones(shape, np.float32))


def test_a_hook_gets_module_inputs_and_output_and_keeps_the_output_by_returning_none():
    layer, x, seen = nn.Linear(2, 3), ones(1, 2), []
    layer.register_forward_hook(lambda *given: seen.append(given))
    y = layer(x)
    ((module, args, output),) = seen
    assert module is layer
    assert args == (x,)
    assert output is y


def test_hooks_run_in_order_and_each_may_replace_the_output():
    layer = nn.Reshape(2)
    layer.register_forward_hook(lambda module, args, output: output + 1.0)
    layer.register_forward_hook(lambda module, args, output: output * 3.0)
    assert layer(ones(1, 2)).numpy().tolist() == [[6, 6]]


def test_an_observer_sees_the_output_after_the_hooks():
    layer, seen = nn.ReLU(), []
    layer.register_forward_hook(lambda module, args, output: output + 1.0)
    with nn.observe(lambda module, args, output: seen.append(output.item())):
        layer(ones(1))
    assert seen == [2]


def test_a_pre_hook_sees_the_arguments_and_may_replace_them():
    layer, seen, x = nn.ReLU(), [], ones(1, 2)
    layer.register_forward_pre_hook(lambda *given: seen.append(given))
    layer.register_forward_pre_hook(lambda module, args: args[0] * 2.0)  # the only argument
    layer.register_forward_pre_hook(lambda module, args: (args[0] + 1.0,))
    layer.register_forward_hook(lambda module, args, output: seen.append(args[0].tolist()))
    assert layer(x).tolist() == [[3, 3]]
    assert seen[0][0] is layer
    assert seen[0][1] == (x,)
    assert seen[1] == [[3, 3]]


def test_pre_hooks_and_hooks_run_as_in_pytorch():
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    outputs = []
    for layer, x in ((nn.ReLU(), ones(2)), (torch.nn.ReLU(), torch.ones(2))):
        layer.register_forward_hook(lambda module, args, output: output + args[0])
        layer.register_forward_pre_hook(lambda module, args: args[0] * 3)
        with layer.register_forward_pre_hook(lambda module, args: (args[0] - 1,)):
            outputs.append(layer(x).tolist())
        outputs.append(layer(x).tolist())
    assert outputs == [[4, 4], [6, 6]] * 2


def test_a_removed_hook_is_not_called_and_removing_it_twice_does_no_harm():
    layer, calls = nn.ReLU(), []
    first = layer.register_forward_hook(lambda *given: calls.append(1))
    layer.register_forward_hook(lambda *given: calls.append(2))
    first.remove()
    first.remove()
    layer(ones(1))
    assert calls == [2]


def test_a_handle_as_a_context_manager_removes_its_hook_at_the_end():
    layer, calls = nn.ReLU(), []
    with layer.register_forward_hook(lambda *given: calls.append(1)):
        layer(ones(1))
    layer(ones(1))
    assert calls == [1]


def test_a_hook_may_remove_itself():
    layer, calls = nn.ReLU(), []

    def once(*given):
        calls.append(1)
        handle.remove()

    handle = layer.register_forward_hook(once)
    layer(ones(1))
    layer(ones(1))
    assert calls == [1]


def test_a_hook_belongs_to_one_module_and_a_copy_has_hooks_of_its_own():
    layer, calls = nn.ReLU(), []
    handle = layer.register_forward_hook(lambda *given: calls.append(1))
    twin = copy.deepcopy(layer)
    handle.remove()
    nn.ReLU()(ones(1))
    layer(ones(1))
    assert calls == []
    twin(ones(1))
    assert calls == [1]


def test_a_module_used_as_a_hook_is_not_a_part_of_the_hooked_module():
    class Probe(nn.Module):
        def __init__(self):
            self.gain = nn.Parameter(np.ones(1, np.float32))

        def forward(self, module, args, output):
            return output * self.gain

    layer = nn.Linear(2, 2)
    layer.register_forward_hook(Probe())
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert list(layer.children()) == []
    assert layer(ones(1, 2)).shape == (1, 2)


def test_a_pre_hook_keeps_a_sequential_from_fusing_its_layer():
    model, seen = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), []
    model[0].weight.data[...] = -1.0
    model[1].register_forward_pre_hook(lambda module, args: seen.append(args[0].tolist()))
    assert model(ones(1, 2)).tolist() == [[0, 0]]
    assert seen == [[[-2, -2]]]


@pytest.mark.parametrize("hooked", [0, 1, 2], ids=["Conv2d", "ReLU", "MaxPool2d"])
def test_a_sequential_runs_a_hooked_layer_by_itself_and_the_result_has_the_same_bits(hooked, rng):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2))
    x = gpucnn.tensor(rng.standard_normal((1, 8, 8, 3), dtype=np.float32))
    alone = [model[0](x)]
    alone += [model[1](alone[0])]
    alone += [model[2](alone[1])]
    seen = []
    with model[hooked].register_forward_hook(lambda *given: seen.append(given)):
        y = model(x)
    ((module, args, output),) = seen
    assert module is model[hooked]
    assert len(args) == 1
    np.testing.assert_array_equal(output.data, alone[hooked].data)
    np.testing.assert_array_equal(y.data, alone[2].data)
    np.testing.assert_array_equal(model(x).data, alone[2].data)
    assert len(seen) == 1
