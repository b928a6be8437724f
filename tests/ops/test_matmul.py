import numpy as np
import pytest

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
def test_matmul_is_numpys_and_its_gradient_matches_differences(shapes, rng):
    a, b = (rng.standard_normal(shape) for shape in shapes)
    np.testing.assert_allclose(ops.matmul(a, b).numpy(), a @ b, rtol=1e-13)
    assert ops.matmul(a, b).shape == (a @ b).shape
    gradcheck(ops.matmul, a, b)


def test_shapes_and_dtypes_that_do_not_fit_are_named():
    with pytest.raises(ShapeError, match="a has 3 columns, b has 4 rows"):
        ops.matmul(np.ones((2, 3)), np.ones((4, 2)))
    with pytest.raises(ShapeError, match="do not broadcast"):
        ops.matmul(np.ones((2, 2, 3)), np.ones((5, 3, 2)))
    with pytest.raises(DtypeError, match="dtypes float64 and float32 differ"):
        ops.matmul(np.ones((2, 3)), np.ones((3, 2), np.float32))
    with pytest.raises(ShapeError, match="expected matrices"):
        ops.matmul(np.float64(2), np.ones((3, 2)))
