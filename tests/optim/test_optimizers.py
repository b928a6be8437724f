import numpy as np
import pytest
from devices import assert_close, host, in_both_dtypes, leaf, tensor

import gpucnn
from gpucnn import nn, optim
from gpucnn.device import Device
from gpucnn.errors import ArgumentError, DtypeError

CASES = [
    (optim.SGD, "SGD", {"lr": 0.1}),
    (optim.SGD, "SGD", {"lr": 0.1, "momentum": 0.9}),
    (optim.SGD, "SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    (optim.SGD, "SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    (optim.Adam, "Adam", {"lr": 0.01}),
    (optim.Adam, "Adam", {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}),
    (optim.Adam, "Adam", {"lr": 0.01, "betas": (0.0, 0.0), "eps": 0.1}),
    (optim.AdamW, "AdamW", {"lr": 0.01, "weight_decay": 0.1}),
]


SHAPES = [(3, 4), (5,), (300, 7), *[(2,)] * 15]  # 18: a launch takes 16


@pytest.mark.parametrize(("kind", "name", "settings"), CASES, ids=str)
@in_both_dtypes
def test_parameters_without_a_gradient_at_some_steps_equal_pytorchs(
    kind, name, settings, dtype, device, rng
):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    start = [rng.standard_normal(shape).astype(dtype) for shape in SHAPES]
    ours = [leaf(x.copy(), device) for x in start]
    theirs = [torch.tensor(x.astype(np.float64), requires_grad=True) for x in start]
    optimizer, oracle = kind(ours, **settings), getattr(torch.optim, name)(theirs, **settings)
    for step in range(8):
        for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            gradient = rng.standard_normal(p.shape).astype(dtype)
            moves = step >= i % 5 and rng.random() < 0.6  # some begin at the fourth step or later
            p.grad = tensor(gradient, device).data if moves else None
            q.grad = torch.tensor(gradient.astype(np.float64)) if moves else None
        optimizer.step()
        oracle.step()
    for p, q in zip(ours, theirs, strict=True):
        assert_close(p, q.detach().numpy())


@pytest.mark.parametrize(("kind", "name", "settings"), CASES, ids=str)
@in_both_dtypes
def test_ten_steps_equal_pytorchs(kind, name, settings, dtype, device, rng):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    start = [rng.standard_normal(shape).astype(dtype) for shape in ((3, 4), (5,), (70_000,))]
    ours = [leaf(x.copy(), device) for x in start]
    theirs = [torch.tensor(x.astype(np.float64), requires_grad=True) for x in start]
    optimizer, oracle = kind(ours, **settings), getattr(torch.optim, name)(theirs, **settings)
    for _ in range(10):
        for p, q in zip(ours, theirs, strict=True):
            gradient = rng.standard_normal(p.shape).astype(dtype)
            p.grad = tensor(gradient, device).data
            q.grad = torch.tensor(gradient.astype(np.float64))
        optimizer.step()
        oracle.step()
    for p, q in zip(ours, theirs, strict=True):
        assert p.dtype == dtype
        assert_close(p, q.detach().numpy())


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam, optim.AdamW])
def test_parameters_become_views_of_one_buffer_and_keep_their_values(kind, rng):
    layer = nn.Linear(3, 5)
    before = {k: v.copy() for k, v in layer.state_dict().items()}
    kind(layer.parameters(), lr=0.1)
    assert layer.weight.data.base is layer.bias.data.base
    for name, value in layer.state_dict().items():
        assert np.array_equal(value, before[name])
        assert value.__array_interface__["data"][0] % 64 == layer.weight.data.base.ctypes.data % 64


@in_both_dtypes
@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam, optim.AdamW])
def test_a_step_does_not_change_gradients_or_parameters_without_one(kind, dtype, device):
    a, b = leaf([1.0, 2.0], device, dtype), leaf([3.0], device, dtype)
    optimizer = kind([a, b], lr=0.1, weight_decay=0.1)
    a.grad = tensor([0.5, -0.5], device, dtype).data
    optimizer.step()
    assert host(a.grad).tolist() == [0.5, -0.5]
    assert host(a).tolist() != [1.0, 2.0]
    assert host(b).tolist() == [3.0]
    assert a.dtype == dtype
    optimizer.zero_grad()
    assert a.grad is None


P = gpucnn.tensor([1.0], requires_grad=True)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: optim.SGD([], 0.1), "no parameters"),
        (lambda: optim.SGD([P], -0.1), "lr must not be negative, got -0.1"),
        (lambda: optim.SGD([P], float("nan")), "lr must not be negative, got nan"),
        (lambda: optim.SGD([P, P], 0.1), "listed twice"),
        (lambda: optim.SGD([P * 1.0], 0.1), "expected leaf tensors"),
        (lambda: optim.SGD([P], 0.1, momentum=1.0), r"momentum must be in \[0, 1\)"),
        (lambda: optim.SGD([P], 0.1, nesterov=True), "nesterov needs a momentum"),
        (lambda: optim.SGD([P], 0.1, weight_decay=-1), "weight_decay must not be negative"),
        (lambda: optim.Adam([P], betas=(0.9, 1.0)), r"two numbers in \[0, 1\)"),
        (lambda: optim.Adam([P], eps=0), "eps must be positive"),
        (lambda: optim.Adam([P], betas=0.9), r"two numbers in \[0, 1\), got 0.9"),
        (lambda: optim.SGD([P], momentum="0.9"), "momentum must be a number, got a str"),
        (lambda: optim.clip_grad_norm_([P], 0), "max_norm must be positive"),
    ],
)
def test_settings_out_of_range_are_refused(build, message):
    with pytest.raises(ArgumentError, match=message):
        build()


def test_parameters_of_two_dtypes_are_refused():
    with pytest.raises(DtypeError, match="both float32 and float64"):
        optim.SGD([P, gpucnn.tensor(np.ones(1), requires_grad=True)], 0.1)


@in_both_dtypes
def test_clipping_scales_the_joint_norm_down_to_max_norm_and_never_up(dtype, device):
    a, b = leaf([0.0, 0.0], device, dtype), leaf([0.0], device, dtype)
    a.grad, b.grad = tensor([3.0, 0.0], device, dtype).data, tensor([4.0], device, dtype).data
    assert optim.clip_grad_norm_([a, b], 10.0) == 5
    assert host(b.grad).tolist() == [4.0]
    assert optim.clip_grad_norm_([a, b], 1.0) == 5
    np.testing.assert_allclose([*host(a.grad), *host(b.grad)], [0.6, 0, 0.8], rtol=1e-6)


def test_clipping_on_a_gpu_synchronizes_once(compiler):
    parameters = [leaf(np.ones(n, np.float32), "cudasim") for n in range(1, 6)]
    for p in parameters:
        p.grad = p.data * 2
    counters = Device.parse("cudasim").xp.cuda.counters
    before = counters.host_syncs
    optim.clip_grad_norm_(parameters, 1.0)
    assert counters.host_syncs == before + 1


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam, optim.AdamW])
def test_a_frozen_parameter_is_not_updated_even_by_weight_decay(kind, device):
    layer = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).to(device)
    for p in layer[0].parameters():
        p.requires_grad = False
    before = {name: host(x).copy() for name, x in layer.state_dict().items()}
    optimizer = kind(layer.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        layer(tensor(np.ones((2, 3), np.float32), device)).sum().backward()
        optimizer.step()
    for name, x in layer.state_dict().items():
        assert np.array_equal(host(x), before[name]) == name.startswith("0."), name
    for p in layer[0].parameters():  # unfrozen, they are trained by the same optimizer
        p.requires_grad = True
    layer(tensor(np.ones((2, 3), np.float32), device)).sum().backward()
    optimizer.step()
    assert not np.array_equal(host(layer[0].weight), before["0.weight"])
