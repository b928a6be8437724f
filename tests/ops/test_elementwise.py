import math

import numpy as np
import pytest
from devices import assert_close, backward, host, in_both_dtypes, leaf, results, tensor

from gpucnn import Tensor, ops
from gpucnn.errors import ArgumentError, DtypeError, ShapeError
from gpucnn.testing import gradcheck


def gelu_tanh(x):
    return ops.gelu(x, "tanh")


BINARY = [ops.add, ops.subtract, ops.multiply, ops.divide]
SMOOTH = [ops.exp, ops.log, ops.sqrt, ops.sigmoid, ops.tanh, gelu_tanh, ops.negative]
NUMPYS = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "negative": np.negative,
}
SHAPES = [((3, 4), (3, 4)), ((3, 4), (4,)), ((3, 1), (1, 4)), ((), (2, 3)), ((2, 1, 3), (4, 1))]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("op", BINARY)
@in_both_dtypes
def test_a_binary_op_equals_numpys(op, shapes, dtype, device, rng):
    a, b = (rng.uniform(0.5, 2, shape).astype(dtype) for shape in shapes)
    y = op(tensor(a, device), tensor(b, device))
    assert y.dtype == dtype
    assert np.array_equal(host(y), NUMPYS[op.__name__](a, b))


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("op", BINARY)
def test_gradients_of_a_binary_op_match_finite_differences(op, shapes, device, rng):
    gradcheck(op, *(rng.uniform(0.5, 2, shape) for shape in shapes), device=device)


@pytest.mark.parametrize("op", BINARY)
def test_a_number_as_either_operand_does_not_change_the_dtype(op, device, rng):
    x = rng.uniform(0.5, 2, (2, 3)).astype(np.float32)
    t = tensor(x, device)
    for number in (2, 0.5, np.float64(0.25)):
        assert op(t, number).dtype == np.float32
        assert op(number, t).dtype == np.float32
    gradcheck(lambda t: op(t, 3.0) * op(0.7, t), x, device=device)


@pytest.mark.parametrize("op", SMOOTH)
def test_a_smooth_function_equals_its_formula_and_its_gradient_matches_finite_differences(
    op, device, rng
):
    for shape in ((3, 5), ()):
        x = rng.uniform(0.3, 2, shape)
        for dtype in (np.float32, np.float64):
            given = x.astype(dtype)
            y = op(tensor(given, device))
            assert y.dtype == dtype
            assert_close(y, NUMPYS[op.__name__](given.astype(np.float64)))
        gradcheck(op, x, device=device)


@pytest.mark.parametrize("op", [ops.sigmoid, ops.tanh, gelu_tanh])
def test_activations_saturate_without_warnings(op, device):
    y = host(op(tensor(np.array([-1e4, -100, 0, 100, 1e4], np.float32), device)))
    assert np.isfinite(y).all()
    assert y.dtype == np.float32


def _sigmoid(x):
    return np.exp(np.minimum(x, 0)) / (1 + np.exp(-np.abs(x)))


def _gelu_argument(x):
    return math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)


def _gelu_terms(x):
    """The value, the two terms of the derivative, and the factor of an error in u."""
    u = _gelu_argument(x)
    rise = 2 * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2)
    return x * _sigmoid(2 * u), _sigmoid(2 * u), x * _sigmoid(2 * u) * _sigmoid(-2 * u) * rise, u


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("op", [ops.sigmoid, ops.tanh, gelu_tanh])
def test_saturating_functions_and_their_gradients_are_accurate_everywhere(op, dtype, device):
    x = np.array([*np.linspace(-40, 40, 4001), *np.linspace(-0.1, 0.1, 101), 1e4, -1e4], dtype)
    t = leaf(x, device)
    y, dx = results(op(t), np.ones_like(x), t)
    exact, eps, tiny = x.astype(np.longdouble), np.finfo(dtype).eps, np.finfo(dtype).tiny
    assert y.dtype == dx.dtype == dtype
    if op is gelu_tanh:
        value, first, second, u = _gelu_terms(exact)
        slope, size, bound = first + second, np.abs(first) + np.abs(second), 8 * (1 + np.abs(u))
    else:
        k = 1 if op is ops.sigmoid else 2
        value = _sigmoid(exact) if k == 1 else np.tanh(exact)
        slope = size = k * k * _sigmoid(k * exact) * _sigmoid(-k * exact)
        bound = 8
    assert (np.abs(y - value) <= bound * (eps * np.abs(value) + tiny)).all()
    assert (np.abs(dx - slope) <= bound * (eps * size + tiny)).all()
    assert (y[np.abs(value) > 64 * tiny] != 0).all()  # CuPy flushes factors below tiny to 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_logarithm_of_a_small_sigmoid_equals_its_argument(dtype, device):
    x = tensor(np.array([-80.0, -20, -15], dtype), device)
    assert_close(ops.log(ops.sigmoid(x)), np.array([-80.0, -20 - 2.06e-9, -15 - 3.06e-7]), 1e-7)


@pytest.mark.parametrize("op", [ops.sigmoid, ops.tanh, gelu_tanh])
def test_float16_functions_equal_the_rounded_float32_ones(op, device):
    x = np.array([-6e4, -20, -16.5, -9, -3, -0.01, 0, 0.5, 8, 300, 6e4], np.float16)
    half, single = leaf(x, device), leaf(x.astype(np.float32), device)
    for a, b in zip(*(results(op(t), np.ones(11), t) for t in (half, single)), strict=True):
        assert a.dtype == np.float16
        np.testing.assert_array_equal(a, b.astype(np.float16))


EXPONENTS = [0, 0.0, 1, 2, 3, 0.5, 1.5, -1, -2, -0.5]


@pytest.mark.parametrize("exponent", EXPONENTS)
@in_both_dtypes
def test_power_and_its_gradient_equal_pytorchs_at_zero_below_it_and_at_infinity(
    exponent, dtype, device
):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    x = np.array([0.0, -0.0, 1, -2, np.inf, -np.inf, np.nan], dtype)
    ours, theirs = leaf(x, device), torch.tensor(x, requires_grad=True)
    dy = np.array([1, 2, 3, 4, 5, 6, 7], dtype)
    y, expected = ours**exponent, theirs**exponent
    actual = results(y, dy, ours)
    expected.backward(torch.tensor(dy))
    np.testing.assert_allclose(actual[0], expected.detach().numpy(), rtol=1e-6)
    np.testing.assert_allclose(actual[1], theirs.grad.numpy(), rtol=1e-6)


def test_the_gradient_of_a_power_of_zero_is_zero_even_where_dy_is_infinite(device):
    x = leaf([0.0, 2.0], device)
    backward(x**0, [np.inf, np.nan])
    assert host(x.grad).tolist() == [0, 0]


@pytest.mark.parametrize("exponent", [2, 3.0, -1, 0.5])
def test_power_equals_numpys_and_its_gradient_matches_finite_differences(exponent, device, rng):
    x = rng.uniform(0.5, 2, (4,))
    assert_close(tensor(x, device) ** exponent, x**exponent)
    gradcheck(lambda x: x**exponent, x, device=device)


def test_the_tanh_form_of_gelu_is_within_a_thousandth_of_the_exact_one(device):
    x = np.linspace(-6, 6, 601)
    exact = [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x]
    assert np.abs(host(gelu_tanh(tensor(x, device))) - exact).max() < 1e-3


def test_where_selects_a_side_and_passes_the_gradient_to_it(device, rng):
    condition = np.array([True, False, True])
    here = tensor(condition, device)
    a, b = rng.random((2, 3)), rng.random(3)
    y = ops.where(here, tensor(a, device), tensor(b, device))
    assert np.array_equal(host(y), np.where(condition, a, b))
    gradcheck(lambda a, b: ops.where(here, a, b), a, b, device=device)
    assert ops.where(here, tensor(np.ones(3, np.float32), device), 0.0).dtype == np.float32


@in_both_dtypes
def test_an_infinite_gradient_reaches_only_the_side_that_where_selected(dtype, device):
    a, b = leaf([1.0, 2.0], device, dtype), leaf([3.0, 4.0], device, dtype)
    backward(ops.where(np.array([True, False]), a, b), [np.inf, np.nan])
    np.testing.assert_array_equal(host(a.grad), [np.inf, 0])
    np.testing.assert_array_equal(host(b.grad), [0, np.nan])


def test_mixed_dtypes_are_refused_rather_than_promoted(device):
    x, y = (tensor(np.ones(2, dtype), device) for dtype in (np.float32, np.float64))
    whole = tensor([1, 2], device)
    with pytest.raises(DtypeError, match="one operand is float32, the other float64"):
        ops.add(x, y)
    with pytest.raises(DtypeError, match="a float with a tensor of int64"):
        whole * 0.5
    with pytest.raises(DtypeError, match="expected floating-point values, got int64"):
        ops.exp(whole)
    with pytest.raises(DtypeError, match="divide: expected floating-point"):
        whole / 2


def test_shapes_that_do_not_broadcast_are_named(device):
    with pytest.raises(ShapeError, match=r"multiply: shapes \(2,\) and \(3,\) do not broadcast"):
        ops.multiply(tensor(np.ones(2), device), tensor(np.ones(3), device))


def test_power_refuses_an_exponent_that_is_not_a_number(device):
    with pytest.raises(ArgumentError, match="expected a number as exponent, got Tensor"):
        tensor([1.0], device) ** tensor([2.0], device)


@in_both_dtypes
def test_the_gradient_of_zero_divided_by_the_smallest_number_is_zero(dtype, device):
    smallest = float(np.finfo(dtype).tiny)  # normal: CuPy flushes smaller numbers to 0
    a, b = leaf([0.0], device, dtype), leaf([smallest], device, dtype)
    with np.errstate(over="ignore"):  # in the gradient of a, which is infinite
        y, _, db = results(ops.divide(a, b), [0.5], a, b)
    assert y == [0]
    assert db == [0]


@pytest.mark.parametrize("name", ["exp", "log", "power"])
def test_a_reversed_array_gives_the_same_bits_at_every_address(name, rng):
    function = {"power": lambda x: ops.power(x, 0.37)}.get(name) or getattr(ops, name)
    values, others, found = rng.random((7, 33)) + 0.3, [], set()
    for _ in range(500):
        x = np.empty_like(values)[::-1, ::-1]
        x[...] = values
        found.add(function(Tensor(x)).data.tobytes())
        others = [*others[-30:], np.empty(rng.integers(1, 300))]  # move the next ones
    assert len(found) == 1
