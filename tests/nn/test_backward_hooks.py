"""Backward hooks of a module: when they run, what they see and what they replace."""

import numpy as np
import pytest
from devices import host, leaf, tensor

import gpucnn
from gpucnn import nn
from gpucnn.errors import ArgumentError, GpucnnError, GraphError


class Two(nn.Module):
    """Two inputs and two outputs."""

    def forward(self, a, b):
        return a * b, a + b


def torch_two(torch):
    return type("Two", (torch.nn.Module,), {"forward": Two.forward})()


def test_a_hook_gets_the_gradients_of_input_and_output(device, rng):
    layer = nn.Linear(3, 2).to(device)
    x, dy = leaf(rng.random((4, 3)).astype(np.float32), device), rng.random((4, 2))
    seen = []
    layer.register_full_backward_hook(lambda *given: seen.append(given))
    y = layer(x)
    y.backward(tensor(dy.astype(np.float32), device).data)
    ((module, grad_input, grad_output),) = seen
    assert module is layer
    np.testing.assert_array_equal(host(grad_output[0]), dy.astype(np.float32))
    np.testing.assert_array_equal(host(grad_input[0]), host(x.grad))
    assert len(grad_input) == len(grad_output) == 1


def test_hooks_see_and_replace_what_pytorchs_do(rng):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    values = [rng.standard_normal((2, 3)) for _ in range(2)]
    runs = []
    for module, given in (
        (Two(), [gpucnn.tensor(v.copy(), requires_grad=True) for v in values]),
        (torch_two(torch), [torch.tensor(v.copy(), requires_grad=True) for v in values]),
    ):
        seen = []

        def note(module, grad_input, grad_output, seen=seen):
            seen.extend(np.asarray(g) for g in (*grad_input, *grad_output))

        module.register_full_backward_hook(note)
        module.register_full_backward_hook(lambda m, i, o: (i[0] * 2, i[1] * 3))
        module.register_full_backward_hook(note)
        product, total = module(*given)
        (product.sum() + (total * total).sum()).backward()
        runs.append([*seen, *(np.asarray(x.grad) for x in given)])
    assert len(runs[0]) == len(runs[1]) == 10
    for ours, theirs in zip(*runs, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-14)


def test_an_input_that_requires_no_gradient_and_an_unused_output_give_none(device):
    seen, module = [], Two()
    module.register_full_backward_hook(lambda module, *gradients: seen.append(gradients))
    a, b = tensor([1.0], device), leaf([2.0], device)
    product, _ = module(a, b)
    product.sum().backward()
    ((grad_input, grad_output),) = seen
    assert grad_input[0] is None
    assert grad_output[1] is None
    assert host(grad_input[1]).tolist() == [1]
    assert host(grad_output[0]).tolist() == [1]


def test_a_hook_of_a_first_layer_runs_although_no_input_requires_a_gradient():
    layer, seen = nn.Linear(2, 2), []
    layer.register_full_backward_hook(lambda module, *gradients: seen.append(gradients))
    layer(gpucnn.ones(1, 2)).sum().backward()
    ((grad_input, grad_output),) = seen
    assert grad_input == (None,)
    assert grad_output[0].tolist() == [[1, 1]]
    assert layer.weight.grad is not None
    layer.register_full_backward_hook(lambda module, given, _: (np.ones((1, 2), np.float32),))
    with pytest.raises(GraphError, match="no input requires one"):
        layer(gpucnn.ones(1, 2)).sum().backward()


@pytest.mark.parametrize("hooked", range(6))
def test_a_hook_that_returns_none_changes_no_bit_of_any_gradient(hooked, device, rng):
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5), nn.ReLU()
    ).to(device)
    x = leaf(rng.standard_normal((2, 8, 8, 3)).astype(np.float32), device)
    model[hooked].register_forward_hook(lambda *given: None)  # not fused, in both runs
    runs, calls = [], []
    for again in range(2):
        if again:
            model[hooked].register_full_backward_hook(lambda *given: calls.append(1))
        model.zero_grad()
        x.zero_grad()
        (model(x) * 0.5).sum().backward()
        runs.append([host(t.grad).copy() for t in (x, *model.parameters())])
    assert calls == [1]
    for before, after in zip(*runs, strict=True):
        np.testing.assert_array_equal(before, after)


def test_a_kept_graph_calls_the_hook_in_each_pass_and_gradients_share_no_memory():
    module, calls = Two(), []
    module.register_full_backward_hook(lambda module, given, _: calls.append(given))
    a, b = (gpucnn.tensor([v], requires_grad=True) for v in (2.0, 3.0))
    _, total = module(a, b)  # a + b: both gradients are the same array
    total.sum().backward(retain_graph=True)
    assert not np.shares_memory(a.grad, b.grad)
    assert not any(np.shares_memory(a.grad, g) for g in calls[0])
    total.sum().backward()
    assert len(calls) == 2
    assert a.grad.tolist() == b.grad.tolist() == [2]


def test_a_shared_module_calls_its_hook_for_each_of_its_passes():
    layer, calls = nn.Tanh(), []
    layer.register_full_backward_hook(lambda module, given, output: calls.append(output[0].item()))
    x = gpucnn.tensor([0.0], requires_grad=True)
    (layer(layer(x) * 2.0) * 3.0).sum().backward()
    assert calls == [3, 6]


def test_one_tensor_as_both_arguments_gets_the_sum_of_the_gradients():
    module = Two()
    module.register_full_backward_hook(lambda module, given, _: None)
    x = gpucnn.tensor([3.0], requires_grad=True)
    module(x, x)[0].sum().backward()
    assert x.grad.tolist() == [6]


def test_hooks_do_not_run_under_no_grad_or_once_they_are_removed():
    layer, calls = nn.Linear(2, 2), []
    handle = layer.register_full_backward_hook(lambda *given: calls.append(1))
    with gpucnn.no_grad():
        assert layer(gpucnn.ones(1, 2)).is_leaf
    handle.remove()
    layer(gpucnn.ones(1, 2)).sum().backward()
    assert calls == []


def test_gradients_and_outputs_that_do_not_fit_are_errors_that_name_the_cause():
    layer = nn.ReLU()
    x = gpucnn.ones(2, requires_grad=True)
    with (
        layer.register_full_backward_hook(lambda *given: (None, None)),
        pytest.raises(GraphError, match="ReLU has 1 inputs, the hook returned 2 gradients"),
    ):
        layer(x).sum().backward()
    for wrong in (np.ones(3, np.float32), 1.0):
        with (
            layer.register_full_backward_hook(lambda *given, wrong=wrong: wrong),
            pytest.raises(GpucnnError, match="backward hook: backward, input 0"),
        ):
            layer(x).sum().backward()

    class Named(nn.Module):
        def forward(self, x):
            return {"y": x}

    named = Named()
    named.register_full_backward_hook(lambda *given: None)
    with pytest.raises(ArgumentError, match="Named returned a dict; expected a tensor, or a tuple"):
        named(x)
