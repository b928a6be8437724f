"""Batch normalisation against its definition, finite differences and PyTorch."""

import inspect

import numpy as np
import pytest

import gpucnn
from gpucnn.errors import DtypeError, ShapeError
from gpucnn.ops import batch_norm
from gpucnn.ops.batch_norm import _backward, _forward, _scale_shift
from gpucnn.testing import gradcheck

rng = np.random.default_rng(0)
SHAPES = [(5, 3), (4, 3, 2, 5), (2, 5, 7, 6), (64, 16, 16, 24), (3, 2, 1)]


def draw(shape, dtype=np.float64):
    c = shape[-1]
    x = rng.standard_normal(shape) * 3 + 2
    gamma, beta, mean = rng.standard_normal((3, c))
    return [a.astype(dtype) for a in (x, gamma, beta, mean, rng.random(c) + 0.5)]


@pytest.mark.parametrize("shape", SHAPES)
def test_training_normalises_by_the_batch(shape):
    x, gamma, beta, mean, var = draw(shape)
    axes = tuple(range(len(shape) - 1))
    m, v = x.mean(axes), x.var(axes)
    expected = (x - m) / np.sqrt(v + 1e-3) * gamma + beta
    count = x.size // shape[-1]
    running = (0.8 * mean + 0.2 * m, 0.8 * var + 0.2 * v * count / (count - 1))
    y = batch_norm(*map(gpucnn.tensor, (x, gamma, beta)), mean, var, True, 0.2, 1e-3)
    np.testing.assert_allclose(y.data, expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose((mean, var), running, rtol=1e-12)


def test_evaluation_uses_the_running_estimates_and_leaves_them():
    x, gamma, beta, mean, var = draw((4, 3, 2, 5))
    before = mean.copy(), var.copy()
    y = batch_norm(*map(gpucnn.tensor, (x, gamma, beta)), mean, var, False)
    expected = (x - mean) / np.sqrt(var + 1e-5) * gamma + beta
    np.testing.assert_allclose(y.data, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal((mean, var), before)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 2, 4)])
def test_gradients_match_finite_differences(shape, training):
    x, gamma, beta, mean, var = draw(shape)
    gradcheck(lambda *t: batch_norm(*t, mean.copy(), var.copy(), training), x, gamma, beta)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", SHAPES[:4])
def test_equals_pytorch(shape, training):
    torch = pytest.importorskip("torch", reason="the peer of this test")
    x, gamma, beta, mean, var = draw(shape)
    ours = [gpucnn.tensor(a, requires_grad=True) for a in (x, gamma, beta)]
    theirs = [torch.tensor(a, requires_grad=True) for a in (x, gamma, beta)]
    running = [torch.tensor(mean), torch.tensor(var)]
    expected = torch.nn.functional.batch_norm(
        theirs[0].movedim(-1, 1), *running, *theirs[1:], training
    ).movedim(1, -1)
    y = batch_norm(*ours, mean, var, training)
    dy = rng.standard_normal(shape)
    y.backward(dy)
    expected.backward(torch.tensor(dy))
    np.testing.assert_allclose(y.data, expected.detach(), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose((mean, var), np.array([r.numpy() for r in running]), rtol=1e-10)
    for a, e in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.grad, e.grad, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_numpy_halves_equal_the_array_halves(shape):
    x, gamma, beta, mean, var = draw(shape)
    dy = rng.standard_normal(shape)
    scale = 1 / np.sqrt(var)
    for pair, arguments in (
        (_forward, (x, gamma, beta, 1e-5)),
        (_backward, (dy, x, gamma, mean, scale)),
        (_scale_shift, (x, gamma, beta)),
    ):
        assert inspect.signature(pair.cpu) == inspect.signature(pair.cuda)
        actual, expected = pair.cpu(*arguments), pair.cuda(*arguments)
        for a, e in zip(actual, expected, strict=True):
            np.testing.assert_allclose(a, e, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("training", [True, False])
def test_dtype_memory_order_and_threads_change_nothing(training):
    x, gamma, beta, mean, var = draw((64, 16, 16, 24), np.float32)
    before, results = gpucnn.get_num_threads(), []
    for threads, given in ((1, x), (3, x), (2, np.asfortranarray(x))):
        gpucnn.set_num_threads(threads)
        inputs = [gpucnn.tensor(a, requires_grad=True) for a in (given, gamma, beta)]
        running = mean.copy(), var.copy()
        y = batch_norm(*inputs, *running, training)
        y.backward(x)
        results.append([y.data, *(t.grad for t in inputs), *running])
        assert {a.dtype for a in results[-1]} == {np.dtype(np.float32)}
    gpucnn.set_num_threads(before)
    for other in results[1:]:
        for a, e in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(a, e)


def test_a_large_mean_does_not_swallow_the_variance():
    x = (rng.standard_normal((4096, 3)) + 1000).astype(np.float32)
    one, zero = np.ones(3, np.float32), np.zeros(3, np.float32)
    y = batch_norm(*map(gpucnn.tensor, (x, one, zero)), zero.copy(), one.copy(), True)
    np.testing.assert_allclose(y.data.std(axis=0), 1, rtol=1e-3)


def test_mistakes_are_named():
    x, gamma, beta, mean, var = draw((4, 3))
    tensors = [gpucnn.tensor(a) for a in (x, gamma, beta)]
    with pytest.raises(ShapeError, match="running_var has shape"):
        batch_norm(*tensors, mean, var[:2], True)
    with pytest.raises(ShapeError, match="two values or more"):
        batch_norm(gpucnn.tensor(x[:1]), *tensors[1:], mean, var, True)
    with pytest.raises(DtypeError, match="float32"):
        batch_norm(tensors[0].astype(np.float32), *tensors[1:], mean, var, True)
