"""NaN and infinities: PyTorch's results, on every device and in the fused ops."""

import numpy as np
import pytest
from devices import host, in_both_dtypes, leaf, results, tensor

from gpucnn import ops

# float16 takes the portable path on a GPU, with one warning.
DTYPES = pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])


def strange(rng, shape, dtype, *values):
    """Normal numbers, about a third of them replaced by `values`."""
    x = rng.standard_normal(shape).astype(dtype)
    which = rng.integers(0, 3 * len(values), shape)
    for i, value in enumerate(values):
        x[which == i] = value
    return x


POOLS = [
    ops.MaxPool(2, 2),
    ops.MaxPool(3, 2),
    ops.MaxPool(3, 2, 1),
    ops.MaxPool(2, 2, 1, ceil_mode=True),
    ops.MaxPool(2, 1, 1),
    ops.MaxPool((1, 3), (2, 3), ceil_mode=True),
    ops.MaxPool(3, 3, 1),
    ops.MaxPool((3, 2), (4, 3), (1, 0)),
]


def max_pool2d(x, pool):
    """ops.max_pool2d with the arguments in `pool`."""
    return ops.max_pool2d(x, pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode)


@pytest.mark.parametrize("pool", POOLS, ids=str)
@DTYPES
def test_max_pooling_and_its_gradient_are_pytorchs(pool, dtype, device, rng):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    for values in ((np.nan, np.inf), (-np.inf,) * 30, (np.nan, -np.inf), (0.0, -0.0)):
        x = strange(rng, (2, 9, 8, 3), dtype, *values)
        t, other = leaf(x, device), torch.tensor(x.astype(np.float64), requires_grad=True)
        y = max_pool2d(t, pool)
        dy = strange(rng, y.shape, dtype, np.inf, np.nan)
        theirs = torch.nn.functional.max_pool2d(
            other.permute(0, 3, 1, 2),
            pool.kernel_size,
            pool.stride,
            pool.padding,
            ceil_mode=pool.ceil_mode,
        )
        theirs.backward(torch.tensor(dy.astype(np.float64)).permute(0, 3, 1, 2))
        actual_y, dx = results(y, dy, t)
        np.testing.assert_array_equal(actual_y, theirs.detach().permute(0, 2, 3, 1).numpy())
        accuracy = 4e-3 if dtype == np.float16 else 1e-6
        np.testing.assert_allclose(dx, other.grad.numpy(), rtol=accuracy, atol=accuracy)
        assert actual_y.dtype == dx.dtype == dtype


@pytest.mark.parametrize("name", ["relu", "leaky_relu"])
@DTYPES
def test_rectifiers_and_their_gradients_are_pytorchs(name, dtype, device, rng):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    x = strange(rng, (70_001,), dtype, np.nan, np.inf, -np.inf, 0.0, -0.0)
    dy = strange(rng, (70_001,), dtype, np.nan, np.inf, -np.inf)
    t, other = leaf(x, device), torch.tensor(x, requires_grad=True)
    theirs = getattr(torch.nn.functional, name)(other)
    theirs.backward(torch.tensor(dy))
    accuracy = 2e-3 if dtype == np.float16 else 1e-6
    y, dx = results(getattr(ops, name)(t), dy, t)
    np.testing.assert_allclose(y, theirs.detach().numpy(), rtol=accuracy)
    np.testing.assert_allclose(dx, other.grad.numpy(), rtol=accuracy)


@DTYPES
def test_a_dropped_infinity_is_zero_and_so_is_its_gradient(dtype, device):
    x = leaf(np.full((4, 1000), np.inf), device, dtype)
    dy = np.full((4, 1000), np.nan)
    for generator in (np.random.Generator(np.random.Philox(1)), np.random.default_rng(1)):
        x.grad = None
        y, dx = results(ops.dropout(x, 0.5, True, generator), dy, x)
        assert 0.4 < np.isinf(y).mean() < 0.6
        np.testing.assert_array_equal(y == 0, ~np.isinf(y))
        np.testing.assert_array_equal(dx, np.where(y == 0, 0, np.nan))


INF_MINUS_INF = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # from BLAS


@INF_MINUS_INF
@pytest.mark.parametrize("algorithm", ["exact", "winograd"])
@pytest.mark.parametrize("channels", [3, 16])
@pytest.mark.parametrize("pool", [*POOLS, None], ids=str)
@in_both_dtypes
def test_fused_relu_and_pooling_treat_nan_and_infinity_as_separate_ops_do(
    pool, channels, algorithm, dtype, conv_algorithm, rng
):
    conv_algorithm(algorithm)
    compare_fused("cpu", pool, channels, dtype, rng)


@INF_MINUS_INF
@pytest.mark.parametrize("pool", [*POOLS[:3], None], ids=str)
@in_both_dtypes
def test_fused_relu_and_pooling_treat_nan_and_infinity_as_separate_ops_do_on_a_gpu(
    pool, dtype, gpu, rng
):
    compare_fused(gpu, pool, 3, dtype, rng)


def compare_fused(device, pool, channels, dtype, rng):
    x = strange(rng, (3, 9, 16, channels), dtype, *[0.0] * 20, np.nan, np.inf)
    weight = rng.standard_normal((16, 3, 3, channels)).astype(dtype)
    bias = rng.standard_normal(16).astype(dtype)
    found = []
    for fused in (True, False):
        leaves = leaf(x, device), tensor(weight, device), leaf(bias, device)
        y = ops.conv2d(*leaves, padding=1, relu=fused, pool=pool if fused else None)
        if not fused:
            y = ops.relu(y)
            y = y if pool is None else max_pool2d(y, pool)
        dy = np.random.default_rng(1).standard_normal(y.shape).astype(dtype)
        dy[host(y) == 0] = np.inf  # under the ReLU
        found.append(results(y, dy, leaves[0], leaves[2]))
    assert np.isnan(found[0][0]).any()
    assert np.isfinite(found[0][1]).all()
    for fused, separate in zip(*found, strict=True):
        np.testing.assert_allclose(fused, separate, rtol=1e-4, atol=1e-4)
