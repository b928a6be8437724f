import math

import numpy as np
import pytest
from devices import host, in_both_dtypes, leaf, results, tensor

from gpucnn import nn, ops
from gpucnn.errors import ArgumentError
from gpucnn.testing import gradcheck

SQRT_HALF = math.sqrt(0.5)


def exact(x):
    return np.array([float(v) * 0.5 * math.erfc(-float(v) * SQRT_HALF) for v in x])


def exact_slope(x):
    density = [math.exp(-0.5 * float(v) ** 2) / math.sqrt(2 * math.pi) for v in x]
    phi = [0.5 * math.erfc(-float(v) * SQRT_HALF) for v in x]
    return np.array([p + float(v) * d for v, p, d in zip(x, phi, density, strict=True)])


def dense():
    """float32 values: near 0 and subnormal, through the bend, and the tails until y underflows."""
    small = np.geomspace(1e-45, 1, 4001)
    bend = np.linspace(-6, 6, 20001)
    tails = np.concatenate([np.linspace(-13, -6, 8001), np.geomspace(6, 3e38, 501)])
    # On the CPU 7.8 and 3.1 ulp: of all float32 numbers from 2**-12 to 13, nearest to the bound
    worst = [-1.3078754, 0.059615757]
    return np.concatenate([small, -small, bend, tails, worst]).astype(np.float32)


def test_float32_gelu_is_within_the_stated_ulps_of_erf(device):
    x = dense()
    y, value = host(ops.gelu(tensor(x, device))), exact(x)
    ulp = np.spacing(np.abs(value).astype(np.float32)).astype(np.float64)
    allowed = np.where(x < 0, 5 + 2 * np.minimum(x, 0).astype(np.float64) ** 2, 4.0)
    least = np.finfo(np.float32).tiny * (1 if device == "cpu" else 64)  # CuPy flushes factors to 0
    normal = np.abs(value) >= least
    assert y.dtype == np.float32
    assert (np.abs(y - value) <= allowed * ulp)[normal].all()
    assert (np.abs(y - value) <= least)[~normal].all()


@pytest.mark.parametrize("with_zeros", [False, True])
def test_the_float32_gradient_is_within_3e_7(with_zeros, device):
    x = np.abs(dense()) * np.sign(dense())
    x = x if with_zeros else x[np.abs(x) > 1e-12]  # NumPy's short and long way
    x = x[np.abs(x) < 1e18]
    t = leaf(x, device)
    _, dx = results(ops.gelu(t), np.ones_like(x), t)
    assert np.abs(dx - exact_slope(x)).max() < 3e-7


def test_float64_gelu_equals_erf_and_its_gradient_matches_finite_differences(device, rng):
    x = np.concatenate([np.linspace(-30, 30, 2001), np.geomspace(1e-300, 1, 101), [0.0, 1e300]])
    t = leaf(x, device)
    y, dx = results(ops.gelu(t), np.ones_like(x), t)
    np.testing.assert_allclose(y, exact(x), rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(dx[:-1], exact_slope(x[:-1]), rtol=1e-11, atol=1e-14)
    gradcheck(ops.gelu, 3 * rng.standard_normal((5, 7)), device=device)


@in_both_dtypes
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_infinities_zeros_and_nan_follow_the_docstring(approximate, dtype, device):
    x = leaf(np.array([np.inf, -np.inf, np.nan, 0, -0.0, 1e30, -1e30], dtype), device)
    with np.errstate(all="raise", under="ignore"):
        y, dx = results(ops.gelu(x, approximate), np.full(7, 2.0), x)
    np.testing.assert_array_equal(y, np.array([np.inf, 0, np.nan, 0, 0, 1e30, 0], dtype))
    np.testing.assert_allclose(dx, [2, 0, np.nan, 1, 1, 2, 0], rtol=1e-14, atol=0)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("shape", [(), (0, 3), (3, 5), (70001,)])
def test_gelu_and_its_gradient_equal_pytorchs(shape, approximate, device, rng):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    x = rng.standard_normal(shape).astype(np.float32) * 3
    dy = rng.standard_normal(shape).astype(np.float32)
    ours, theirs = leaf(x, device), torch.tensor(x, requires_grad=True)
    y, dx = results(nn.GELU(approximate)(ours), dy, ours)
    expected = torch.nn.functional.gelu(theirs, approximate=approximate)
    expected.backward(torch.tensor(dy))
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(
        dx, theirs.grad.numpy(), rtol=1e-6, atol=1e-5 if approximate == "tanh" else 1e-6
    )


def test_a_transposed_input_and_a_result_used_twice(device, rng):
    x = rng.standard_normal((6, 4)).astype(np.float32)
    t = leaf(x, device)
    y = ops.gelu(t.T)
    _, dx = results(y * y, np.ones((4, 6)), t)
    expected = 2 * exact(x.reshape(-1)) * exact_slope(x.reshape(-1))
    np.testing.assert_allclose(dx.reshape(-1), expected, rtol=1e-5, atol=1e-6)


def test_float16_gelu_equals_the_rounded_float32_one(device):
    x = np.array([-6e4, -20, -9, -3, -0.01, 0, 0.5, 8, 300, 6e4], np.float16)
    half, single = leaf(x, device), leaf(x.astype(np.float32), device)
    for a, b in zip(*(results(ops.gelu(t), np.ones(10), t) for t in (half, single)), strict=True):
        assert a.dtype == np.float16
        np.testing.assert_allclose(a, b.astype(np.float16), rtol=1e-3, atol=1e-7)


def test_another_approximation_is_refused():
    for call in (nn.GELU, lambda approximate: ops.gelu(tensor(1.0, "cpu"), approximate)):
        with pytest.raises(ArgumentError, match="'none' or 'tanh', got 'erf'"):
            call("erf")
