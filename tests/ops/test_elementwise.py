import math

import numpy as np
import pytest
from devices import assert_close, host, in_both_dtypes, tensor

from gpucnn import ops
from gpucnn.errors import ArgumentError, DtypeError, ShapeError
from gpucnn.testing import gradcheck

BINARY = [ops.add, ops.subtract, ops.multiply, ops.divide]
SMOOTH = [ops.exp, ops.log, ops.sqrt, ops.sigmoid, ops.tanh, ops.gelu, ops.negative]
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
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "negative": np.negative,
}
SHAPES = [((3, 4), (3, 4)), ((3, 4), (4,)), ((3, 1), (1, 4)), ((), (2, 3)), ((2, 1, 3), (4, 1))]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("op", BINARY)
@in_both_dtypes
def test_a_binary_op_is_numpys(op, shapes, dtype, device, rng):
    a, b = (rng.uniform(0.5, 2, shape).astype(dtype) for shape in shapes)
    y = op(tensor(a, device), tensor(b, device))
    assert y.dtype == dtype
    assert np.array_equal(host(y), NUMPYS[op.__name__](a, b))


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("op", BINARY)
def test_a_binary_op_has_the_gradients_of_its_differences(op, shapes, device, rng):
    gradcheck(op, *(rng.uniform(0.5, 2, shape) for shape in shapes), device=device)


@pytest.mark.parametrize("op", BINARY)
def test_numbers_stand_on_either_side_without_changing_the_dtype(op, device, rng):
    x = rng.uniform(0.5, 2, (2, 3)).astype(np.float32)
    t = tensor(x, device)
    for number in (2, 0.5, np.float64(0.25)):
        assert op(t, number).dtype == np.float32
        assert op(number, t).dtype == np.float32
    gradcheck(lambda t: op(t, 3.0) * op(0.7, t), x, device=device)


@pytest.mark.parametrize("op", SMOOTH)
def test_a_smooth_function_is_its_formula_and_has_the_gradient_of_its_differences(op, device, rng):
    for shape in ((3, 5), ()):
        x = rng.uniform(0.3, 2, shape)
        for dtype in (np.float32, np.float64):
            given = x.astype(dtype)
            y = op(tensor(given, device))
            assert y.dtype == dtype
            assert_close(y, NUMPYS[op.__name__](given.astype(np.float64)))
        gradcheck(op, x, device=device)


@pytest.mark.parametrize("op", [ops.sigmoid, ops.tanh, ops.gelu])
def test_activations_saturate_without_warnings(op, device):
    y = host(op(tensor(np.array([-1e4, -100, 0, 100, 1e4], np.float32), device)))
    assert np.isfinite(y).all()
    assert y.dtype == np.float32


@pytest.mark.parametrize("exponent", [2, 3.0, -1, 0.5])
def test_power_is_numpys_and_has_the_gradient_of_its_differences(exponent, device, rng):
    x = rng.uniform(0.5, 2, (4,))
    assert_close(tensor(x, device) ** exponent, x**exponent)
    gradcheck(lambda x: x**exponent, x, device=device)


def test_gelu_is_within_a_thousandth_of_the_exact_one(device):
    x = np.linspace(-6, 6, 601)
    exact = [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x]
    assert np.abs(host(ops.gelu(tensor(x, device))) - exact).max() < 1e-3


def test_where_takes_each_side_and_sends_the_gradient_there(device, rng):
    condition = np.array([True, False, True])
    here = tensor(condition, device)
    a, b = rng.random((2, 3)), rng.random(3)
    y = ops.where(here, tensor(a, device), tensor(b, device))
    assert np.array_equal(host(y), np.where(condition, a, b))
    gradcheck(lambda a, b: ops.where(here, a, b), a, b, device=device)
    assert ops.where(here, tensor(np.ones(3, np.float32), device), 0.0).dtype == np.float32


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


def test_power_takes_a_number_only(device):
    with pytest.raises(ArgumentError, match="expected a number as exponent, got Tensor"):
        tensor([1.0], device) ** tensor([2.0], device)
