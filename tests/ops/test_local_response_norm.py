"""Local response normalisation against its definition, finite differences and PyTorch."""

import inspect

import numpy as np
import pytest
from devices import assert_close, in_both_dtypes, leaf, results, tensor

import gpucnn
from gpucnn.errors import ArgumentError
from gpucnn.ops import local_response_norm
from gpucnn.ops.local_response_norm import _backward, _forward
from gpucnn.testing import gradcheck

rng = np.random.default_rng(0)
CASES = [
    ((2, 3, 3, 7), (5, 0.1, 0.75, 2.0)),
    ((4, 9), (4, 0.3, 0.75, 1.0)),
    ((2, 2, 3), (7, 0.3, 0.5, 1.5)),  # a window of more than all channels
    ((3, 1), (5, 0.3, 1.0, 1.0)),
    ((3, 6), (1, 0.3, 0.75, 1.0)),
    ((64, 16, 16, 24), (5, 1e-4, 0.75, 2.0)),
]


def by_definition(x, size, alpha, beta, k):
    y, channels = np.empty_like(x), x.shape[-1]
    for c in range(channels):
        first = c - size // 2
        near = x[..., max(first, 0) : max(min(first + size, channels), 0)]
        y[..., c] = x[..., c] / (k + alpha * (near**2).sum(-1)) ** beta
    return y


@in_both_dtypes
@pytest.mark.parametrize(("shape", "constants"), CASES)
def test_matches_the_definition(shape, constants, dtype, device):
    x = rng.standard_normal(shape).astype(dtype)
    y = local_response_norm(tensor(x, device), *constants)
    assert_close(y, by_definition(x.astype(np.float64), *constants))


@pytest.mark.parametrize(("shape", "constants"), CASES[:5])
def test_gradients_match_finite_differences(shape, constants, device):
    x = rng.standard_normal(shape)
    gradcheck(lambda t: local_response_norm(t, *constants), x, device=device)


@pytest.mark.parametrize(("shape", "constants"), CASES)
def test_numpy_halves_equal_the_array_halves(shape, constants):
    x, dy = rng.standard_normal((2, *shape))
    np.testing.assert_allclose(_forward.cpu(x, *constants), _forward.cuda(x, *constants))
    np.testing.assert_allclose(
        _backward.cpu(dy, x, *constants), _backward.cuda(dy, x, *constants), rtol=1e-9, atol=1e-12
    )
    for pair in (_forward, _backward):
        assert inspect.signature(pair.cpu) == inspect.signature(pair.cuda)


@in_both_dtypes
@pytest.mark.parametrize("size", [1, 4, 5])
def test_equals_pytorch_given_alpha_times_size(size, dtype, device):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    x, dy = rng.standard_normal((2, 2, 4, 5, 9)).astype(dtype)
    ours, theirs = leaf(x, device), torch.tensor(x.astype(np.float64), requires_grad=True)
    y = local_response_norm(ours, size, 0.1 / size, 0.75, 2.0)
    expected = torch.nn.functional.local_response_norm(theirs.movedim(-1, 1), size, 0.1, 0.75, 2.0)
    expected.movedim(1, -1).backward(torch.tensor(dy.astype(np.float64)))
    actual_y, dx = results(y, dy, ours)
    assert_close(actual_y, expected.detach().movedim(1, -1).numpy())
    assert_close(dx, theirs.grad.numpy())


def test_dtype_memory_order_and_threads_change_nothing(threads):
    x = rng.standard_normal((64, 16, 16, 24), dtype=np.float32)
    results = []
    for count, given in ((1, x), (3, x), (2, np.asfortranarray(x))):
        threads(count)
        t = gpucnn.tensor(given, requires_grad=True)
        y = local_response_norm(t)
        y.backward(x)
        assert y.dtype == t.grad.dtype == np.float32
        results.append((y.data, t.grad))
    for other in results[1:]:
        for a, e in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(a, e)


@in_both_dtypes
def test_an_empty_batch_stays_empty(dtype, device):
    t = leaf(np.zeros((0, 2, 2, 3), dtype), device)
    y = local_response_norm(t)
    y.backward(y.data)
    assert y.shape == t.grad.shape == t.shape


def test_mistakes_are_named():
    for arguments in ({"size": 0}, {"k": 0.0}):
        with pytest.raises(ArgumentError, match="size >= 1 and k > 0"):
            local_response_norm(gpucnn.tensor(np.ones((2, 3))), **arguments)
