"""Comparisons: ops.eq, ne, lt, le, gt and ge, and the operators of Tensor."""

import operator

import numpy as np
import pytest
from devices import host, leaf, tensor

import gpucnn
from gpucnn import nn, ops
from gpucnn.errors import ArgumentError, DtypeError, ShapeError

NAMES = ["eq", "ne", "lt", "le", "gt", "ge"]
VALUES = [0.0, -0.0, 1.0, 2.0, np.inf, -np.inf, np.nan]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "bool"])
@pytest.mark.parametrize("name", NAMES)
def test_a_comparison_is_pytorchs_for_every_pair_of_values(name, dtype, device):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    values = VALUES if dtype.startswith("float") else [0, 1, 1, 0]
    a, b = np.array(values, dtype)[:, None], np.array(values, dtype)[None]
    ours = getattr(ops, name)(tensor(a, device), tensor(b, device))
    assert ours.dtype == bool
    assert str(ours.device) == str(gpucnn.Device.parse(device))
    theirs = getattr(torch, name)(torch.tensor(a), torch.tensor(b))
    np.testing.assert_array_equal(host(ours), theirs.numpy())


@pytest.mark.parametrize("name", NAMES)
def test_operators_take_tensors_arrays_and_numbers_on_either_side(name, device):
    compare = getattr(operator, name)
    a, b = np.array([[1.0], [2.0]], np.float32), np.array([1.0, 2.0, 3.0], np.float32)
    x, y = tensor(a, device), tensor(b, device)
    for ours, theirs in (
        (compare(x, y), compare(a, b)),
        (compare(x, 2.0), compare(a, 2.0)),
        (compare(2, x), compare(2, a)),
        (compare(x, np.float32(2)), compare(a, 2.0)),
        (compare(np.float64(2), x), compare(2.0, a)),
        (compare(x, y.data), compare(a, b)),
        (compare(x.data, y), compare(a, b)),
    ):
        assert isinstance(ours, gpucnn.Tensor)
        np.testing.assert_array_equal(host(ours), theirs)


def test_bfloat16_compares_with_its_own_values_and_with_numbers(device):
    pytest.importorskip("ml_dtypes", reason="bfloat16 needs ml_dtypes")
    x = tensor(np.array([1.0, 2.0, np.nan], np.float32), device, "bfloat16")
    assert host(x > 1.5).tolist() == [False, True, False]
    assert host(x == x).tolist() == [True, True, False]


def test_equality_with_what_is_no_operand_is_false_and_hashing_is_by_identity():
    t, u = gpucnn.tensor([1.0]), gpucnn.tensor([1.0])
    assert (t == None) is False  # noqa: E711  what a PyTorch user may write
    assert (t != None) is True  # noqa: E711
    assert (t == "words") is False
    assert len({t, u, t}) == 2
    assert {t: 1}[t] == 1
    assert u not in {t}
    p = nn.Parameter(np.ones(2, np.float32))
    assert p in {p}
    assert host(p == [1.0, 2.0]).tolist() == [True, False]


def test_a_comparison_has_no_gradient_and_is_recorded_nowhere(device):
    x = leaf([-1.0, 2.0], device)
    mask = x > 0
    assert not mask.requires_grad
    assert mask.is_leaf
    ops.where(mask, x * 3.0, x).sum().backward()
    assert host(x.grad).tolist() == [1, 3]


def test_the_accuracy_of_predictions_is_written_as_in_pytorch(device):
    logits = tensor(np.eye(3, dtype=np.float32)[[0, 1, 2, 2]], device)
    labels = tensor(np.array([0, 1, 2, 0]), device)
    assert (logits.argmax(1) == labels).float().mean().item() == 0.75
    assert (labels == logits.argmax(1)).long().sum().item() == 3


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda x: x == gpucnn.ones(3), ShapeError, r"eq: shapes \(2,\) and \(3,\) do not"),
        (lambda x: x < gpucnn.ones(2, dtype="float64"), DtypeError, "lt: one operand is float32"),
        (lambda x: x.long() >= 0.5, DtypeError, "ge: a float with a tensor of int64"),
        (lambda x: x > "a", DtypeError, "expected numbers"),
        (lambda x: bool(x > 0), ShapeError, r"one element, got shape \(2,\)"),
    ],
)
def test_a_comparison_that_does_not_fit_names_itself(wrong, error, message):
    with pytest.raises(error, match=message):
        wrong(gpucnn.ones(2))


def test_a_model_that_compares_is_not_exported_with_a_constant():
    pytest.importorskip("onnx", reason='export_onnx needs onnx: pip install "gpucnn[onnx]"')

    class Positive(nn.Module):
        def forward(self, x):
            return x * (x > 0).float()

    with pytest.raises(ArgumentError, match="gt"):
        gpucnn.export_onnx(Positive(), "unused.onnx", (4,))
