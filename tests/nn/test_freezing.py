"""requires_grad = False on a parameter, and requires_grad_(False) on a module."""

import numpy as np
import pytest
from devices import host, tensor

from gpucnn import nn, optim

RULES = {
    "SGD": lambda p: optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    "AdamW": lambda p: optim.AdamW(p, 0.1, weight_decay=0.1),
}


@pytest.fixture
def model(rng):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, generator=rng),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 2, generator=rng),
    )


def step(model, optimizer, device, rng):
    x = tensor(rng.standard_normal((3, 4, 4, 3)), device, np.float32)
    model(x).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("rule", RULES)
def test_a_parameter_frozen_after_the_optimizer_was_built_keeps_its_bits(rule, model, device, rng):
    model.to(device)
    optimizer = RULES[rule](model.parameters())
    model[0].weight.requires_grad = False
    before = {name: host(array).copy() for name, array in model.state_dict().items()}
    step(model, optimizer, device, rng)
    assert model[0].weight.grad is None
    same = {name for name, x in model.state_dict().items() if np.array_equal(host(x), before[name])}
    assert same == {"0.weight"}


@pytest.mark.parametrize("rule", RULES)
def test_only_the_unfrozen_head_of_a_frozen_model_is_trained(rule, model, device, rng):
    model.to(device).requires_grad_(False)[4].requires_grad_()
    optimizer = RULES[rule]([p for p in model.parameters() if p.requires_grad])
    before = {name: host(array).copy() for name, array in model.state_dict().items()}
    step(model, optimizer, device, rng)
    moved = [n for n, x in model.state_dict().items() if not np.array_equal(host(x), before[n])]
    assert moved == ["1.running_mean", "1.running_var", "4.weight", "4.bias"]
    gradients = [n for n, p in model.named_parameters() if p.grad is not None]
    assert gradients == ["4.weight", "4.bias"]


def test_freezing_returns_the_module_and_is_undone(model):
    assert model.requires_grad_(False) is model
    assert not any(p.requires_grad for p in model.parameters())
    assert all(p.requires_grad for p in model.requires_grad_().parameters())


def test_a_frozen_model_records_no_graph(model, rng):
    x = tensor(rng.standard_normal((3, 4, 4, 3)), "cpu", np.float32)
    assert not model.requires_grad_(False)(x).requires_grad


def test_frozen_parameters_stay_in_the_state_and_are_counted_as_not_trained(model):
    names, everything = list(model.state_dict()), nn.summary(model, (4, 4, 3))
    model[0].requires_grad_(False)
    assert list(model.state_dict()) == names
    frozen = nn.summary(model, (4, 4, 3))
    assert frozen.parameters == everything.parameters
    assert everything.trainable - frozen.trainable == 4 * 27 + 4
    assert f"{4 * 27 + 4 + 8:,} of the parameters are not trained" in str(frozen)


def test_zero_grad_drops_every_gradient(model, rng):
    model(tensor(rng.standard_normal((3, 4, 4, 3)), "cpu", np.float32)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.zero_grad()
    assert all(p.grad is None for p in model.parameters())
