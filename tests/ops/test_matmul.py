import numpy as np
import pytest
from devices import assert_close, in_both_dtypes, tensor

from gpucnn import ops
from gpucnn.errors import DtypeError, ShapeError
from gpucnn.testing import gradcheck

SHAPES = [
    ((2, 3), (3, 4)),
    ((5, 2, 3), (5, 3, 4)),
    ((5, 2, 3), (3, 4)),
    ((1, 2, 3), (6, 3, 2)),
    ((3,), (3, 4)),
    ((2, 3), (3,)),
    ((3,), (3,)),
    ((0, 3), (3, 2)),
    ((2, 0), (0, 3)),
]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@in_both_dtypes
def test_matmul_is_numpys(shapes, dtype, device, rng):
    a, b = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    y = ops.matmul(tensor(a, device), tensor(b, device))
    assert y.dtype == dtype
    assert_close(y, a.astype(np.float64) @ b)


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_gradients_match_finite_differences(shapes, device, rng):
    gradcheck(ops.matmul, *(rng.standard_normal(shape) for shape in shapes), device=device)


def test_shapes_and_dtypes_that_do_not_fit_are_named(device):
    def ones(shape, dtype=np.float64):
        return tensor(np.ones(shape, dtype), device)

    with pytest.raises(ShapeError, match="a has 3 columns, b has 4 rows"):
        ops.matmul(ones((2, 3)), ones((4, 2)))
    with pytest.raises(ShapeError, match="do not broadcast"):
        ops.matmul(ones((2, 2, 3)), ones((5, 3, 2)))
    with pytest.raises(DtypeError, match="dtypes float64 and float32 differ"):
        ops.matmul(ones((2, 3)), ones((3, 2), np.float32))
    with pytest.raises(ShapeError, match="expected matrices"):
        ops.matmul(ones(()), ones((3, 2)))
