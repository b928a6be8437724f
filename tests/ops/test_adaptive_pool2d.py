import numpy as np
import pytest
from devices import assert_close, host, in_both_dtypes, leaf, results, tensor

import gpucnn
from gpucnn import ops
from gpucnn.errors import ArgumentError, ShapeError
from gpucnn.testing import gradcheck


def by_loops(x, oh, ow):
    n, h, w, c = x.shape
    y = np.empty((n, oh, ow, c), x.dtype)
    for i in range(oh):
        rows = [r for r in range(h) if i * h / oh - 1 < r < (i + 1) * h / oh]
        for j in range(ow):
            columns = [s for s in range(w) if j * w / ow - 1 < s < (j + 1) * w / ow]
            y[:, i, j] = x[:, rows][:, :, columns].mean(axis=(1, 2))
    return y


@pytest.mark.parametrize("image", [(13, 7), (3, 20), (12, 6), (1, 1)])
@in_both_dtypes
def test_means_equal_those_of_plain_loops(image, dtype, device, rng):
    x = rng.standard_normal((2, *image, 3)).astype(dtype)
    y = ops.adaptive_avg_pool2d(tensor(x, device), (6, 4))
    assert y.dtype == dtype
    assert_close(y, by_loops(x.astype(np.float64), 6, 4))


@pytest.mark.parametrize("image", [(13, 7), (4, 20)])
def test_it_agrees_with_pytorch(image, device, rng):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    x = rng.standard_normal((2, *image, 3))
    y = host(ops.adaptive_avg_pool2d(tensor(x, device), (6, 4)))
    other = torch.nn.functional.adaptive_avg_pool2d(torch.tensor(x.transpose(0, 3, 1, 2)), (6, 4))
    assert np.allclose(y, other.numpy().transpose(0, 2, 3, 1), rtol=0, atol=1e-14)


@pytest.mark.parametrize("image", [(13, 7), (12, 8), (4, 20), (3, 3)])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@in_both_dtypes
def test_a_pixel_that_is_not_finite_stays_in_the_windows_that_hold_it(
    value, image, dtype, device, rng
):
    x = rng.standard_normal((2, *image, 3)).astype(dtype)
    x[1, image[0] // 2, 1, 2] = value
    actual, expected = host(ops.adaptive_avg_pool2d(tensor(x, device), (6, 4))), by_loops(x, 6, 4)
    assert 0 < np.isnan(expected).sum() + np.isinf(expected).sum() < expected.size / 2
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("image", [(13, 7), (12, 8)])
@in_both_dtypes
def test_an_infinite_gradient_stays_in_its_window(image, dtype, device, rng):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    x, dy = rng.standard_normal((1, *image, 2)).astype(dtype), np.ones((1, 6, 4, 2), dtype)
    dy[0, 3, 2, 1], dy[0, 0, 0, 0] = np.inf, np.nan
    t, other = leaf(x, device), torch.tensor(x, requires_grad=True)
    theirs = torch.nn.functional.adaptive_avg_pool2d(other.permute(0, 3, 1, 2), (6, 4))
    theirs.backward(torch.tensor(dy).permute(0, 3, 1, 2))
    _, dx = results(ops.adaptive_avg_pool2d(t, (6, 4)), dy, t)
    np.testing.assert_allclose(dx, other.grad.numpy(), rtol=1e-5)


def test_means_of_float16_are_finite_where_the_sums_are_not(device):
    for image in ((13, 7), (12, 8)):
        x = leaf(np.full((1, *image, 1), 6e4, np.float16), device)
        y, dx = results(ops.adaptive_avg_pool2d(x, (2, 2)), np.ones((1, 2, 2, 1)), x)
        np.testing.assert_array_equal(y, np.full((1, 2, 2, 1), np.float16(6e4)))
        assert dx.dtype == y.dtype == np.float16


def test_an_image_of_the_target_size_is_returned_itself(device, rng):
    x = tensor(rng.standard_normal((2, 6, 6, 3), dtype=np.float32), device)
    assert ops.adaptive_avg_pool2d(x, (6, 6)) is x


def test_gradients_match_finite_differences(device, rng):
    x = rng.standard_normal((2, 5, 4, 2))
    gradcheck(lambda x: ops.adaptive_avg_pool2d(x, (2, 3)), x, device=device)


def test_bad_shapes_and_sizes_are_refused():
    with pytest.raises(ShapeError, match="expected images"):
        ops.adaptive_avg_pool2d(gpucnn.tensor([1.0]), (2, 2))
    with pytest.raises(ArgumentError, match="at least 1"):
        ops.adaptive_avg_pool2d(gpucnn.tensor(np.ones((1, 4, 4, 1))), (0, 2))
