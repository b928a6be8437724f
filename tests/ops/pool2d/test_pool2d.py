"""Pooling against slow loops, finite differences and PyTorch; both halves against each other."""

import inspect

import numpy as np
import pytest
from devices import (
    assert_close,
    backward,
    error_beside_cpu,
    host,
    in_both_dtypes,
    leaf,
    results,
    tensor,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import gpucnn
from gpucnn.device import device_of, working_on
from gpucnn.errors import ShapeError
from gpucnn.ops import avg_pool2d, global_avg_pool2d, max_pool2d
from gpucnn.ops.geometry import Geometry
from gpucnn.ops.pool2d import cpu, portable
from gpucnn.ops.pool2d.op import avg_backward, avg_forward, max_forward
from gpucnn.testing import avg_pool2d_loops, gradcheck, max_pool2d_loops

rng = np.random.default_rng(0)

# h, w, kernel_size, stride, padding
GEOMETRIES = [
    (8, 8, (2, 2), (2, 2), ((0, 0), (0, 0))),
    (9, 7, (2, 2), (2, 2), ((0, 0), (0, 0))),
    (13, 13, (3, 3), (2, 2), ((0, 0), (0, 0))),
    (8, 9, (3, 3), (2, 2), ((1, 1), (1, 1))),
    (7, 8, (3, 2), (1, 3), ((2, 0), (0, 1))),
    (6, 6, (1, 1), (2, 2), ((0, 0), (0, 0))),
    (6, 9, (2, 3), (3, 4), ((0, 0), (0, 0))),
    (5, 5, (5, 5), (1, 1), ((0, 0), (0, 0))),
]


def draw(h, w, ties, n=3, c=3):
    """Distinct values, or few different ones so that most windows hold a tie."""
    size = (n, h, w, c)
    return (
        rng.integers(0, 3, size).astype(float)
        if ties
        else rng.permutation(np.prod(size)).reshape(size) / 7
    )


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("h", "w", "kernel_size", "stride", "padding"), GEOMETRIES)
@in_both_dtypes
def test_max_and_its_gradient_match_the_loops_ties_included(
    h, w, kernel_size, stride, padding, ties, dtype, device
):
    x = draw(h, w, ties).astype(dtype)
    t = leaf(x, device)
    y = max_pool2d(t, kernel_size, stride, padding)
    dy = rng.standard_normal(y.shape).astype(dtype)
    actual_y, dx = results(y, dy, t)
    expected_y, expected_dx = max_pool2d_loops(x, kernel_size, stride, padding, dy)
    np.testing.assert_array_equal(actual_y, expected_y)
    assert_close(dx, expected_dx)
    assert actual_y.dtype == dx.dtype == dtype


@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize(("h", "w", "kernel_size", "stride", "padding"), GEOMETRIES)
@in_both_dtypes
def test_mean_and_its_gradient_match_the_loops(
    h, w, kernel_size, stride, padding, count_include_pad, dtype, device
):
    x = draw(h, w, False).astype(dtype)
    t = leaf(x, device)
    y = avg_pool2d(t, kernel_size, stride, padding, count_include_pad=count_include_pad)
    dy = rng.standard_normal(y.shape).astype(dtype)
    actual_y, dx = results(y, dy, t)
    expected_y, expected_dx = avg_pool2d_loops(
        x, kernel_size, stride, padding, count_include_pad, dy
    )
    assert_close(actual_y, expected_y)
    assert_close(dx, expected_dx)
    assert actual_y.dtype == dx.dtype == dtype


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.booleans(),
    st.booleans(),
)
def test_numpy_half_equals_the_portable_half(
    h, w, kernel_size, stride, padding, ceil_mode, count_include_pad
):
    x = np.random.default_rng(h * w).integers(0, 4, (3, h, w, 2)).astype(float)
    try:
        max_pool2d(gpucnn.tensor(x), kernel_size, stride, padding, ceil_mode)
    except ShapeError:
        return
    g = Geometry.of("pool", x.shape, kernel_size, stride, padding, ceil_mode=ceil_mode)
    y, saved = cpu.max_forward(x, g, True)
    expected, expected_saved = portable.max_forward(x, g, True)
    dy = np.random.default_rng(1).standard_normal(y.shape)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_allclose(saved.backward(dy), expected_saved.backward(dy), atol=1e-13)
    area = (count_include_pad, padding[0], padding[1])
    np.testing.assert_allclose(cpu.avg_forward(x, g, area), portable.avg_forward(x, g, area))
    np.testing.assert_allclose(
        cpu.avg_backward(dy, g, area), portable.avg_backward(dy, g, area), atol=1e-13
    )


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 2, 0), (3, 3, 1)]
)
@in_both_dtypes
def test_equals_pytorch(kernel_size, stride, padding, ceil_mode, dtype, device):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    functional = torch.nn.functional
    x = draw(10, 13, False).astype(dtype)
    for ours, theirs in [
        (
            max_pool2d,
            lambda t: functional.max_pool2d(t, kernel_size, stride, padding, 1, ceil_mode),
        ),
        (avg_pool2d, lambda t: functional.avg_pool2d(t, kernel_size, stride, padding, ceil_mode)),
        (
            lambda *a: avg_pool2d(*a, count_include_pad=False),
            lambda t: functional.avg_pool2d(t, kernel_size, stride, padding, ceil_mode, False),
        ),
    ]:
        t, e = leaf(x, device), torch.tensor(x.astype(np.float64), requires_grad=True)
        y, expected = (
            ours(t, kernel_size, stride, padding, ceil_mode),
            theirs(e.permute(0, 3, 1, 2)),
        )
        dy = rng.standard_normal(y.shape).astype(dtype)
        actual_y, dx = results(y, dy, t)
        expected.backward(torch.tensor(dy.astype(np.float64)).permute(0, 3, 1, 2))
        assert_close(actual_y, expected.detach().permute(0, 2, 3, 1).numpy())
        assert_close(dx, e.grad.numpy())


def test_gradients_match_finite_differences(device):
    x = draw(5, 6, False, n=1, c=2)
    gradcheck(lambda t: max_pool2d(t, 3, 2, 1), x, device=device)
    gradcheck(lambda t: max_pool2d(t, 2), x, device=device)
    gradcheck(
        lambda t: avg_pool2d(t, 3, 2, 1, ceil_mode=True, count_include_pad=False), x, device=device
    )
    gradcheck(global_avg_pool2d, x, device=device)


@in_both_dtypes
def test_stride_none_means_the_kernel_size(dtype, device):
    x = tensor(draw(9, 9, False), device, dtype)
    np.testing.assert_array_equal(host(max_pool2d(x, 3)), host(max_pool2d(x, 3, 3)))


@in_both_dtypes
def test_padding_never_wins_the_maximum(dtype, device):
    y = max_pool2d(tensor(np.full((1, 4, 4, 1), -5.0), device, dtype), 3, 2, 1)
    np.testing.assert_array_equal(host(y), -5)


@in_both_dtypes
def test_global_mean_is_the_mean_of_each_channel(dtype, device):
    x = draw(4, 5, False).astype(dtype)
    t = leaf(x, device)
    y = global_avg_pool2d(t)
    dy = rng.standard_normal(y.shape).astype(dtype)
    actual_y, dx = results(y, dy, t)
    assert_close(actual_y, x.astype(np.float64).mean((1, 2)))
    assert_close(dx, np.broadcast_to(dy[:, None, None] / 20.0, x.shape))


@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding"), [(3, 2, 0), (2, 3, 1), ((4, 3), (3, 2), ((1, 0), (2, 1)))]
)
def test_windows_that_extend_past_the_edge_agree_with_the_cpu(kernel_size, stride, padding, gpu):
    x = rng.standard_normal((2, 13, 12, 5))
    given = (kernel_size, stride, padding, True)
    for pool in (
        lambda _, t: max_pool2d(t, *given),
        lambda _, t: avg_pool2d(t, *given),
        lambda _, t: avg_pool2d(t, *given, count_include_pad=False),
    ):
        assert error_beside_cpu(pool, x, device=gpu) <= 1e-6


def test_the_last_nan_of_a_window_wins_and_takes_the_gradient(device):
    x = leaf(np.array([[5.0, np.nan], [np.nan, 7.0]], np.float32).reshape(1, 2, 2, 1), device)
    y, dx = results(max_pool2d(x, 2), np.ones((1, 1, 1, 1)), x)
    assert np.isnan(y).all()
    np.testing.assert_array_equal(dx.ravel(), [0, 0, 1, 0])


def test_more_images_than_a_grid_has_rows(device):
    x = rng.standard_normal((65535 + 3, 2, 1, 1)).astype(np.float32)
    y = max_pool2d(tensor(x, device), (2, 1))
    np.testing.assert_array_equal(host(y), x.max(axis=1, keepdims=True))


@in_both_dtypes
@pytest.mark.parametrize("pool", [lambda x: max_pool2d(x, 2), lambda x: avg_pool2d(x, 2)])
def test_an_empty_batch_stays_empty(pool, dtype, device):
    x = leaf(np.zeros((0, 4, 4, 2), dtype), device)
    y = pool(x)
    backward(y, host(y))
    assert y.shape == (0, 2, 2, 2)
    assert x.grad.shape == x.shape
    assert y.dtype == x.grad.dtype == dtype


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: max_pool2d(x, 3, 2, 1),
        lambda x: max_pool2d(x, 3, 2),
        lambda x: max_pool2d(x, 2),
        lambda x: avg_pool2d(x, 2),
    ],
)
def test_dtype_memory_order_and_threads_change_nothing(pool, threads):
    x = draw(16, 16, True, n=40, c=32).astype(np.float32)
    results = []
    for count, given_x in ((1, x), (3, x), (2, np.asfortranarray(x))):
        threads(count)
        t = gpucnn.tensor(given_x, requires_grad=True)
        y = pool(t)
        y.backward(np.asarray(y.data))
        assert y.dtype == t.grad.dtype == np.float32
        results.append((y.data, t.grad))
    for y, dx in results[1:]:
        np.testing.assert_array_equal(y, results[0][0])
        np.testing.assert_array_equal(dx, results[0][1])


@in_both_dtypes
def test_a_window_of_more_than_255_pixels_along_a_side_keeps_its_winner(dtype, device):
    x = np.zeros((1, 300, 1, 1), dtype)
    x[0, 280] = 1
    t = leaf(x, device)
    backward(max_pool2d(t, (300, 1)), np.ones((1, 1, 1, 1)))
    np.testing.assert_array_equal(host(t.grad), x)


def test_a_window_of_more_pixels_than_15_bits_count_keeps_its_winner():
    x = np.zeros((1, 1, 2**15 + 9, 1), np.float32)
    x[0, 0, -2] = 1
    t = gpucnn.tensor(x, requires_grad=True)
    max_pool2d(t, x.shape[1:3]).sum().backward()
    np.testing.assert_array_equal(t.grad, x)


def test_overlapping_windows_of_more_than_255_pixels_keep_their_winner():
    x = draw(18, 18, False, n=2, c=1)
    t = gpucnn.tensor(x, requires_grad=True)
    y = max_pool2d(t, 16, 1)
    dy = rng.standard_normal(y.shape)
    y.backward(dy)
    expected_y, expected_dx = max_pool2d_loops(x, (16, 16), (1, 1), ((0, 0), (0, 0)), dy)
    np.testing.assert_array_equal(y.data, expected_y)
    np.testing.assert_allclose(t.grad, expected_dx, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("stride", "size"), [(1, 2), (2, 2), (2, 3)])
@in_both_dtypes
def test_where_all_is_minus_infinity_the_first_pixel_of_the_image_takes_the_gradient(
    stride, size, dtype, device
):
    t = leaf(np.full((1, 4, 4, 1), -np.inf), device, dtype)
    y = max_pool2d(t, size, stride, 1)
    actual_y, dx = results(y, np.ones(y.shape), t)
    expected = np.zeros((4, 4))
    for i in range(y.shape[1]):
        for j in range(y.shape[2]):
            expected[max(i * stride - 1, 0), max(j * stride - 1, 0)] += 1
    np.testing.assert_array_equal(actual_y, np.full(y.shape, -np.inf))
    np.testing.assert_array_equal(dx[0, ..., 0], expected)


@in_both_dtypes
def test_the_first_pixel_is_found_in_images_of_more_rows_than_16_bits_count(dtype, device):
    t = leaf(np.full((1, 40_001, 1, 1), -np.inf), device, dtype)
    dx = results(max_pool2d(t, (2, 1), 2, (1, 0)), np.ones((1, 20_001, 1, 1)), t)[1]
    assert dx.sum() == 20_001
    assert dx.max() == 1


@pytest.mark.parametrize("kernel_size", [2, 3, (1, 300)])
def test_winners_are_saved_only_where_a_gradient_is_needed(kernel_size, device):
    x = tensor(np.ones((1, 4, 300, 1), np.float32), device).data
    g = Geometry.of("pool", x.shape, kernel_size, stride=2)
    for keep in (False, True):
        with working_on(device_of(x)):
            assert (max_forward(x, g, keep)[1] is not None) == keep


def test_both_halves_have_the_same_signature():
    for pair in (max_forward, avg_forward, avg_backward):
        assert inspect.signature(pair.cpu) == inspect.signature(pair.cuda)


def test_mistakes_are_named(device):
    x = tensor(np.ones((1, 4, 4, 1)), device)
    with pytest.raises(ShapeError, match="does not fit"):
        max_pool2d(x, 5)
    with pytest.raises(ShapeError, match="only padding"):
        max_pool2d(x, 2, 2, 2)
    for below in (((1, 2), (0, 0)), ((0, 0), (1, 2))):  # the last window is past the image
        with pytest.raises(ShapeError, match="only padding"):
            max_pool2d(x, 2, 1, below)
    for shape in ((2, 3), (1, 0, 4, 2), (1, 4, 0, 2)):
        with pytest.raises(ShapeError, match="N, H, W, C"):
            global_avg_pool2d(tensor(np.ones(shape), device))
