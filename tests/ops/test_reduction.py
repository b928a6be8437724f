import numpy as np
import pytest
from devices import assert_close, host, in_both_dtypes, leaf, results, tensor

from gpucnn import ops
from gpucnn.errors import ArgumentError, DtypeError, ShapeError
from gpucnn.testing import gradcheck

AXES = [None, 0, -1, (0, 2), (1,)]


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("name", ["sum", "mean", "max", "min", "var"])
def test_a_reduction_equals_numpys_and_its_gradient_matches_finite_differences(
    name, axis, keepdims, device, rng
):
    x = rng.standard_normal((2, 3, 4))
    op = getattr(ops, name)
    for dtype in (np.float32, np.float64):
        given = x.astype(dtype)
        y = op(tensor(given, device), axis, keepdims)
        assert y.dtype == dtype
        assert_close(y, getattr(np, name)(given.astype(np.float64), axis=axis, keepdims=keepdims))
    gradcheck(lambda t: op(t, axis, keepdims), x, device=device)


@in_both_dtypes
def test_ties_share_the_gradient_of_an_extreme_equally(dtype, device):
    x = leaf([1.0, 3.0, 3.0], device, dtype)
    ops.max(x).backward()
    assert np.array_equal(host(x.grad), [0, 0.5, 0.5])


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_float16_is_accumulated_in_float32(axis, device):
    x = leaf(np.full((50_000, 2), 300, np.float16), device)
    y = ops.mean(x, axis)
    assert y.dtype == np.float16
    np.testing.assert_array_equal(host(y), np.full(y.shape, 300))
    np.testing.assert_array_equal(host(ops.var(x, axis)), np.zeros(y.shape))
    ones = tensor(np.ones((2, 60_000), np.float16), device)
    assert host(ops.sum(ones, 1)).tolist() == [59_968 + 32] * 2  # the nearest float16
    y.sum().backward()
    assert x.grad.dtype == np.float16
    share = np.float16(y.size / x.size)
    np.testing.assert_array_equal(host(x.grad), np.full(x.shape, share))


def test_the_variance_of_float16_does_not_overflow(device):
    x = leaf(np.array([-250, 250, -251, 249], np.float16), device)
    y = ops.var(x)  # fits in float16, the sum of the four squares does not
    assert host(y) == np.float16(62_500.25)
    y.backward()
    np.testing.assert_allclose(host(x.grad), (host(x).astype(float) + 0.5) / 2, rtol=1e-3)


@pytest.mark.parametrize("name", ["max", "min"])
@in_both_dtypes
def test_nan_wins_an_extreme_and_takes_the_gradient_as_in_pytorch(name, dtype, device):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    for values in ([np.nan, 1, np.nan, 3], [-np.inf, np.inf, np.inf, -np.inf], [2, np.nan, 5, 0]):
        x, theirs = leaf(values, device, dtype), torch.tensor(values, requires_grad=True)
        y, expected = getattr(ops, name)(x), getattr(theirs, name)()
        actual = results(y, np.array(2.0), x)
        expected.backward(torch.tensor(2.0))
        np.testing.assert_array_equal(actual[0], expected.item())
        np.testing.assert_array_equal(actual[1], theirs.grad.numpy())


def test_an_infinite_gradient_of_an_extreme_leaves_the_other_elements_at_zero(device):
    x = leaf([[1.0, 3.0], [np.nan, 2.0]], device)
    _, dx = results(ops.max(x, 1), [np.inf, np.nan], x)
    np.testing.assert_array_equal(dx, [[0, np.inf], [np.nan, 0]])


def test_a_mean_of_integers_is_refused(device):
    with pytest.raises(DtypeError, match="mean: expected floating-point values, got int64"):
        ops.mean(tensor([1, 2], device))


def test_bad_axes_and_empty_input_are_refused(device):
    def ones(shape):
        return tensor(np.ones(shape), device)

    with pytest.raises(ArgumentError, match=r"sum: axis 2 is out of range for shape \(2, 3\)"):
        ops.sum(ones((2, 3)), 2)
    with pytest.raises(ArgumentError, match="names one axis twice"):
        ops.sum(ones((2, 3)), (0, -2))
    with pytest.raises(ShapeError, match="nothing to average"):
        ops.mean(ones((0, 3)), 0)
    with pytest.raises(ShapeError, match="nothing to compare"):
        ops.max(ones((0, 3)))
    assert ops.sum(ones((0, 3))).item() == 0


def test_the_gradient_of_the_variance_of_an_infinity_is_pytorchs(device):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    x = np.array([1.0, -np.inf, 2.0])
    t, other = leaf(x, device), torch.tensor(x, requires_grad=True)
    theirs = other.var(unbiased=False)
    theirs.backward()
    with np.errstate(invalid="ignore"):
        y, dx = results(ops.var(t), 1.0, t)
    np.testing.assert_array_equal(y, theirs.detach().numpy())
    np.testing.assert_array_equal(dx, other.grad.numpy())
