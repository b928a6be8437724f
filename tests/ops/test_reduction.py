import numpy as np
import pytest

import gpucnn
from gpucnn import ops
from gpucnn.errors import ArgumentError, ShapeError
from gpucnn.testing import gradcheck

AXES = [None, 0, -1, (0, 2), (1,)]


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("name", ["sum", "mean", "max", "min", "var"])
def test_a_reduction_is_numpys_and_its_gradient_matches_differences(name, axis, keepdims, rng):
    x = rng.standard_normal((2, 3, 4))
    op = getattr(ops, name)
    expected = getattr(np, name)(x, axis=axis, keepdims=keepdims)
    np.testing.assert_allclose(op(x, axis, keepdims).numpy(), expected, rtol=1e-12)
    gradcheck(lambda t: op(t, axis, keepdims), x)


@pytest.mark.parametrize("name", ["sum", "mean", "max", "min", "var"])
def test_float32_stays_float32(name):
    assert getattr(ops, name)(np.ones((2, 3), np.float32)).dtype == np.float32


def test_ties_share_the_gradient_of_an_extreme_equally():
    x = gpucnn.tensor(np.array([1.0, 3.0, 3.0]), requires_grad=True)
    ops.max(x).backward()
    assert np.array_equal(x.grad, [0, 0.5, 0.5])


def test_bad_axes_and_empty_input_are_refused():
    with pytest.raises(ArgumentError, match=r"sum: axis 2 is out of range for shape \(2, 3\)"):
        ops.sum(np.ones((2, 3)), 2)
    with pytest.raises(ArgumentError, match="names one axis twice"):
        ops.sum(np.ones((2, 3)), (0, -2))
    with pytest.raises(ShapeError, match="nothing to average"):
        ops.mean(np.ones((0, 3)), 0)
    with pytest.raises(ShapeError, match="nothing to compare"):
        ops.max(np.ones((0, 3)))
    assert ops.sum(np.ones((0, 3))).item() == 0
