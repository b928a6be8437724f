import math

import numpy as np
import pytest

import gpucnn
from gpucnn import ops
from gpucnn.errors import ArgumentError, DtypeError, ShapeError
from gpucnn.testing import gradcheck

BINARY = [ops.add, ops.subtract, ops.multiply, ops.divide]
SMOOTH = [ops.exp, ops.log, ops.sqrt, ops.sigmoid, ops.tanh, ops.gelu, ops.negative]
SHAPES = [((3, 4), (3, 4)), ((3, 4), (4,)), ((3, 1), (1, 4)), ((), (2, 3)), ((2, 1, 3), (4, 1))]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("op", BINARY)
def test_a_binary_op_is_numpys_and_its_gradient_matches_differences(op, shapes, rng):
    a, b = (rng.uniform(0.5, 2, shape) for shape in shapes)
    expected = {"add": np.add, "subtract": np.subtract}.get(op.__name__) or {
        "multiply": np.multiply,
        "divide": np.divide,
    }[op.__name__]
    assert np.array_equal(op(a, b).numpy(), expected(a, b))
    gradcheck(op, a, b)


@pytest.mark.parametrize("op", BINARY)
def test_numbers_stand_on_either_side_without_changing_the_dtype(op, rng):
    x = rng.uniform(0.5, 2, (2, 3)).astype(np.float32)
    for number in (2, 0.5, np.float64(0.25)):
        assert op(x, number).dtype == np.float32
        assert op(number, x).dtype == np.float32
    gradcheck(lambda t: op(t, 3.0) * op(0.7, t), x)


@pytest.mark.parametrize("op", SMOOTH)
def test_a_smooth_function_has_the_gradient_of_its_differences(op, rng):
    gradcheck(op, rng.uniform(0.3, 2, (3, 5)))
    gradcheck(op, rng.uniform(0.3, 2, ()))


@pytest.mark.parametrize("op", [ops.sigmoid, ops.tanh, ops.gelu])
def test_activations_saturate_without_warnings(op):
    y = op(np.array([-1e4, -100, 0, 100, 1e4], np.float32)).numpy()
    assert np.isfinite(y).all()
    assert y.dtype == np.float32


@pytest.mark.parametrize("exponent", [2, 3.0, -1, 0.5])
def test_power_has_the_gradient_of_its_differences(exponent, rng):
    gradcheck(lambda x: x**exponent, rng.uniform(0.5, 2, (4,)))


def test_gelu_is_within_a_thousandth_of_the_exact_one():
    x = np.linspace(-6, 6, 601)
    exact = [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x]
    assert np.abs(ops.gelu(x).numpy() - exact).max() < 1e-3


def test_where_takes_each_side_and_sends_the_gradient_there(rng):
    condition = np.array([True, False, True])
    a, b = rng.random((2, 3)), rng.random(3)
    assert np.array_equal(ops.where(condition, a, b).numpy(), np.where(condition, a, b))
    gradcheck(lambda a, b: ops.where(condition, a, b), a, b)
    assert ops.where(condition, np.ones(3, np.float32), 0.0).dtype == np.float32


def test_mixed_dtypes_are_refused_rather_than_promoted():
    x, y = np.ones(2, np.float32), np.ones(2, np.float64)
    with pytest.raises(DtypeError, match="one operand is float32, the other float64"):
        ops.add(x, y)
    with pytest.raises(DtypeError, match="a float with a tensor of int64"):
        gpucnn.tensor([1, 2]) * 0.5
    with pytest.raises(DtypeError, match="expected floating-point values, got int64"):
        ops.exp([1, 2])
    with pytest.raises(DtypeError, match="divide: expected floating-point"):
        gpucnn.tensor([1, 2]) / 2


def test_shapes_that_do_not_broadcast_are_named():
    with pytest.raises(ShapeError, match=r"multiply: shapes \(2,\) and \(3,\) do not broadcast"):
        ops.multiply(np.ones(2), np.ones(3))


def test_power_takes_a_number_only():
    with pytest.raises(ArgumentError, match="expected a number as exponent, got Tensor"):
        gpucnn.tensor([1.0]) ** gpucnn.tensor([2.0])
