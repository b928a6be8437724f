"""Stacks of matrix products, whole and cut into blocks."""

import numpy as np
import pytest

from gpucnn.ops import _products
from gpucnn.threads import empty

# rows, depth, columns: less than a block, whole blocks, some over, and too deep for any block
SHAPES = [(1, 3, 5), (16, 20, 64), (128, 64, 192), (77, 300, 130), (130, 976, 65), (40, 977, 64)]


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(("rows", "depth", "columns"), SHAPES)
def test_blocks_cover_the_product(monkeypatch, rng, rows, depth, columns, in_place):
    monkeypatch.setattr(_products, "_blas_multiplies_in_place", lambda: in_place)
    a = empty((3, rows + 1, depth), np.float32)[:, :rows]  # as positions lie: a row apart
    b = empty((3, depth + 1, columns), np.float32)[:, :depth]
    a[...], b[...] = rng.standard_normal(a.shape), rng.standard_normal(b.shape)
    out = np.full((3, rows + 1, columns), np.nan, np.float32)
    _products.multiply(a, b, out[:, :rows])
    expected = a.astype(np.float64) @ b.astype(np.float64)
    np.testing.assert_allclose(out[:, :rows], expected, rtol=0, atol=1e-5 * depth**0.5)
    assert np.isnan(out[:, rows:]).all()


@pytest.mark.parametrize(("rows", "depth", "columns"), SHAPES[:-1])
def test_blocks_are_small_enough_for_blas(monkeypatch, rows, depth, columns):
    monkeypatch.setattr(_products, "_blas_multiplies_in_place", lambda: True)
    blocks = []
    matmul = np.matmul

    def noting(a, b, out):
        blocks.append(a.shape[-2] * a.shape[-1] * b.shape[-1])
        for x in (a, b, out):  # none is transposed
            assert x.strides[-1] == 4 or x.shape[-1] == 1
        return matmul(a, b, out=out)

    monkeypatch.setattr(np, "matmul", noting)
    shapes = (2, rows, depth), (2, depth, columns), (2, rows, columns)
    _products.multiply(*(np.zeros(shape, np.float32) for shape in shapes))
    assert blocks
    assert max(blocks) <= 100**3
