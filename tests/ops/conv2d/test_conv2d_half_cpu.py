"""conv2d in half precision on the CPU: rounded operands, float32 sums, results rounded once."""

import numpy as np
import pytest
from conv_cases import Convolution

import gpucnn
from gpucnn import ops
from gpucnn.ops._exact import narrowed
from gpucnn.ops.conv2d import cpu
from gpucnn.ops.pool2d.op import MaxPool
from gpucnn.precision import bfloat16

HALVES = [np.dtype(np.float16), bfloat16()]
BITS = {HALVES[0]: 11, HALVES[1]: 8}  # of the mantissa, with the first
CASES = [
    Convolution(2, 8, 9, 16, 24),  # Winograd
    Convolution(2, 9, 8, 3, 5, stride=2),  # im2col
    Convolution(3, 7, 7, 8, 6, kernel_size=(2, 3), dilation=2, groups=2),
    Convolution(2, 12, 12, 32, 32, dilation=2, padding=2),  # Winograd on every second pixel
    Convolution(0, 8, 8, 16, 16),
]


def wide(x, half):
    """x rounded to half precision, as float64."""
    return np.asarray(x, np.float32).astype(half).astype(np.float64)


def run(case, half, x, weight, bias, relu=False, pool=None, needs=(True,) * 3, cache=None):
    g = case.geometry
    window = None if pool is None else pool.geometry((g.n, g.oh, g.ow, case.oc))
    return cpu.forward(x, weight, bias, g, needs, relu, window, cache, half)


def reference(case, half, x, weight, bias):
    """The leaves and the result in float64, of rounded x and weight."""
    leaves = [
        gpucnn.tensor(a, requires_grad=True)
        for a in (wide(x, half), wide(weight, half), bias.astype(np.float64))
    ]
    return leaves, ops.conv2d(*leaves, **case.options)


def assert_rounded(actual, exact, half, dtype):
    """actual, of dtype, is the exact value but for fp32 sums (Winograd's) and one rounding."""
    assert actual.dtype == dtype
    if actual.size == 0:
        return
    error = np.abs(actual.astype(np.float64) - exact)
    unit = 0 if dtype == np.float32 else 2.0 ** -BITS[half]
    assert (error <= unit * np.abs(exact) + 2e-5 * np.abs(exact).max()).all()


@pytest.mark.parametrize("half", HALVES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("images", ["float32", "half"])
def test_results_and_gradients_are_those_of_float64_rounded_in_the_stated_places(
    case, half, images
):
    x, weight, bias = case.draw(np.float32)
    x = x.astype(half) if images == "half" else x
    y, saved = run(case, half, x, weight, bias)
    leaves, exact = reference(case, half, x, weight, bias)
    assert_rounded(y, exact.numpy(), half, half)
    dy = np.random.default_rng(3).standard_normal(y.shape).astype(half)
    exact.backward(dy.astype(np.float64))
    given = saved.backward(dy, (True,) * 3, True)
    for gradient, of, dtype in zip(given, leaves, (x.dtype, np.float32, np.float32), strict=True):
        assert_rounded(gradient, of.grad, half, dtype)


@pytest.mark.parametrize("half", HALVES, ids=str)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("pool", [MaxPool(3, 2, 0), MaxPool(2, 2, 0)], ids=["3", "2"])
def test_pooling_and_relu_see_rounded_values(half, relu, pool):
    case = CASES[0]
    x, weight, bias = case.draw(np.float32)
    weight = np.round(weight, 1)  # bfloat16 has few values here: many windows have two winners
    y, saved = run(case, half, x, weight, bias, relu, pool)
    plain, plain_saved = run(case, half, x, weight, bias)
    part = gpucnn.tensor(plain.astype(np.float64), requires_grad=True)
    after = ops.max_pool2d(part, pool.kernel_size, pool.stride)
    after = ops.relu(after) if relu else after
    np.testing.assert_array_equal(y.astype(np.float64), after.numpy())
    dy = np.random.default_rng(3).standard_normal(y.shape).astype(half)
    after.backward(dy.astype(np.float64))
    found = saved.backward(dy, (True,) * 3, True)
    expected = plain_saved.backward(narrowed(part.grad, half), (True,) * 3, True)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a.astype(np.float32), b.astype(np.float32))


def test_a_relu_that_rounding_made_zero_passes_no_gradient():
    case, half = Convolution(1, 4, 4, 16, 16, padding=1), HALVES[0]
    x, weight, bias = case.draw(np.float32)
    x, weight, bias = x * 1e-5, weight * 1e-5, bias * 0
    assert reference(case, half, x, weight, bias)[1].numpy().any()  # below 6e-8
    y, saved = run(case, half, x, weight, bias, relu=True)
    assert not y.any()
    gradients = saved.backward(np.ones_like(y), (True,) * 3, True)
    assert not any(gradient.any() for gradient in gradients)


def test_filters_transformed_for_float32_are_not_taken_for_rounded_weights():
    case, cache = Convolution(4, 16, 16, 32, 32), {}
    x, weight, bias = case.draw(np.float32)
    none = (False,) * 3
    exact, _ = run(case, None, x, weight, bias, needs=none, cache=cache)
    found = [run(case, half, x, weight, bias, needs=none, cache=cache)[0] for half in HALVES]
    alone = [run(case, half, x, weight, bias, needs=none)[0] for half in HALVES]
    again, _ = run(case, None, x, weight, bias, needs=none, cache=cache)
    assert cache  # Winograd's filters are there
    np.testing.assert_array_equal(again, exact)
    for a, b in zip(found, alone, strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("half", HALVES, ids=str)
def test_without_autocast_tensors_of_half_precision_stay_in_it(half, rng):
    case = CASES[0]
    leaves = [gpucnn.tensor(a, dtype=half, requires_grad=True) for a in case.draw(np.float32)]
    y = ops.conv2d(*leaves, **case.options)
    y.backward(np.ones(y.shape, half))
    assert {t.dtype for t in (y, *leaves)} == {half}
    assert {t.grad.dtype for t in leaves} == {half}
    _, exact = reference(case, half, *(t.numpy() for t in leaves))
    assert_rounded(y.numpy(), exact.numpy(), half, half)
