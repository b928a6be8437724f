"""clamp and abs; test_ops_against_torch.py compares both with PyTorch."""

import numpy as np
import pytest
from devices import host, leaf, results, tensor

import gpucnn
from gpucnn import nn, ops
from gpucnn.errors import ArgumentError, DtypeError
from gpucnn.testing import gradcheck


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_clamp_limits_values_and_passes_the_gradient_inside_both_limits(dtype, device):
    x = leaf(np.array([-2, -1, 0, 1, 2, np.nan], dtype), device)
    y, dx = results(ops.clamp(x, -1, 1), np.full(6, 3), x)
    assert y.dtype == dx.dtype == dtype
    np.testing.assert_array_equal(y, [-1, -1, 0, 1, 1, np.nan])
    np.testing.assert_array_equal(dx, [0, 3, 3, 3, 0, 0])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_abs_and_its_gradient_which_is_0_at_0_and_at_nan(dtype, device):
    x = leaf(np.array([-2, -0.0, 0, 3, -np.inf, np.nan], dtype), device)
    y, dx = results(abs(x), np.full(6, 3), x)
    assert y.dtype == dx.dtype == dtype
    np.testing.assert_array_equal(y, [2, 0, 0, 3, np.inf, np.nan])
    np.testing.assert_array_equal(dx, [-3, 0, 0, 3, -3, 0])


def test_bfloat16_stays_bfloat16(device):
    pytest.importorskip("ml_dtypes", reason="bfloat16 needs ml_dtypes")
    for op in (abs, lambda x: x.clamp(-1, 0.5)):
        x = leaf(np.array([-2.0, 1.0], np.float32), device, "bfloat16")
        y = op(x)
        y.sum().backward()
        assert y.dtype == x.grad.dtype == x.dtype
        assert host(y).astype(np.float32).tolist() in ([2, 1], [-1, 0.5])


def test_one_limit_may_be_missing_and_of_crossed_limits_the_upper_wins(device):
    x = tensor(np.array([-2.0, 0.0, 2.0], np.float32), device)
    assert host(x.clamp(min=0.5)).tolist() == [0.5, 0.5, 2]
    assert host(x.clamp(max=0.5)).tolist() == [-2, 0, 0.5]
    assert host(x.clamp(1, -1)).tolist() == [-1, -1, -1]
    assert host(tensor(np.array([-5, 5]), device).clamp(0, 3)).tolist() == [0, 3]


def test_a_limit_beyond_the_range_of_float16_limits_nothing(device):
    x = leaf(np.array([-65504, 65504], np.float16), device)
    y, dx = results(x.clamp(-1e6, 1e6), np.ones(2), x)
    assert y.tolist() == [-65504, 65504]
    assert dx.tolist() == [1, 1]


@pytest.mark.parametrize("shape", [(3, 4), (), (0, 2)], ids=str)
def test_gradients_match_finite_differences(shape, device, rng):
    x = rng.choice([-1.0, 1.0], shape) * rng.uniform(0.2, 2, shape)
    gradcheck(ops.abs, x, device=device)
    gradcheck(lambda x: ops.clamp(x, -1.1, 0.9), x, device=device)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: x.clamp(), ArgumentError, "clamp: expected min, max or both"),
        (lambda x: x.clamp("a"), ArgumentError, "expected a number or None as min, got str"),
        (lambda x: x.clamp(max=np.nan), ArgumentError, "number or None as max, got nan"),
        (lambda x: x.long().clamp(0.5), DtypeError, "clamp: a float with a tensor of int64"),
        (lambda x: x.astype("uint8").clamp(-1), DtypeError, "clamp: -1 is out of range"),
        (lambda x: x.bool().clamp(0), DtypeError, "clamp: expected numbers, got bool"),
        (lambda x: abs(x.bool()), DtypeError, "abs: expected numbers, got bool"),
    ],
)
def test_a_mistake_is_an_error_that_names_the_op(call, error, message):
    with pytest.raises(error, match=message):
        call(gpucnn.ones(2))


def test_an_op_that_onnx_export_does_not_know_is_named_in_the_error():
    pytest.importorskip("onnx", reason='export_onnx needs onnx: pip install "gpucnn[onnx]"')

    class Clipped(nn.Module):
        def forward(self, x):
            return x.clamp(0, 6)

    with pytest.raises(ArgumentError, match="clamp"):
        gpucnn.export_onnx(Clipped(), "unused.onnx", (4,))
