"""requires_grad = False on a parameter, and requires_grad_(False) on a module."""

import numpy as np
import pytest
from devices import host, tensor

from gpucnn import nn, no_grad, optim

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


@pytest.mark.parametrize("c", [3, 32])  # im2col by planes, Winograd or im2col by rows
@pytest.mark.parametrize("pool", [False, True])
def test_frozen_filters_leave_the_gradients_of_images_and_bias_as_they_are(c, pool, device, rng):
    conv = nn.Conv2d(c, 24, 2 if c == 3 else 3, generator=rng).to(device)
    model = nn.Sequential(conv, nn.MaxPool2d(2)) if pool else conv
    images, found = rng.standard_normal((3, 19, 19, c)).astype(np.float32), []
    for frozen in (False, True):
        conv.weight.requires_grad = not frozen
        model.zero_grad()
        x = tensor(images, device, grad=True)
        y = model(x)
        (y * y).sum().backward()
        assert (conv.weight.grad is None) == frozen
        found.append([host(x.grad), host(conv.bias.grad)])
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-4)


def test_frozen_filters_of_a_first_layer_build_no_columns_in_backward(monkeypatch, rng):
    from gpucnn.ops.conv2d import im2col

    conv = nn.Conv2d(3, 24, 2, generator=rng)
    conv.weight.requires_grad = False
    y = conv(tensor(rng.standard_normal((3, 9, 9, 3)), "cpu", np.float32))
    monkeypatch.setattr(im2col._Columns, "bands", None)
    y.sum().backward()
    np.testing.assert_allclose(conv.bias.grad, 3 * 64)


def test_batch_norm_with_a_frozen_scale_and_a_tiny_eps_equals_pytorchs(device, rng):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    ours = nn.BatchNorm2d(4, eps=1e-12, momentum=0.4).to(device)
    ours.weight.requires_grad = False
    theirs = torch.nn.BatchNorm2d(4, eps=1e-12, momentum=0.4)
    x = rng.standard_normal((5, 6, 6, 4)).astype(np.float32)
    x *= np.float32([1, 1e-4, 100, 0])  # variances of 1, 1e-8, 1e4 and 0
    x += np.float32([5, 0, 1000, 0])
    for _ in range(2):
        y, expected = ours(tensor(x, device)), theirs(torch.tensor(x).permute(0, 3, 1, 2))
    expected = expected.permute(0, 2, 3, 1)
    np.testing.assert_allclose(host(y), expected.detach().numpy(), rtol=1e-3, atol=2e-3)
    (y * y * y).sum().backward()
    (expected * expected * expected).sum().backward()
    assert ours.weight.grad is None
    np.testing.assert_allclose(host(ours.bias.grad), theirs.bias.grad.numpy(), rtol=1e-3, atol=1e-2)
    for name in ("running_mean", "running_var"):
        mine = host(getattr(ours, name).data)
        np.testing.assert_allclose(mine, getattr(theirs, name).numpy(), rtol=1e-3, atol=1e-12)
    with no_grad():
        y, expected = (
            ours.eval()(tensor(x, device)),
            theirs.eval()(torch.tensor(x).permute(0, 3, 1, 2)),
        )
    expected = expected.permute(0, 2, 3, 1).detach().numpy()
    assert np.isfinite(host(y)).all()
    np.testing.assert_allclose(host(y), expected, rtol=1e-3, atol=2e-3)
