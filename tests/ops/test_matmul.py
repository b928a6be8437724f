import numpy as np
import pytest
from devices import assert_close, in_both_dtypes, leaf, results, tensor
from threadpoolctl import threadpool_limits

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
def test_matmul_equals_numpys(shapes, dtype, device, rng):
    a, b = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    y = ops.matmul(tensor(a, device), tensor(b, device))
    assert y.dtype == dtype
    assert_close(y, a.astype(np.float64) @ b)


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_gradients_match_finite_differences(shapes, device, rng):
    gradcheck(ops.matmul, *(rng.standard_normal(shape) for shape in shapes), device=device)


@pytest.mark.parametrize(
    "shapes",
    [
        ((301, 517), (517, 623)),
        ((1030, 67), (67, 33)),
        ((5, 7001), (7001, 3)),
        ((7, 129, 65), (7, 65, 131)),
        ((3, 1, 90, 77), (5, 77, 101)),
        ((6, 211, 95), (95, 109)),
        ((523, 77), (9, 77, 61)),
        ((4099,), (4099, 37)),
        ((2, 701, 301), (301,)),
    ],
    ids=str,
)
@in_both_dtypes
def test_the_bits_do_not_depend_on_the_number_of_threads_of_gpucnn_or_blas(
    shapes, dtype, threads, rng
):
    a, b = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    dy = rng.standard_normal(np.matmul(a, b).shape).astype(dtype)
    found = []
    for ours, of_blas in [(1, 1), (2, 1), (3, 1), (4, 1), (1, 2), (1, 3), (2, 4)]:
        threads(ours)
        with threadpool_limits(of_blas, user_api="blas"):
            leaves = leaf(a, "cpu"), leaf(b, "cpu")
            found.append(results(ops.matmul(*leaves), dy, *leaves))
    for others in found[1:]:
        for mine, theirs in zip(found[0], others, strict=True):
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("shapes", [((1100, 30), (30, 1100)), ((2, 600, 5), (3, 1, 5, 520))])
def test_the_pieces_of_a_product_cover_it(shapes, rng):
    a, b = (rng.standard_normal(shape) for shape in shapes)
    leaves = leaf(a, "cpu"), leaf(b, "cpu")
    y = ops.matmul(*leaves)
    dy = rng.standard_normal(y.shape)
    actual = results(y, dy, *leaves)
    da, db = dy @ b.swapaxes(-1, -2), a.swapaxes(-1, -2) @ dy
    extra = tuple(range(da.ndim - a.ndim))
    assert_close(actual[0], a @ b)
    assert_close(actual[1], da.sum(axis=extra))
    assert_close(actual[2], db if b.ndim == 2 else db.sum(axis=1, keepdims=True))


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
