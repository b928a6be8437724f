"""GradScaler: the scale grows and falls, steps that overflow change nothing, states resume."""

import numpy as np
import pytest
from devices import host, leaf, tensor

import gpucnn
from gpucnn import cuda, optim
from gpucnn.device import Device
from gpucnn.errors import ArgumentError, CheckpointError, DeviceMismatch, GraphError, ShapeError
from gpucnn.optim.loss_scaler import LEAST

SHAPES = [(3, 5), (1030,), *[(2,)] * 15]  # 17: two launches


def model(rng, device):
    return [leaf(rng.standard_normal(s).astype(np.float32), device) for s in SHAPES]


def step(scaler, optimizer, gradients, device, bad=None):
    """A step with these gradients of an unscaled loss; `bad` replaces an element of the last."""
    scale = np.float32(scaler.get_scale())
    for p, g in zip(optimizer.parameters, gradients, strict=True):
        p.grad = tensor(g * scale, device).data
    if bad is not None:
        g = host(optimizer.parameters[-1].grad).copy()
        g[-1] = bad
        optimizer.parameters[-1].grad = tensor(g, device).data
    scaler.step(optimizer)


def gradients(rng):
    return [rng.standard_normal(s).astype(np.float32) for s in SHAPES]


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam, optim.AdamW])
def test_a_scale_of_a_power_of_two_changes_no_bit_of_a_step(kind, device, rng):
    start, steps = gradients(rng), [gradients(rng) for _ in range(4)]
    plain, scaled = ([leaf(x.copy(), device) for x in start] for _ in range(2))
    ours, theirs = kind(scaled, 0.1), kind(plain, 0.1)
    scaler = optim.GradScaler(device, growth_interval=2)
    for given in steps:
        step(scaler, ours, given, device)
        for p, g in zip(plain, given, strict=True):
            p.grad = tensor(g, device).data
        theirs.step()
    assert scaler.get_scale() == 2**18
    for p, q in zip(scaled, plain, strict=True):
        assert host(p).tobytes() == host(q).tobytes()


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("kind", [optim.SGD, optim.AdamW])
def test_a_step_that_overflows_anywhere_changes_nothing_and_does_not_count(kind, bad, device, rng):
    parameters = model(rng, device)
    optimizer = kind(parameters, 0.1)
    scaler = optim.GradScaler(device)
    step(scaler, optimizer, gradients(rng), device)

    def everything():
        state = {k: v for k, v in optimizer.state_dict().items() if hasattr(v, "dtype")}
        return [host(x).tobytes() for x in (*parameters, *state.values())]

    before = everything()
    assert not scaler.overflowed()
    step(scaler, optimizer, gradients(rng), device, bad)
    assert everything() == before
    assert scaler.overflowed()
    assert (scaler.get_scale(), scaler.skipped) == (2**15, 1)
    step(scaler, optimizer, gradients(rng), device)
    assert everything() != before
    assert not scaler.overflowed()
    if kind is optim.AdamW:
        assert optimizer.state_dict()["counts"].tolist() == [2] * len(SHAPES)


def test_the_scale_follows_pytorchs_rule(device, rng):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    p, q = leaf(np.ones(3, np.float32), device), torch.ones(3, requires_grad=True)
    optimizer, oracle = optim.SGD([p], 0.01), torch.optim.SGD([q], 0.01)
    settings = {"growth_factor": 3.0, "backoff_factor": 0.25, "growth_interval": 3}
    ours = optim.GradScaler(device, init_scale=1000.0, **settings)
    theirs = torch.amp.GradScaler("cpu", init_scale=1000.0, **settings)
    for _ in range(40):
        bad = rng.random() < 0.25
        ours.backward((p * p).sum())
        theirs.scale((q * q).sum()).backward()
        if bad:
            p.grad = tensor(np.float32([1, np.nan, 2]), device).data
            q.grad[1] = np.inf
        ours.step(optimizer)
        theirs.step(oracle)
        theirs.update()
        optimizer.zero_grad()
        oracle.zero_grad()
        assert ours.get_scale() == theirs.get_scale()
        np.testing.assert_allclose(host(p), q.detach().numpy(), rtol=1e-6)
    assert ours.skipped > 3


def test_scale_and_backward_give_the_same_scaled_gradients(device, rng):
    x = rng.standard_normal(5).astype(np.float32)
    found = []
    for way in ("scale", "backward"):
        p = leaf(x, device)
        loss = (p * p).sum()
        scaler = optim.GradScaler(device, init_scale=4)
        scaler.scale(loss).backward() if way == "scale" else scaler.backward(loss)
        found.append(host(p.grad))
    np.testing.assert_array_equal(found[0], 8 * x)
    np.testing.assert_array_equal(found[1], 8 * x)


def test_unscaled_gradients_can_be_clipped_and_are_not_divided_again(device, rng):
    p = leaf(np.ones(4, np.float32), device)
    optimizer, scaler = optim.SGD([p], 1.0), optim.GradScaler(device)
    scaler.backward((p * p).sum() * 3.0)
    scaler.unscale_(optimizer)
    assert optim.clip_grad_norm_([p], 1.0) == 12
    scaler.step(optimizer)
    np.testing.assert_allclose(host(p), 0.5, rtol=1e-6)
    p.grad = tensor(np.float32([1, np.inf, 1, 1]), device).data
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    np.testing.assert_allclose(host(p), 0.5, rtol=1e-6)
    optimizer.zero_grad()
    scaler.backward((p * p).sum())
    scaler.step(optimizer)  # divides again
    np.testing.assert_allclose(host(p), -0.5, rtol=1e-6)


@pytest.mark.parametrize("unscale", [False, True])
def test_a_second_optimizer_is_not_divided_by_the_scale_of_the_first_ones_next_step(
    unscale, device
):
    p, q = (leaf(np.ones(4, np.float32), device) for _ in range(2))
    first, second = optim.SGD([p], 0.1), optim.SGD([q], 0.1)
    scaler = optim.GradScaler(device, growth_interval=1)  # every step changes the scale
    scaler.backward((p * q).sum())
    scaler.step(first)
    with pytest.raises(GraphError, match="another optimizer's step has adapted the scale"):
        (scaler.unscale_ if unscale else scaler.step)(second)
    np.testing.assert_array_equal(host(q), np.ones(4))
    second.zero_grad()
    scaler.backward((q * 2.0).sum())  # one after the other is right
    scaler.step(second)
    np.testing.assert_allclose(host(q), 0.8, rtol=1e-6)


@pytest.mark.usefixtures("current")
def test_a_run_resumed_from_a_state_has_the_same_bits(device, rng):
    start, steps = gradients(rng), [gradients(rng) for _ in range(8)]
    bad = {2: np.inf, 5: np.nan}

    def build():
        parameters = [leaf(x.copy(), device) for x in start]
        return parameters, optim.Adam(parameters, 0.1), optim.GradScaler(device, growth_interval=2)

    parameters, optimizer, scaler = build()
    for i, given in enumerate(steps):
        step(scaler, optimizer, given, device, bad.get(i))
        if i == 3:
            saved = [host(p).copy() for p in parameters]
            states = optimizer.state_dict(), scaler.state_dict()
            states = ({k: np.copy(host(v)) if hasattr(v, "dtype") else v
                       for k, v in states[0].items()}, states[1])  # fmt: skip
    again, other, resumed = build()
    for p, x in zip(again, saved, strict=True):
        p.data[...] = tensor(x, device).data
    other.load_state_dict(states[0])
    resumed.load_state_dict(states[1])
    assert states[1] == {"scale": 2.0**16, "good_steps": 1, "skipped": 1}
    for i in range(4, 8):
        step(resumed, other, steps[i], device, bad.get(i))
    assert resumed.state_dict() == scaler.state_dict()
    for p, q in zip(parameters, again, strict=True):
        assert host(p).tobytes() == host(q).tobytes()


def test_at_the_least_scale_an_overflow_sets_the_guard(gpu, rng):
    p = leaf(np.ones(3, np.float32), gpu)
    optimizer, scaler = optim.SGD([p], 0.1), optim.GradScaler(gpu, init_scale=2 * LEAST)
    optimizer.guard = tensor(np.zeros(1, np.int32), gpu).data
    for expected in (0, 1):
        p.grad = tensor(np.float32([1, np.nan, 1]), gpu).data
        scaler.step(optimizer)
        assert scaler.get_scale() == LEAST
        assert optimizer.guard.item() == expected
    assert host(p).tolist() == [1, 1, 1]


@pytest.mark.usefixtures("current")
def test_a_step_costs_a_launch_for_16_parameters_and_the_host_never_waits(gpu, rng):
    parameters = model(rng, gpu)
    optimizer, scaler = optim.SGD(parameters, 0.1), optim.GradScaler(gpu)
    for p in parameters:
        p.grad = p.data * 1
    counters = getattr(Device.parse(gpu).xp.cuda, "counters", None)  # of the simulator
    before = counters and counters.host_syncs
    with cuda.count_launches() as launches:
        scaler.step(optimizer)
    assert launches == {"check_gradients": 2, "sgd_step": 2}
    assert before == (counters and counters.host_syncs)


def test_a_disabled_scaler_only_steps(device):
    p = leaf(np.ones(3, np.float32), device)
    optimizer, scaler = optim.SGD([p], 0.5), optim.GradScaler(device, enabled=False)
    loss = p.sum()
    assert scaler.scale(loss) is loss
    scaler.backward(loss)
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    assert scaler.get_scale() == 1
    assert host(p).tolist() == [0.5] * 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init_scale": 0}, "init_scale must be between"),
        ({"init_scale": float("inf")}, "init_scale must be between"),
        ({"growth_factor": 1}, "growth_factor must be above 1"),
        ({"backoff_factor": 1}, "backoff_factor between 0 and 1"),
        ({"growth_interval": 0}, "growth_interval must be a positive integer, got 0"),
        ({"growth_interval": 2.5}, "growth_interval must be a positive integer"),
    ],
)
def test_arguments_out_of_range_are_refused(settings, message):
    with pytest.raises(ArgumentError, match=message):
        optim.GradScaler("cpu", **settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": 0.0}, "scale: expected a number of"),
        ({"scale": "65536"}, "scale: expected a number of"),
        ({"good_steps": -1}, "good_steps: expected an int"),
        ({"more": 1}, "more: unexpected"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(change, message):
    scaler = optim.GradScaler("cpu")
    state = scaler.state_dict()
    with pytest.raises(CheckpointError, match=f"GradScaler: the state does not fit: {message}"):
        scaler.load_state_dict({**state, **change})
    assert scaler.state_dict() == state


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_parameters_in_half_precision_are_scaled_and_skipped_too(dtype, device):
    p = leaf(np.ones(3), device, dtype)
    optimizer, scaler = optim.SGD([p], 0.5), optim.GradScaler(device, init_scale=1024)
    for value, expected in ((1.0, 0.5), (np.inf, 0.5), (1.0, 0.0)):
        p.grad = tensor(np.full(3, value * scaler.get_scale()), device, dtype).data
        scaler.step(optimizer)
        assert host(p).tolist() == [expected] * 3
    assert scaler.skipped == 1


@pytest.mark.usefixtures("compiler")
def test_a_loss_or_parameters_elsewhere_are_refused():
    scaler = optim.GradScaler("cpu")
    p = gpucnn.tensor(np.ones(2, np.float32), device="cudasim", requires_grad=True)
    with pytest.raises(DeviceMismatch, match=r"loss is on cudasim.*\n.*device='cudasim'"):
        scaler.scale(p.sum())
    p.grad = p.data * 1
    with pytest.raises(DeviceMismatch, match=r"parameters are on cudasim.*\n.*device='cudasim'"):
        scaler.step(optim.SGD([p], 0.1))
    with pytest.raises(ShapeError, match="one element"):
        scaler.scale(gpucnn.tensor([1.0, 2.0]))
