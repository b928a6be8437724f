import numpy as np
import pytest
from devices import assert_close, in_both_dtypes, leaf, results, tensor
from threadpoolctl import threadpool_limits

import gpucnn
from gpucnn import cuda, ops
from gpucnn.errors import DtypeError, ShapeError
from gpucnn.ops.matmul import product
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


@pytest.mark.parametrize(
    "shapes", [((6, 16), (16, 8)), ((3, 6, 5), (5, 7)), ((2, 4, 3), (2, 3, 5))]
)
def test_autocast_rounds_operands_and_returns_half_precision(shapes, device, rng):
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    leaves = leaf(a, device), leaf(b, device)
    with gpucnn.autocast("float16"):
        y = ops.matmul(*leaves)
    assert y.dtype == np.float16
    dy = rng.standard_normal(y.shape).astype(np.float16)
    actual, da, db = results(y, dy, *leaves)
    a, b, dy = (v.astype(np.float16).astype(np.float64) for v in (a, b, dy))
    np.testing.assert_allclose(actual, a @ b, rtol=2e-3, atol=1e-3)
    assert da.dtype == db.dtype == np.float32
    np.testing.assert_allclose(da, dy @ b.swapaxes(-1, -2), rtol=5e-3, atol=5e-3)
    exact = a.swapaxes(-1, -2) @ dy
    exact = exact.sum(0) if exact.ndim > b.ndim else exact
    np.testing.assert_allclose(db, exact, rtol=5e-3, atol=1e-2)


@pytest.mark.usefixtures("current")
@pytest.mark.parametrize("transposed", ["a", "b", "both", "neither"])
def test_transposed_matrices_are_not_copied_where_a_kernel_reads_them(transposed, gpu, rng):
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((6, 9), (9, 7)))
    left = tensor(a.T.copy(), gpu).data.T if transposed in ("a", "both") else tensor(a, gpu).data
    right = tensor(b.T.copy(), gpu).data.T if transposed in ("b", "both") else tensor(b, gpu).data
    with cuda.record_launches() as launches:
        y = gpucnn.Tensor(product.cuda(left, right))
    assert [launch.kernel.name for launch in launches] == ["gemm"]
    assert dict(launches[0].defines)["FORM"] == {"a": "TN", "neither": "NN"}.get(transposed, "NT")
    assert_close(y, a.astype(np.float64) @ b)
