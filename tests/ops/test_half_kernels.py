"""Half precision on a GPU: each result is the float64 one, rounded once."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from devices import host, leaf, relative, tensor

import gpucnn
from gpucnn import ops
from gpucnn.autograd import may_be_masked
from gpucnn.precision import bfloat16

ml_dtypes = pytest.importorskip("ml_dtypes", reason="needs ml_dtypes")

DTYPES = [np.dtype(np.float16), bfloat16()]
pytestmark = [
    pytest.mark.usefixtures("current"),
    pytest.mark.parametrize("dtype", DTYPES, ids=["float16", "bfloat16"]),
]


def assert_rounded(found: Any, exact: np.ndarray, dtype: np.dtype[Any], units: float = 0.5) -> None:
    """Assert that `found`, of `dtype`, is `exact` rounded once, but for a float32 error.

    units is what may be missing, in units of the last place: a half where numbers are rounded once.
    """
    found = host(found)
    assert found.dtype == dtype
    info = ml_dtypes.finfo(dtype)
    size = np.maximum(np.abs(exact), float(info.smallest_normal))
    unit = 2.0 ** np.floor(np.log2(size)) * float(info.eps)
    error = np.abs(found.astype(np.float64) - exact)
    slack = 4e-6 * np.abs(exact).max()
    assert (error <= unit * units + slack).all(), f"{(error / unit).max():.2f} units"


def rounded(array: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    return array.astype(dtype).astype(np.float64)


def check(
    op: Callable[..., gpucnn.Tensor],
    gpu: str,
    dtype: np.dtype[Any],
    *arrays: np.ndarray,
    units: float = 0.5,
) -> None:
    """Compare op of arrays, the first in `dtype` and the others in float32, with float64."""
    x = rounded(arrays[0], dtype)
    given = [x, *(a.astype(np.float32).astype(np.float64) for a in arrays[1:])]
    exact = [leaf(a, "cpu", np.float64) for a in given]
    y = op("cpu", *exact)
    dy = rounded(np.random.default_rng(9).standard_normal(y.shape), dtype)
    y.backward(dy)
    ours = [leaf(a, gpu, np.float32 if i else dtype) for i, a in enumerate(given)]
    z = op(gpu, *ours)
    z.backward(tensor(dy, gpu, z.dtype).data)
    if z.dtype == dtype:
        assert_rounded(z.data, y.data, dtype)
    assert_rounded(ours[0].grad, exact[0].grad, dtype, units)
    for mine, theirs in zip(ours[1:], exact[1:], strict=True):
        assert mine.grad.dtype == np.float32
        assert relative(mine.grad, theirs.grad) < 1e-5


# 1, 3 and 67 channels have no 16-byte accesses; 4 has them in float32 only
CHANNELS = [1, 4, 8, 67, 72]


@pytest.mark.parametrize("channels", CHANNELS)
def test_pools(channels, dtype, gpu, rng):
    x = rng.standard_normal((2, 7, 6, channels))
    for op in (
        lambda _, t: ops.max_pool2d(t, 3, 2, 1),
        lambda _, t: ops.max_pool2d(t, 2),
        lambda _, t: ops.max_pool2d(t, (2, 1), (3, 2), ((1, 0), (0, 0))),
        lambda _, t: ops.avg_pool2d(t, 3, 2, 1, ceil_mode=True),
        lambda _, t: ops.avg_pool2d(t, 2, count_include_pad=False),
        lambda _, t: ops.global_avg_pool2d(t),
        lambda _, t: ops.adaptive_avg_pool2d(t, (3, 4)),
    ):
        check(op, gpu, dtype, x)


def test_a_window_of_more_than_255_pixels(dtype, gpu, rng):
    for channels in (3, 8):
        check(lambda _, t: ops.max_pool2d(t, 17, 1), gpu, dtype, rng.random((1, 19, 18, channels)))


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm(training, channels, dtype, gpu, rng):
    x = rng.standard_normal((300, channels)) * 2 + 3
    gamma, beta, mean = (rng.standard_normal(channels) for _ in range(3))
    moved = []

    def op(device: str, t: gpucnn.Tensor, g: gpucnn.Tensor, b: gpucnn.Tensor) -> gpucnn.Tensor:
        wide = np.float64 if device == "cpu" else np.float32
        running = [tensor(a.astype(wide), device).data for a in (mean, 1 + mean * mean)]
        moved.append(running)
        return ops.batch_norm(t, g, b, *running, training=training)

    check(op, gpu, dtype, x, gamma, beta)
    for theirs, mine in zip(*moved, strict=True):
        assert relative(mine, theirs) < 1e-6


@pytest.mark.parametrize("channels", [1, 5, 96])
@pytest.mark.parametrize("size", [1, 4, 5, 11])
def test_local_response_norm(size, channels, dtype, gpu, rng):
    def op(_: str, t: gpucnn.Tensor) -> gpucnn.Tensor:
        return ops.local_response_norm(t, size, 0.3, 0.75, 1.5)

    check(op, gpu, dtype, rng.standard_normal((3, 9, 4, channels)))


def test_relu_leaky_relu_and_dropout(dtype, gpu, rng):
    for shape in ((5,), (16,), (3, 43)):
        x = rng.standard_normal(shape)
        check(lambda _, t: ops.relu(t), gpu, dtype, x)
        check(lambda _, t: ops.leaky_relu(t, 0.3), gpu, dtype, x)
    generators = {name: np.random.Generator(np.random.Philox(7)) for name in ("cpu", gpu)}
    for size in (5, 16, 1000, 4, 4097):  # after 4 and 5 a thread's numbers begin at odd places
        x = rng.standard_normal(size)
        check(lambda name, t: ops.dropout(t, 0.3, True, generators[name]), gpu, dtype, x)


@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_under_autocast_has_a_float32_loss(weighted, dtype, gpu, rng):
    labels, weights = rng.integers(0, 11, 37), rng.random(11)

    def op(device: str, t: gpucnn.Tensor) -> gpucnn.Tensor:
        given = tensor(weights.astype(t.dtype if device == "cpu" else np.float32), device)
        with gpucnn.autocast(dtype, enabled=device != "cpu"):
            y = ops.cross_entropy(t, labels, given if weighted else None, 0.1)
        assert device == "cpu" or y.dtype == np.float32
        return y

    x = rng.standard_normal((37, 11)) * 5
    # The bfloat16 gradient is rounded before dy scales it, and again afterwards; 1 does not.
    check(op, gpu, dtype, x, units=1.5 if dtype != np.float16 and not weighted else 0.5)
    exact, ours = leaf(rounded(x, dtype), "cpu", np.float64), leaf(x, gpu, dtype)
    op("cpu", exact).backward()
    op(gpu, ours).backward()
    assert_rounded(ours.grad, exact.grad, dtype)


def test_the_loss_keeps_the_logits_dtype_without_autocast(dtype, gpu, rng):
    x = rng.standard_normal((4, 3))
    assert ops.cross_entropy(leaf(x, gpu, dtype), np.array([0, 1, 2, 0])).dtype == dtype


def test_a_scaled_loss_reaches_logits_whose_gradient_float16_could_not_hold(dtype, gpu):
    rows = 4096
    x = np.zeros((rows, 2))
    x[:, 0] = 9  # the other class has a gradient of 3e-8: float16 ends at 6e-8
    for device in ("cpu", gpu):
        logits = leaf(x, device, dtype)
        with gpucnn.autocast(dtype):
            loss = ops.cross_entropy(logits, np.zeros(rows, np.int64))
        (loss * 1024.0).backward()
        expected = 1024 / (1 + np.exp(9.0)) / rows
        found = host(logits.grad).astype(np.float64)[:, 1]
        np.testing.assert_allclose(found, expected, rtol=2.0**-7)


def test_views_that_are_not_aligned(dtype, gpu, rng):
    x = rng.standard_normal((33, 8))
    whole = tensor(x, gpu, dtype).data
    part = whole.reshape(-1)[3 : 3 + 240].reshape(1, 5, 6, 8)
    assert part.data.ptr % 16
    for op in (
        ops.relu,
        lambda t: ops.leaky_relu(t, 0.1),
        lambda t: ops.max_pool2d(t, 2),
        lambda t: ops.avg_pool2d(t, 3, 1),
        lambda t: ops.local_response_norm(t),
        lambda t: ops.dropout(t, 0.5, True, np.random.Generator(np.random.Philox(1))),
    ):
        found = []
        for array in (part, part.copy()):
            t = gpucnn.Tensor(array, requires_grad=True)
            y = op(t)
            y.backward(y.data)
            found.append((host(y), host(t.grad)))
        for ours, theirs in zip(*found, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_nan_and_infinity(dtype, gpu):
    x = np.array([[np.nan, -1, np.inf, -np.inf, 0, -0.0, 2, 65504]])
    t = leaf(x, gpu, dtype)
    y = ops.relu(t)
    np.testing.assert_array_equal(host(y)[0, :5].astype(float), [np.nan, 0, np.inf, 0, 0])
    y.backward(tensor(np.full(x.shape, np.inf), gpu, dtype).data)
    expected = [np.inf, 0, np.inf, 0, 0, 0, np.inf, np.inf]
    np.testing.assert_array_equal(host(t.grad)[0].astype(float), expected)
    image = leaf(x.reshape(1, 1, 8, 1), gpu, dtype)
    pooled = ops.max_pool2d(image, (1, 4))
    assert np.isnan(host(pooled).ravel()[0].astype(float))
    assert not may_be_masked(pooled)
