"""layer_norm and group_norm: PyTorch's values and gradients, accuracy, launches, errors."""

import numpy as np
import pytest
from devices import assert_close, host, in_both_dtypes, leaf, results, tensor

import gpucnn
from gpucnn import cuda, ops
from gpucnn.errors import ArgumentError, DtypeError, ShapeError
from gpucnn.precision import bfloat16
from gpucnn.testing import gradcheck

# 8 channels in groups of 1, 4 and 8: 16-byte runs and others; 257 pixels: more than a block
GROUPS = [((2, 5, 3, 8), 1), ((2, 5, 3, 8), 2), ((2, 5, 3, 8), 8), ((3, 257, 1, 6), 2), ((4, 6), 3)]


@pytest.mark.parametrize(("shape", "groups"), GROUPS)
@in_both_dtypes
def test_group_norm_has_pytorchs_values_and_gradients(shape, groups, dtype, device, rng):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    x, dy = 2 * rng.standard_normal((2, *shape)) + 3
    weight, bias = rng.standard_normal((2, shape[-1]))
    ours = [leaf(a, device, dtype) for a in (x, weight, bias)]
    theirs = [torch.tensor(a, requires_grad=True) for a in (x, weight, bias)]
    z = torch.nn.functional.group_norm(torch.movedim(theirs[0], -1, 1), groups, *theirs[1:])
    z = torch.movedim(z, 1, -1)
    z.backward(torch.tensor(dy))
    y, *gradients = results(ops.group_norm(ours[0], groups, *ours[1:]), dy, *ours)
    assert_close(y, z.detach().numpy())
    for found, t in zip(gradients, theirs, strict=True):
        assert_close(found, t.grad.numpy())


@pytest.mark.parametrize("shape", [(8,), (3, 8), (5, 3, 8), (7,)])
@in_both_dtypes
def test_layer_norm_has_pytorchs_values_and_gradients(shape, dtype, device, rng):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    whole = (4, 5, 3, 8) if shape != (7,) else (301, 7)
    x, dy = 2 * rng.standard_normal((2, *whole)) + 3
    weight, bias = rng.standard_normal((2, *shape))
    ours = [leaf(a, device, dtype) for a in (x, weight, bias)]
    theirs = [torch.tensor(a, requires_grad=True) for a in (x, weight, bias)]
    z = torch.nn.functional.layer_norm(theirs[0], shape, *theirs[1:])
    z.backward(torch.tensor(dy))
    y, *gradients = results(ops.layer_norm(ours[0], shape, *ours[1:]), dy, *ours)
    assert_close(y, z.detach().numpy())
    for found, t in zip(gradients, theirs, strict=True):
        assert_close(found, t.grad.numpy())


def test_both_pass_gradcheck_with_and_without_parameters(device, rng):
    x, w, b = rng.standard_normal((2, 3, 2, 4)), rng.standard_normal(4), rng.standard_normal(4)
    gradcheck(lambda *t: ops.group_norm(t[0], 2, *t[1:]), x, w, b, device=device)
    gradcheck(lambda t: ops.group_norm(t, 1), x, device=device)
    gradcheck(lambda t, s: ops.layer_norm(t, 4, bias=s), x, b, device=device)
    gradcheck(lambda t, s: ops.layer_norm(t, 4, s), x, w, device=device)


@pytest.mark.parametrize("rows", [1, 40, 5000])
def test_the_variance_is_accurate_for_a_mean_that_is_large_beside_it(rows, device, rng):
    # float32 numbers near 1e4 are 1e-3 apart; the variance of what is stored is exact in float64
    x = (1e4 + 0.02 * rng.standard_normal((2, rows, 8))).astype(np.float32)
    x[:, 0, 0] = 1e4 + 1  # the reference that the kernel subtracts is far from the mean
    exact = x.astype(np.float64)
    deviation = np.sqrt(exact.var(axis=(1, 2), keepdims=True) + 1e-8)
    y = host(ops.group_norm(tensor(x, device), 1, eps=1e-8)).astype(np.float64)
    # a rounding of the mean moves every result alike
    spread = y - y.mean(axis=(1, 2), keepdims=True)
    expected = (exact - exact.mean(axis=(1, 2), keepdims=True)) / deviation
    np.testing.assert_allclose(spread, expected, rtol=1e-4, atol=1e-5)


def test_no_rows_no_channels_and_a_constant_input(device):
    for shape in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
        x, w = (
            leaf(np.ones(shape), device, np.float32),
            leaf(np.ones(shape[-1]), device, np.float32),
        )
        y, dx, dw = results(ops.group_norm(x, 2, w), np.ones(shape), x, w)
        assert (y.shape, dx.shape) == (shape, shape)
        assert not dw.any()
    y = host(ops.layer_norm(tensor(np.full((3, 8), 3.7, np.float32), device), 8))
    np.testing.assert_array_equal(y, np.zeros((3, 8)))


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32_also_under_autocast(half, device, rng):
    dtype = np.dtype(np.float16) if half == "float16" else bfloat16()
    x = (100 * rng.standard_normal((2, 30, 8))).astype(dtype)  # float16 sums of squares overflow
    dy, w = rng.standard_normal(x.shape).astype(dtype), np.ones(8, np.float32)
    wide = [leaf(a.astype(np.float32), "cpu") for a in (x, w)]
    exact = results(ops.group_norm(wide[0], 2, wide[1]), dy.astype(np.float32), *wide)
    given = leaf(x, device), leaf(w, device)
    with gpucnn.autocast(half):
        y = ops.group_norm(given[0], 2, given[1])
    found = results(y, dy, *given)
    assert [a.dtype for a in found] == [dtype, dtype, np.float32]
    for ours, theirs in zip(found, exact, strict=True):
        assert_close(ours.astype(np.float32), theirs, 2.0**-8 if half == "bfloat16" else 2.0**-11)


def test_a_norm_takes_one_launch_forward_and_two_backward(gpu, rng):
    x, w, b = (leaf(rng.standard_normal(s), gpu, np.float32) for s in ((3, 4, 4, 8), 8, 8))
    with cuda.count_launches() as launches:
        y = ops.group_norm(x, 2, w, b)
        y.backward(y.data)
    names = ("group_norm_forward", "group_norm_products", "group_norm_backward")
    assert dict(launches) == dict.fromkeys(names, 1)
    frozen = tensor(np.ones(8, np.float32), gpu)
    with cuda.count_launches() as launches:
        y = ops.layer_norm(x, 8, frozen)
        y.backward(y.data)
    assert dict(launches) == dict.fromkeys(names[::2], 1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: ops.group_norm(x, 3), ShapeError, "3 groups do not divide the 8 channels"),
        (lambda x: ops.group_norm(x, 0), ArgumentError, "num_groups must be a positive int"),
        (lambda x: ops.group_norm(x[0, 0], 2), ShapeError, r"expected x \(N, ..., C\), got"),
        (lambda x: ops.group_norm(x, 2, x[0]), ShapeError, r"weight of shape \(8,\)"),
        (lambda x: ops.layer_norm(x, 7), ShapeError, r"x \(..., 7\), got shape \(2, 3, 8\)"),
        (lambda x: ops.layer_norm(x, ()), ShapeError, "at least one axis"),
        (lambda x: ops.layer_norm(x, 8, bias=x[0, 0].astype(np.float64)), DtypeError, "bias is"),
        (lambda x: ops.layer_norm(x.astype(np.int32), 8), DtypeError, "floating-point"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(gpucnn.tensor(np.ones((2, 3, 8), np.float32)))
