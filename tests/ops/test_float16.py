"""float16: sums that do not overflow."""

import numpy as np
from devices import host, leaf, results, tensor

from gpucnn import ops

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


def test_the_gradients_of_overlapping_windows_are_summed_in_float32(device):
    x = np.zeros((1, 7, 7, 1), half)
    x[0, 3, 3, 0] = 1  # the largest of all nine windows
    dy = np.ones((1, 3, 3, 1), half)
    dy[0, 0, 0, 0] = 2048  # plus 1 is 2048 in float16
    t = leaf(x, device)
    _, dx = results(ops.max_pool2d(t, 5, 1), dy, t)
    assert dx.dtype == half
    assert dx[0, 3, 3, 0] == 2056
