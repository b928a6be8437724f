"""float16: sums that do not overflow, and the warning that it is slow on a GPU."""

import warnings

import numpy as np
import pytest
from devices import host, leaf, results, tensor

from gpucnn import ops
from gpucnn.ops import _kernels

half = np.float16


def test_batch_norm_of_large_values_equals_the_rounded_float32_one(device, rng):
    x = (rng.standard_normal((40, 10, 10, 3)) * 200 + 300).astype(half)
    dy = rng.standard_normal(x.shape).astype(half)
    for training in (True, False):
        found = []
        for dtype in (half, np.float32):
            leaves = [leaf(a, device, dtype) for a in (x, [1.0, 2, 0.5], [0.0, 1, -1])]
            running = [tensor(np.array([a] * 3, np.float32), device).data for a in (300.0, 4e4)]
            y = ops.batch_norm(*leaves, *running, training=training)
            found.append([*results(y, dy, *leaves), *map(host, running)])
        for i, (a, b) in enumerate(zip(*found, strict=True)):
            assert a.dtype == (half if i < 4 else np.float32)
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3)


def test_gradients_that_sum_over_rows_equal_the_rounded_float32_ones(device, rng):
    rows = 6000
    dy = np.full((rows, 1), 0.25, half)  # a running sum in float16 stops at 512
    x, w, b = np.zeros((rows, 1), half), np.ones((1, 1), half), np.zeros(1, half)
    for op in (ops.linear, lambda x, w, b: x * w + b):
        leaves = [leaf(a, device) for a in (x, w, b)]
        assert results(op(*leaves), dy, *leaves)[3].tolist() == [1500]


def test_the_mean_of_a_window_is_finite_where_its_sum_is_not(device):
    x = leaf(np.full((1, 4, 4, 1), 6e4), device, half)
    for pool in (ops.global_avg_pool2d, lambda t: ops.avg_pool2d(t, 2)):
        y = pool(x)
        assert y.dtype == half
        np.testing.assert_array_equal(host(y), np.full(y.shape, half(6e4)))


def test_the_first_float16_op_on_a_gpu_warns_with_the_way_out_and_no_other_does(
    gpu, monkeypatch, rng
):
    monkeypatch.setattr(_kernels, "_warned", False)
    x, w = (tensor(rng.standard_normal(s), gpu, half) for s in ((1, 4, 4, 2), (3, 3, 3, 2)))
    with pytest.warns(UserWarning, match=r"conv2d: float16 on a GPU.*\n.*\n.*model.astype"):
        ops.conv2d(x, w)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ops.relu(ops.conv2d(x, w))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_other_dtypes_and_the_cpu_do_not_warn(dtype, device, monkeypatch, rng):
    monkeypatch.setattr(_kernels, "_warned", False)
    used = half if device == "cpu" else dtype
    x = tensor(rng.standard_normal((2, 4, 4, 2)), device, used)
    ops.max_pool2d(ops.relu(x), 2)
    assert not _kernels._warned
