"""Axes without elements: PyTorch's shapes and sums, whatever is empty."""

import numpy as np
import pytest
from devices import host, in_both_dtypes, leaf, results, tensor

from gpucnn import ops


def run(op, device, dtype, *shapes):
    """The result of op on ones of these shapes; every gradient has its operand's shape."""
    leaves = [leaf(np.ones(shape), device, dtype) for shape in shapes]
    y = op(*leaves)
    _, *gradients = results(y, np.ones(y.shape), *leaves)
    assert [g.shape for g in gradients] == [tuple(shape) for shape in shapes]
    return host(y), gradients


@pytest.mark.parametrize("op", [ops.softmax, ops.log_softmax])
@pytest.mark.parametrize("shape", [(3, 0), (0, 3), (2, 0, 4)], ids=str)
@in_both_dtypes
def test_softmax_of_no_classes_or_no_rows_is_empty(op, shape, dtype, device):
    for axis in range(len(shape)):
        y, _ = run(lambda x, axis=axis: op(x, axis), device, dtype, shape)
        assert y.shape == shape


@in_both_dtypes
def test_a_linear_layer_of_no_features_is_its_bias(dtype, device):
    y, (_, _, db) = run(ops.linear, device, dtype, (3, 0), (2, 0), (2,))
    np.testing.assert_array_equal(y, np.ones((3, 2)))
    np.testing.assert_array_equal(db, [3, 3])


@in_both_dtypes
def test_a_linear_layer_of_no_outputs_or_no_rows_is_empty(dtype, device):
    y, (dx, _) = run(ops.linear, device, dtype, (3, 2), (0, 2))
    assert y.shape == (3, 0)
    np.testing.assert_array_equal(dx, np.zeros((3, 2)))
    y, (_, dw, db) = run(ops.linear, device, dtype, (4, 0, 2), (3, 2), (3,))
    assert y.shape == (4, 0, 3)
    assert not dw.any()
    assert not db.any()


@in_both_dtypes
def test_a_product_over_no_columns_is_zero(dtype, device):
    y, _ = run(ops.matmul, device, dtype, (3, 0), (0, 2))
    np.testing.assert_array_equal(y, np.zeros((3, 2)))


@pytest.mark.parametrize("shape", [(2, 5, 5, 0), (0, 5, 5, 3)], ids=str)
@in_both_dtypes
def test_pooling_no_channels_or_no_images_is_empty(shape, dtype):
    for op in (
        lambda x: ops.max_pool2d(x, 2),
        lambda x: ops.max_pool2d(x, 3, 2, 1),
        lambda x: ops.avg_pool2d(x, 2, ceil_mode=True),
        lambda x: ops.avg_pool2d(x, 3, 1, 1),
        lambda x: ops.adaptive_avg_pool2d(x, 3),
        ops.global_avg_pool2d,
    ):
        y, _ = run(op, "cpu", dtype, shape)
        assert (y.shape[0], y.shape[-1]) == (shape[0], shape[-1])


@in_both_dtypes
def test_a_convolution_of_no_channels_is_its_bias_and_one_of_no_filters_is_empty(dtype):
    y, _ = run(ops.conv2d, "cpu", dtype, (2, 4, 4, 0), (3, 3, 3, 0), (3,))
    np.testing.assert_array_equal(y, np.ones((2, 2, 2, 3)))
    y, (dx, *_) = run(ops.conv2d, "cpu", dtype, (2, 4, 4, 2), (0, 3, 3, 2), (0,))
    assert y.shape == (2, 2, 2, 0)
    assert not dx.any()


@in_both_dtypes
def test_norms_of_no_channels_or_no_rows_are_empty(dtype):
    for shape in ((3, 0), (0, 3)):
        assert run(ops.local_response_norm, "cpu", dtype, shape)[0].shape == shape
        ones = np.ones(shape[-1:], dtype)
        y, _ = run(
            lambda x, w, b, ones=ones: ops.batch_norm(x, w, b, ones, ones, training=False),
            "cpu", dtype, shape, shape[-1:], shape[-1:],
        )  # fmt: skip
        assert y.shape == shape


def test_a_tensor_is_iterated_row_by_row(device, rng):
    x = leaf(rng.random((3, 2)), device)
    rows = list(x)
    assert [host(row).tolist() for row in rows] == host(x).tolist()
    (rows[0] + rows[2]).sum().backward()
    assert host(x.grad).tolist() == [[1, 1], [0, 0], [1, 1]]
    assert list(tensor(np.zeros((0, 2)), device)) == []
