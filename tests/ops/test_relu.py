"""relu and leaky_relu."""

import inspect

import numpy as np
import pytest
from devices import backward, host, in_both_dtypes, leaf, tensor

import gpucnn
from gpucnn.ops import leaky_relu, relu
from gpucnn.ops.relu import _leaky, _relu, _relu_backward
from gpucnn.testing import gradcheck

rng = np.random.default_rng(0)


@in_both_dtypes
def test_relu_keeps_positive_values(dtype, device):
    t = leaf([-2.0, -0.0, 0.0, 3.0], device, dtype)
    y = relu(t)
    backward(y, np.full(4, 5.0))
    np.testing.assert_array_equal(host(y), [0, 0, 0, 3])
    np.testing.assert_array_equal(host(t.grad), [0, 0, 0, 5])
    assert y.dtype == t.grad.dtype == dtype


@in_both_dtypes
@pytest.mark.parametrize("slope", [0.01, 0.0, -0.5, 1.0, 3.0])
def test_leaky_relu_scales_the_others_by_negative_slope(slope, dtype, device):
    t = leaf([-2.0, 0.0, 3.0], device, dtype)
    y = leaky_relu(t, slope)
    backward(y, np.full(3, 5.0))
    slope = dtype(slope)
    np.testing.assert_array_equal(host(y), [-2 * slope, 0, 3])
    np.testing.assert_array_equal(host(t.grad), [5 * slope, 5 * slope, 5])
    assert y.dtype == t.grad.dtype == dtype


def test_positive_values_pass_leaky_relu_unchanged_to_the_bit(device):
    x = rng.random(10_000, dtype=np.float32)
    np.testing.assert_array_equal(host(leaky_relu(tensor(x, device), 0.01)), x)


def test_gradients_match_finite_differences(device):
    x = rng.standard_normal((3, 4, 5))
    x[np.abs(x) < 1e-3] = 1
    gradcheck(relu, x, device=device)
    gradcheck(lambda t: leaky_relu(t, 0.2), x, device=device)


@in_both_dtypes
@pytest.mark.parametrize("op", [relu, leaky_relu])
def test_nan_stays_nan(op, dtype, device):
    assert np.isnan(host(op(tensor([np.nan], device, dtype)))).all()


@in_both_dtypes
@pytest.mark.parametrize("op", [relu, leaky_relu])
@pytest.mark.parametrize("shape", [(0, 3), (), (1,), (3, 5, 7), (70_000,)])
def test_any_shape_and_memory_order_gives_the_same_bits_on_every_device(op, shape, dtype, device):
    x, dy = rng.standard_normal((2, *shape)).astype(dtype)
    for order in (np.asarray, np.asfortranarray):
        t = leaf(order(x), device)
        y = op(t)
        backward(y, order(dy))
        slope = dtype(0 if op is relu else 0.01)
        np.testing.assert_array_equal(host(y), np.where(x > 0, x, slope * x))
        np.testing.assert_array_equal(host(t.grad), np.where(x > 0, dy, slope * dy))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("op", [relu, leaky_relu])
def test_dtype_memory_order_and_threads_change_nothing(op, dtype, threads):
    x = rng.standard_normal((300, 33, 41)).astype(dtype)
    results = []
    for count, given in ((1, x), (3, x), (2, np.asfortranarray(x))):
        threads(count)
        t = gpucnn.tensor(given, requires_grad=True)
        y = op(t)
        y.backward(x)
        assert y.dtype == t.grad.dtype == dtype
        results.append((y.data, t.grad))
    for other in results[1:]:
        for a, e in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(a, e)


@pytest.mark.parametrize("shape", [(0, 3), (), (1,), (70_000,)])
def test_numpy_halves_equal_the_array_halves(shape):
    x, dy = np.asarray(rng.standard_normal(shape)), np.asarray(rng.standard_normal(shape))
    for pair, arguments in (
        (_relu, (x,)),
        (_relu_backward, (dy, x)),
        (_leaky, (dy, x, 0.2)),
    ):
        assert inspect.signature(pair.cpu) == inspect.signature(pair.cuda)
        actual = pair.cpu(*arguments)
        assert actual.shape == shape
        np.testing.assert_array_equal(actual, pair.cuda(*arguments))
