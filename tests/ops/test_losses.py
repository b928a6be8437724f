"""l1_loss, smooth_l1_loss, binary_cross_entropy_with_logits, and the activations that they use."""

import numpy as np
import pytest
from devices import assert_close, host, in_both_dtypes, leaf, results, tensor

import gpucnn
from gpucnn import nn, ops
from gpucnn.errors import ArgumentError, DtypeError, ShapeError
from gpucnn.testing import gradcheck

REDUCTIONS = ["mean", "sum", "none"]
BCE = ops.binary_cross_entropy_with_logits


def compare(ours, theirs, arrays, device, dtype):
    """Compare values and gradients of a loss with PyTorch's in float64."""
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    leaves = [leaf(a, device, dtype) for a in arrays]
    given = [torch.tensor(a, requires_grad=True) for a in arrays]
    y, z = ours(*leaves), theirs(torch.nn.functional, *given)
    dy = np.random.default_rng(3).standard_normal(tuple(z.shape))
    z.backward(torch.tensor(dy))
    found = results(y, dy, *leaves)
    for mine, exact in zip(found, (z.detach(), *(t.grad for t in given)), strict=True):
        assert_close(mine, exact.numpy())


@pytest.mark.parametrize("reduction", REDUCTIONS)
@in_both_dtypes
def test_values_and_gradients_of_both_operands_are_pytorchs(reduction, dtype, device, rng):
    x, target = 3 * rng.standard_normal((4, 5)), rng.random((4, 5))
    how = {"reduction": reduction}
    for ours, theirs in (
        (BCE, lambda F, *t: F.binary_cross_entropy_with_logits(*t, **how)),
        (ops.l1_loss, lambda F, *t: F.l1_loss(*t, **how)),
        (ops.smooth_l1_loss, lambda F, *t: F.smooth_l1_loss(*t, **how)),
    ):
        compare(lambda *t, f=ours: f(*t, **how), theirs, (x, target), device, dtype)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_weights_of_elements_and_of_positive_targets_are_pytorchs(reduction, device, rng):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    x, target = 3 * rng.standard_normal((4, 5)), rng.random((4, 5))
    weight, positive = rng.random((4, 1)) + 0.5, rng.random(5) + 0.5

    def theirs(F, *t):
        both = torch.tensor(weight), reduction, torch.tensor(positive)
        return F.binary_cross_entropy_with_logits(*t, both[0], None, None, *both[1:])

    compare(lambda *t: BCE(*t, weight, reduction, positive), theirs, (x, target), device, float)


def test_large_logits_neither_overflow_nor_lose_their_gradient(device):
    x = leaf([-1e4, -50.0, 50.0, 1e4, np.inf, -np.inf], device, np.float32)
    target = tensor([0, 0, 1, 1, 1 / 2, 1 / 2], device, np.float32)
    y, dx = results(BCE(x, target, reduction="none"), np.ones(6), x)
    np.testing.assert_allclose(y, [0, np.exp(-50), np.exp(-50), 0, np.inf, np.inf], rtol=1e-5)
    np.testing.assert_allclose(dx, [0, np.exp(-50), -np.exp(-50), 0, 0.5, -0.5], rtol=1e-5)


def test_they_pass_gradcheck(device, rng):
    x, target = rng.standard_normal((3, 4)), rng.random((3, 4))
    for reduction in REDUCTIONS:
        gradcheck(lambda *t, r=reduction: BCE(*t, 2.0, r, 3.0), x, target, device=device)
        gradcheck(lambda *t, r=reduction: ops.l1_loss(*t, r), x, target, device=device)
        gradcheck(lambda *t, r=reduction: ops.smooth_l1_loss(*t, r, 0.7), x, target, device=device)


def test_a_difference_of_zero_has_gradient_zero_and_beta_zero_is_l1_loss(device):
    x, target = leaf([1.0, 3.0, -2.0], device, np.float32), tensor([1, 1, 1], device, np.float32)
    for loss in (ops.l1_loss(x, target, "sum"), ops.smooth_l1_loss(x, target, "sum", 0.0)):
        x.grad = None
        y, dx = results(loss, 1.0, x)
        assert y == 5
        assert dx.tolist() == [0, 1, -1]


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_a_loss_of_half_precision_is_computed_in_float32(half, device, rng):
    pytest.importorskip("ml_dtypes")
    x = tensor(30 * rng.standard_normal((300, 500)), "cpu", np.float32).astype(half)
    target = tensor(rng.random((300, 500)), device, np.float32)
    for loss in (BCE, ops.l1_loss, ops.smooth_l1_loss):  # in float16 the sum would be infinite
        exact = loss(x.astype(np.float32), target.to("cpu")).item()
        with gpucnn.autocast(half):
            y = loss(x.to(device), target)
        assert y.dtype == np.float32
        assert y.item() == pytest.approx(exact, rel=1e-5)
        assert loss(x.to(device), target).dtype == x.dtype


def test_the_modules_pass_their_settings_on(device, rng):
    x, target = (tensor(a, device, np.float32) for a in (rng.standard_normal((3, 4)), np.eye(3, 4)))
    for module, loss in (
        (nn.L1Loss("sum"), ops.l1_loss(x, target, "sum")),
        (nn.SmoothL1Loss("none", 0.5), ops.smooth_l1_loss(x, target, "none", 0.5)),
        (nn.BCEWithLogitsLoss([1, 2, 3, 4], "sum", 2.0), BCE(x, target, [1, 2, 3, 4], "sum", 2.0)),
    ):
        np.testing.assert_array_equal(host(module(x, target)), host(loss))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: BCE(x, x, reduction="max"), ArgumentError, "'max' is unknown; expected mean"),
        (lambda x: nn.L1Loss("max"), ArgumentError, "L1Loss: reduction 'max' is unknown"),
        (lambda x: BCE(x, x[0]), ShapeError, r"x \(3, 4\) and target \(4,\) differ"),
        (lambda x: BCE(x, x, np.ones((2, 3, 4))), ShapeError, r"weight \(2, 3, 4\) does not"),
        (lambda x: BCE(x, x, pos_weight=np.ones(3)), ShapeError, r"pos_weight \(3,\) does not"),
        (lambda x: BCE(x, x.astype(np.float64)), DtypeError, "target is float64"),
        (lambda x: ops.l1_loss(x[:0], x[:0]), ShapeError, "nothing to average"),
        (lambda x: ops.smooth_l1_loss(x, x, beta=-1), ArgumentError, "beta must not be negative"),
        (lambda x: ops.softplus(x, 0), ArgumentError, "softplus: beta must be positive, got 0"),
    ],
)
def test_what_makes_no_sense_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(gpucnn.tensor(np.ones((3, 4), np.float32)))


# --- silu, softplus ---


@in_both_dtypes
def test_silu_and_softplus_are_exact_far_from_zero(dtype, device):
    x = leaf([-np.inf, -1e4, -80.0, -1.0, 0.0, 1.0, 80.0, 1e4, np.inf], device, dtype)
    y, dx = results(ops.silu(x), np.ones(9), x)
    small, one = -80 * np.exp(-80.0), 1 / (1 + np.exp(-1.0))
    np.testing.assert_allclose(y, [0, 0, small, one - 1, 0, one, 80, 1e4, np.inf], rtol=1e-5)
    slope = one * (1 - one)
    expected = [0, 0, -79 * np.exp(-80.0), 1 - one - slope, 0.5, one + slope, 1, 1, 1]
    np.testing.assert_allclose(dx, expected, rtol=1e-5)
    x.grad = None
    y, dx = results(ops.softplus(x), np.ones(9), x)
    log = np.log1p(np.exp(-1.0))
    exact = [0, 0, np.exp(-80.0), log, np.log(2), 1 + log, 80, 1e4, np.inf]
    np.testing.assert_allclose(y, exact, rtol=1e-5)
    np.testing.assert_allclose(dx, [0, 0, np.exp(-80.0), 1 - one, 0.5, one, 1, 1, 1], rtol=1e-5)


def test_silu_and_softplus_keep_nan_and_pass_gradcheck(device, rng):
    for op in (ops.silu, ops.softplus, lambda x: ops.softplus(x, 2.5)):
        x = leaf([np.nan], device, np.float32)
        assert np.isnan(results(op(x), [1.0], x)).all()
        gradcheck(op, 3 * rng.standard_normal((4, 5)), device=device)
