"""The dense layer."""

import inspect

import numpy as np
import pytest
from devices import assert_close, in_both_dtypes, leaf, results, tensor
from threadpoolctl import threadpool_limits

import gpucnn
from gpucnn import cuda, ops
from gpucnn.autograd import Function
from gpucnn.errors import DtypeError, ShapeError
from gpucnn.ops import linear
from gpucnn.ops.linear import _backward, _forward
from gpucnn.testing import gradcheck

rng = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(4, 3), (3,), (2, 5, 3), (0, 3)])
@pytest.mark.parametrize("with_bias", [True, False])
@in_both_dtypes
def test_matches_einsum(shape, with_bias, dtype, device):
    arrays = [rng.standard_normal(s).astype(dtype) for s in (shape, (6, 3), (6,))]
    inputs = [leaf(a, device) for a in (arrays if with_bias else arrays[:2])]
    x, weight, bias = (a.astype(np.float64) for a in arrays)
    y = linear(*inputs)
    dy = rng.standard_normal(y.shape).astype(dtype)
    actual = results(y, dy, *inputs)
    expected = [
        np.einsum("...i,oi->...o", x, weight) + (bias if with_bias else 0),
        np.einsum("...o,oi->...i", dy, weight),
        np.einsum("no,ni->oi", dy.reshape(-1, 6), x.reshape(-1, 3)),
        dy.reshape(-1, 6).sum(axis=0),
    ]
    assert {a.dtype for a in actual} == {np.dtype(dtype)}
    for a, e in zip(actual, expected[: len(actual)], strict=True):
        assert_close(a, e)


@pytest.mark.parametrize("shape", [(4, 3), (3,), (2, 5, 3)])
def test_gradients_match_finite_differences(shape, device):
    x, weight, bias = (
        rng.standard_normal(shape),
        rng.standard_normal((6, 3)),
        rng.standard_normal(6),
    )
    gradcheck(linear, x, weight, bias, device=device)
    gradcheck(linear, x, weight, device=device)


@pytest.mark.parametrize("shape", [(7, 300, 520), (2100, 5, 3), (0, 4, 3), (2, 1, 1)])
def test_numpy_halves_equal_the_array_halves(shape):
    rows, features, outputs = shape
    x, weight = rng.standard_normal((rows, features)), rng.standard_normal((outputs, features))
    bias, dy = rng.standard_normal(outputs), rng.standard_normal((rows, outputs))
    for relu in (False, True):
        arguments = (x, weight, bias, relu, x.dtype, None)
        (mine, _), (theirs, _) = _forward.cpu(*arguments), _forward.cuda(*arguments)
        np.testing.assert_allclose(mine, theirs, atol=1e-11)
    needs = (True, True, True)
    for a, e in zip(
        _backward.cpu(dy, x, weight, needs), _backward.cuda(dy, x, weight, needs), strict=True
    ):
        np.testing.assert_allclose(a, e, atol=1e-10)
    for pair in (_forward, _backward):
        assert inspect.signature(pair.cpu) == inspect.signature(pair.cuda)


@pytest.mark.parametrize("rows", [0, 1, 4096, 4097, 9000])
@in_both_dtypes
def test_the_gradient_of_a_bias_is_the_sum_of_every_row(rows, dtype, device):
    x, weight, bias = np.zeros((rows, 2), dtype), np.zeros((3, 2), dtype), np.zeros(3, dtype)
    leaves = [leaf(a, device) for a in (x, weight, bias)]
    dy = rng.standard_normal((rows, 3)).astype(dtype)
    *_, dbias = results(linear(*leaves), dy, *leaves)
    assert_close(dbias, dy.astype(np.float64).sum(axis=0))


def test_only_what_needs_a_gradient_gets_one():
    x, weight = rng.standard_normal((4, 3)), rng.standard_normal((5, 3))
    for needs in ((True, False, False), (False, True, True)):
        given = _backward.cpu(np.ones((4, 5)), x, weight, needs)
        assert tuple(g is not None for g in given) == needs


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_memory_order_and_threads_change_nothing(dtype, threads):
    x, weight, bias = (
        rng.standard_normal(s).astype(dtype) for s in ((1500, 600), (520, 600), (520,))
    )
    dy = rng.standard_normal((1500, 520)).astype(dtype)
    results = []
    for count in (1, 3, 2):
        threads(count)
        inputs = [gpucnn.tensor(a, requires_grad=True) for a in (x, weight, bias)]
        y = linear(*inputs)
        y.backward(dy)
        results.append([y.data, *(t.grad for t in inputs)])
        assert {a.dtype for a in results[-1]} == {np.dtype(dtype)}
    for other in results[1:]:
        for a, e in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(a, e)
    y = linear(*map(gpucnn.tensor, (np.asfortranarray(x), np.asfortranarray(weight), bias)))
    np.testing.assert_allclose(y.data, results[0][0], rtol=1e-3, atol=1e-3)


@in_both_dtypes
def test_the_bits_do_not_depend_on_the_number_of_blas_threads(dtype, threads):
    arrays = [rng.standard_normal(s).astype(dtype) for s in ((301, 517), (623, 517), (623,))]
    dy, found = rng.standard_normal((301, 623)).astype(dtype), []
    for ours, of_blas in [(1, 1), (1, 2), (2, 3), (4, 4)]:
        threads(ours)
        with threadpool_limits(of_blas, user_api="blas"):
            inputs = [leaf(a, "cpu") for a in arrays]
            found.append(results(linear(*inputs), dy, *inputs))
    for others in found[1:]:
        for mine, theirs in zip(found[0], others, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_mistakes_are_named(device):
    x, weight = tensor(np.ones((2, 3)), device), tensor(np.ones((4, 5)), device)
    with pytest.raises(ShapeError, match="x has 3 features, weight expects 5"):
        linear(x, weight)
    weight = tensor(np.ones((4, 3)), device)
    with pytest.raises(ShapeError, match=r"bias of shape \(4,\)"):
        linear(x, weight, tensor(np.ones(3), device))
    with pytest.raises(DtypeError, match="float32"):
        linear(x.astype(np.float32), weight)
    with pytest.raises(ShapeError, match="OUT, IN"):
        linear(x, tensor(np.ones(3), device))


# --- the fused ReLU, half precision, masks ---


@in_both_dtypes
def test_a_fused_relu_has_the_bits_of_a_relu_that_follows(dtype, device):
    arrays = [rng.standard_normal(s).astype(dtype) for s in ((5, 12), (7, 12), (7,))]
    arrays[0][0] = np.nan
    dy = rng.standard_normal((5, 7)).astype(dtype)
    found = []
    for fused in (True, False):
        leaves = [leaf(a, device) for a in arrays]
        y = linear(*leaves, relu=True) if fused else ops.relu(linear(*leaves))
        found.append(results(y, dy, *leaves))
    assert np.isnan(found[0][0][0]).all()
    for a, e in zip(*found, strict=True):
        np.testing.assert_array_equal(a, e)


@pytest.mark.parametrize("sizes", [(9, 24, 16), (9, 13, 5)])
def test_autocast_rounds_operands_and_returns_half_precision(sizes, device):
    rows, features, outputs = sizes
    arrays = [
        rng.standard_normal(s).astype(np.float32)
        for s in ((rows, features), (outputs, features), (outputs,))
    ]
    leaves = [leaf(a, device) for a in arrays]
    with gpucnn.autocast("float16"):
        y = linear(*leaves)
    assert y.dtype == np.float16
    dy = rng.standard_normal((rows, outputs)).astype(np.float16)
    actual, dx, dweight, dbias = results(y, dy, *leaves)
    x, weight = (a.astype(np.float16).astype(np.float64) for a in arrays[:2])
    wide = dy.astype(np.float64)
    np.testing.assert_allclose(actual, x @ weight.T + arrays[2], rtol=2e-3, atol=1e-3)
    # The gradients of float32 tensors are sums in float32, of rounded factors.
    expected = wide @ weight, wide.T @ x, wide.sum(0)
    for gradient, exact in zip((dx, dweight, dbias), expected, strict=True):
        assert gradient.dtype == np.float32
        np.testing.assert_allclose(gradient, exact, rtol=1e-5, atol=1e-5)


def test_a_copy_of_the_weight_in_half_precision_is_made_once(gpu):
    x, weight = (leaf(np.ones(s, np.float32), gpu) for s in ((2, 16), (8, 16)))
    with gpucnn.autocast("float16"):
        linear(x, weight)
        copy = weight.cache()["half", np.dtype(np.float16)]
        linear(x, weight)
    assert weight.cache()["half", np.dtype(np.float16)] is copy


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_a_layer_masks_the_gradient_of_the_relu_before_it(dtype, gpu, monkeypatch):
    arrays = [rng.standard_normal(s).astype(np.float32) for s in ((6, 16), (24, 16), (8, 24))]
    found = []
    for masks in (True, False):
        if not masks:
            monkeypatch.setattr(Function, "mask", lambda self, i: None)
        x, first, second = (leaf(a, gpu) for a in arrays)
        with gpucnn.autocast(dtype or "float16", enabled=dtype is not None):
            y = linear(linear(x, first, relu=True), second)
        dy = np.random.default_rng(2).standard_normal((6, 8)).astype(y.dtype)
        with cuda.count_launches() as launches:
            found.append(results(y, dy, x, first, second))
        assert ("relu_backward" in launches) != masks
    for a, e in zip(*found, strict=True):
        np.testing.assert_array_equal(a, e)


def test_one_launch_computes_a_layer_and_two_its_gradients(gpu):
    leaves = [leaf(np.ones(s, np.float32), gpu) for s in ((4, 16), (8, 16), (8,))]
    with cuda.count_launches() as launches:
        y = linear(*leaves, relu=True)
        assert sum(launches.values()) == 1
        y.backward(y.data)
    assert {name: n for name, n in launches.items() if name != "relu_backward"} == {"gemm": 3}
