"""Batch normalisation against its definition, finite differences and PyTorch."""

import inspect

import numpy as np
import pytest
from devices import assert_close, host, in_both_dtypes, leaf, results, tensor

import gpucnn
from gpucnn import nn, ops
from gpucnn.errors import ArgumentError, DtypeError, ShapeError
from gpucnn.ops import batch_norm
from gpucnn.ops.batch_norm.op import (
    _scale_shift,
    gradient_sums,
    input_gradient,
    normalized,
    statistics,
)
from gpucnn.testing import gradcheck

rng = np.random.default_rng(0)
SHAPES = [(5, 3), (4, 3, 2, 5), (2, 5, 7, 6), (64, 16, 16, 24), (3, 2, 1)]


def draw(shape, dtype=np.float64):
    c = shape[-1]
    x = rng.standard_normal(shape) * 3 + 2
    weight, bias, mean = rng.standard_normal((3, c))
    return [a.astype(dtype) for a in (x, weight, bias, mean, rng.random(c) + 0.5)]


@in_both_dtypes
@pytest.mark.parametrize("shape", SHAPES)
def test_training_normalises_by_the_batch(shape, dtype, device):
    x, weight, bias, mean, var = (a.astype(dtype).astype(np.float64) for a in draw(shape))
    axes = tuple(range(len(shape) - 1))
    m, v = x.mean(axes), x.var(axes)
    expected = (x - m) / np.sqrt(v + 1e-3) * weight + bias
    count = x.size // shape[-1]
    running = (0.8 * mean + 0.2 * m, 0.8 * var + 0.2 * v * count / (count - 1))
    *inputs, mean, var = (tensor(a, device, dtype) for a in (x, weight, bias, mean, var))
    y = batch_norm(*inputs, mean.data, var.data, True, 0.2, 1e-3)
    assert_close(y, expected)
    assert_close(mean, running[0])
    assert_close(var, running[1])


@in_both_dtypes
def test_evaluation_uses_the_running_estimates_and_keeps_them(dtype, device):
    x, weight, bias, mean, var = draw((4, 3, 2, 5), dtype)
    *inputs, running_mean, running_var = (tensor(a, device) for a in (x, weight, bias, mean, var))
    y = batch_norm(*inputs, running_mean.data, running_var.data, False)
    assert_close(y, (x - mean) / np.sqrt(var + 1e-5) * weight + bias)
    np.testing.assert_array_equal(host(running_mean), mean)
    np.testing.assert_array_equal(host(running_var), var)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 2, 4)])
def test_gradients_match_finite_differences(shape, training, device):
    x, weight, bias, mean, var = draw(shape)

    def op(*inputs):
        return batch_norm(*inputs, *(tensor(a.copy(), device).data for a in (mean, var)), training)

    gradcheck(op, x, weight, bias, device=device)


@in_both_dtypes
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", SHAPES[:4])
def test_equals_pytorch(shape, training, dtype, device):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    x, weight, bias, mean, var = (a.astype(dtype).astype(np.float64) for a in draw(shape))
    ours = [leaf(a, device, dtype) for a in (x, weight, bias)]
    own_running = [tensor(a, device, dtype).data for a in (mean, var)]
    theirs = [torch.tensor(a, requires_grad=True) for a in (x, weight, bias)]
    running = [torch.tensor(mean), torch.tensor(var)]
    expected = torch.nn.functional.batch_norm(
        theirs[0].movedim(-1, 1), *running, *theirs[1:], training
    ).movedim(1, -1)
    dy = rng.standard_normal(shape).astype(dtype)
    actual = results(batch_norm(*ours, *own_running, training), dy, *ours)
    expected.backward(torch.tensor(dy.astype(np.float64)))
    peers = [expected.detach(), *(t.grad for t in theirs), *running]
    for a, e in zip([*actual, *own_running], peers, strict=True):
        assert_close(a, e.numpy())


@pytest.mark.parametrize("shape", SHAPES)
def test_numpy_halves_equal_the_array_halves(shape):
    x, weight, bias, mean, var = draw(shape)
    dy = rng.standard_normal(shape)
    scale = 1 / np.sqrt(var)
    for pair, arguments in (
        (statistics, (x, 1e-5)),
        (normalized, (x, weight, bias, mean, scale)),
        (gradient_sums, (dy, x, mean, scale)),
        (input_gradient, (dy, x, weight, mean, scale, np.stack((bias, var)), 7)),
        (_scale_shift, (x, weight, bias)),
    ):
        assert inspect.signature(pair.cpu) == inspect.signature(pair.cuda)
        actual, expected = pair.cpu(*arguments), pair.cuda(*arguments)
        for a, e in zip(actual, expected, strict=True):
            np.testing.assert_allclose(a, e, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("training", [True, False])
def test_dtype_memory_order_and_threads_change_nothing(training, threads):
    x, weight, bias, mean, var = draw((64, 16, 16, 24), np.float32)
    results = []
    for count, given in ((1, x), (3, x), (2, np.asfortranarray(x))):
        threads(count)
        inputs = [gpucnn.tensor(a, requires_grad=True) for a in (given, weight, bias)]
        running = mean.copy(), var.copy()
        y = batch_norm(*inputs, *running, training)
        y.backward(x)
        results.append([y.data, *(t.grad for t in inputs), *running])
        assert {a.dtype for a in results[-1]} == {np.dtype(np.float32)}
    for other in results[1:]:
        for a, e in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(a, e)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("trained", [0, 1, 2], ids=["x", "weight", "bias"])
def test_an_input_gets_its_gradient_while_the_others_are_frozen(trained, training, device):
    *arrays, mean, var = draw((4, 3))
    dy, gradients = rng.standard_normal((4, 3)), []
    for frozen in (False, True):
        inputs = [tensor(a, device, grad=not frozen or i == trained) for i, a in enumerate(arrays)]
        running = (tensor(a.copy(), device).data for a in (mean, var))
        y = batch_norm(*inputs, *running, training)
        gradients.append(results(y, dy, inputs[trained])[1])
        assert [t.grad is not None for t in inputs] == [t.requires_grad for t in inputs]
    np.testing.assert_array_equal(*gradients)


def test_a_large_mean_does_not_swallow_the_variance(device):
    x = (rng.standard_normal((4096, 3)) + 1000).astype(np.float32)
    one, zero = np.ones(3, np.float32), np.zeros(3, np.float32)
    x, *rest = (tensor(a, device) for a in (x, one, zero, zero.copy(), one.copy()))
    y = batch_norm(x, *rest[:2], *(t.data for t in rest[2:]), True)
    np.testing.assert_allclose(host(y).std(axis=0), 1, rtol=1e-3)


def test_mistakes_are_named(device):
    *tensors, mean, var = (tensor(a, device) for a in draw((4, 3)))
    mean, var = mean.data, var.data
    with pytest.raises(ShapeError, match="running_var has shape"):
        batch_norm(*tensors, mean, var[:2], True)
    with pytest.raises(ShapeError, match="at least two values"):
        batch_norm(tensors[0][:1], *tensors[1:], mean, var, True)
    with pytest.raises(DtypeError, match="float32"):
        batch_norm(tensors[0].astype(np.float32), *tensors[1:], mean, var, True)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(7, 3), (9, 5, 4, 6), (40, 16, 16, 24)])
def test_a_fused_gelu_equals_gelu_after_batch_norm(shape, dtype, training, device):
    arrays, found = draw(shape, np.float32), []
    dtypes = dtype, *[np.promote_types(dtype, np.float32)] * 2
    for fused in (True, False):
        x, weight, bias = (
            tensor(a, device, t, grad=True) for a, t in zip(arrays, dtypes, strict=False)
        )
        running = [tensor(a.copy(), device).data for a in arrays[3:]]
        y = batch_norm(x, weight, bias, *running, training, gelu=fused)
        y = y if fused else ops.gelu(y)
        dy = np.random.default_rng(3).standard_normal(shape)
        found.append([*results(y, dy, x, weight, bias), *map(host, running)])
    for a, e in zip(*found, strict=True):
        assert a.dtype == e.dtype
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=2e-4 * np.abs(e).max())


def test_a_fused_gelu_keeps_dy_and_a_kept_graph_gives_the_same_gradients_again():
    x = gpucnn.tensor(np.random.default_rng(0).standard_normal((64, 24)).astype(np.float32))
    x.requires_grad = True
    ones = gpucnn.tensor(np.ones(24, np.float32))
    running = np.zeros(24, np.float32), np.ones(24, np.float32)
    y = batch_norm(x, ones, ones, *running, True, gelu=True)
    dy = np.random.default_rng(1).standard_normal((64, 24)).astype(np.float32)
    before = dy.copy()
    y.backward(dy, retain_graph=True)
    first, x.grad = x.grad, None
    y.backward(dy)
    np.testing.assert_array_equal(dy, before)
    np.testing.assert_array_equal(x.grad, first)


def test_sequential_fuses_the_exact_gelu_alone(monkeypatch):
    seen = []
    monkeypatch.setattr(ops, "gelu", lambda x, approximate="none": (seen.append(approximate), x)[1])
    x = gpucnn.tensor(np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32))
    for layer in (nn.GELU(), nn.GELU("tanh")):
        nn.Sequential(nn.BatchNorm1d(4), layer)(x)
    assert seen == ["tanh"]
    with pytest.raises(ArgumentError, match="relu and gelu are both set"):
        nn.BatchNorm1d(4)(x, True, True)
