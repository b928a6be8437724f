"""Steps that are left out because they are not finite, and the bounds that make checks cheap."""

import numpy as np
import pytest

import gpucnn
from gpucnn import optim
from gpucnn.optim.finite import Overflow, step_if_finite

OPTIMIZERS = {
    "SGD": lambda p: optim.SGD(p, 0.3, 0.9, weight_decay=0.1),
    "nesterov": lambda p: optim.SGD(p, 0.3, 0.9, nesterov=True),
    "Adam": lambda p: optim.Adam(p, 0.1, weight_decay=0.1),
    "AdamW": lambda p: optim.AdamW(p, 0.1, weight_decay=25.0),
}


def make(name, rng, dtype=np.float32):
    shapes = ((3, 4), (5,), (1,))
    values = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    parameters = [gpucnn.tensor(value, requires_grad=True) for value in values]
    return OPTIMIZERS[name](parameters)


def set_gradients(optimizer, rng, scale=1.0):
    for p in optimizer.parameters:
        p.grad = (rng.standard_normal(p.shape) * scale).astype(p.dtype)


def arrays(optimizer):
    state = optimizer.state_dict()
    kept = [np.array(v) for v in state.values() if hasattr(v, "dtype")]
    return [*(p.data.copy() for p in optimizer.parameters), *kept, np.array(state["steps"])]


def same(a, b):
    return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_finite_step_has_the_bits_of_step_and_stays_within_the_bounds(name):
    ours, theirs = (make(name, np.random.default_rng(0)) for _ in range(2))
    rng, again = np.random.default_rng(1), np.random.default_rng(1)
    for i in range(30):
        set_gradients(ours, rng, 10.0 ** (i % 7 - 3))
        set_gradients(theirs, again, 10.0 ** (i % 7 - 3))
        assert step_if_finite(ours) is None
        theirs.step()
        assert same(arrays(ours), arrays(theirs))
        assert ours._bounds is not None  # not on trial
        assert np.abs(ours._flat).max() <= ours._bounds["value"]
        for what, bound in ours._bounds.items():
            if what != "value":
                assert np.abs(ours._state[what]).max() <= bound


def test_adams_bounds_hold_where_eps_exceeds_the_gradients():
    parameter = gpucnn.tensor(np.zeros(5, np.float32), requires_grad=True)
    optimizer = optim.Adam([parameter], 0.1, eps=10.0)
    for _ in range(10):
        parameter.grad = np.ones(5, np.float32)
        assert step_if_finite(optimizer) is None
        assert 0 < np.abs(optimizer._flat).max() <= optimizer._bounds["value"]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_gradient_that_is_not_finite_changes_nothing_and_is_named(name, value, at, rng):
    optimizer = make(name, rng)
    for _ in range(2):
        set_gradients(optimizer, rng)
        assert step_if_finite(optimizer) is None
    set_gradients(optimizer, rng)
    optimizer.parameters[at].grad.reshape(-1)[-1] = value
    before = arrays(optimizer)
    assert step_if_finite(optimizer) is optimizer.parameters[at]
    assert same(arrays(optimizer), before)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, dtype) for name in OPTIMIZERS for dtype in (np.float32, np.float64)),
        ("SGD", np.float16),  # Adam's eps is 0 in float16
    ],
)
@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid")
def test_an_update_that_overflows_is_taken_back_and_named(name, dtype, rng):
    optimizer = make(name, rng, dtype)
    set_gradients(optimizer, rng, 1e-2)
    assert step_if_finite(optimizer) is None
    set_gradients(optimizer, rng, 1e-2)
    largest = np.finfo(dtype).max
    optimizer.parameters[1].grad[2] = largest
    if name in ("SGD", "nesterov"):
        optimizer.lr = 10.0
    before = arrays(optimizer)
    overflow = step_if_finite(optimizer)
    assert isinstance(overflow, Overflow)
    assert overflow.parameter is optimizer.parameters[1]
    assert same(arrays(optimizer), before)


def test_large_but_finite_values_are_stepped_on_trial(rng):
    optimizer = make("SGD", rng)
    set_gradients(optimizer, rng, 1e25)
    assert step_if_finite(optimizer) is None
    assert optimizer.steps == 1
    assert np.isfinite(optimizer._flat).all()


def test_a_rule_without_bounds_is_stepped_on_trial(rng):
    class Own(optim.SGD):
        bounds_after = optim.Optimizer.bounds_after

    optimizer = Own([gpucnn.tensor([1.0, 2.0], requires_grad=True)], 0.1)
    set_gradients(optimizer, rng)
    assert step_if_finite(optimizer) is None
    optimizer.lr = 1e39
    set_gradients(optimizer, rng)
    before = arrays(optimizer)
    with np.errstate(all="ignore"):
        assert isinstance(step_if_finite(optimizer), Overflow)
    assert same(arrays(optimizer), before)
