import numpy as np
import pytest
from devices import assert_close, host, in_both_dtypes, leaf, tensor

from gpucnn import ops
from gpucnn.errors import ArgumentError, ShapeError
from gpucnn.testing import gradcheck

AXES = [None, 0, -1, (0, 2), (1,)]


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("name", ["sum", "mean", "max", "min", "var"])
def test_a_reduction_is_numpys_and_its_gradient_matches_differences(
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
