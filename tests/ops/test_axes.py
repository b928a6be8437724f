"""squeeze, unsqueeze, swapaxes and stack; test_ops_against_torch.py compares them with PyTorch."""

import numpy as np
import pytest
from devices import host, leaf, results, tensor

import gpucnn
from gpucnn import ops
from gpucnn.errors import ArgumentError, DtypeError, ShapeError
from gpucnn.testing import gradcheck


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_axes_of_size_1_vanish_and_others_stay(dtype, device):
    x = leaf(np.ones((1, 3, 1, 2), dtype), device)
    assert ops.squeeze(x).shape == (3, 2)
    assert ops.squeeze(x, 0).shape == (3, 1, 2)
    assert ops.squeeze(x, 1).shape == x.shape
    assert ops.squeeze(x, (0, -2)).shape == (3, 2)
    y, dx = results(x.squeeze(), np.ones((3, 2)), x)
    assert y.dtype == dx.dtype == dtype
    assert dx.shape == x.shape


def test_an_axis_is_added_anywhere_and_two_are_swapped(device):
    x = tensor(np.arange(6.0).reshape(2, 3), device)
    assert [x.unsqueeze(i).shape for i in (0, 1, 2, -1)] == [
        (1, 2, 3), (2, 1, 3), (2, 3, 1), (2, 3, 1)
    ]  # fmt: skip
    np.testing.assert_array_equal(host(ops.swapaxes(x, 0, -1)), host(x).T)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_stack_is_numpys_and_its_gradient_matches_finite_differences(axis, device, rng):
    a, b = rng.random((2, 3)), rng.random((2, 3))
    ours = ops.stack([tensor(a, device), tensor(b, device)], axis)
    np.testing.assert_array_equal(host(ours), np.stack([a, b], axis))
    gradcheck(lambda a, b: ops.stack([a, b, a], axis), a, b, device=device)
    gradcheck(lambda a: ops.squeeze(ops.unsqueeze(a, axis) * 2.0), a, device=device)


def test_the_top_level_has_pytorchs_names():
    a, b = gpucnn.zeros(2), gpucnn.ones(2)
    assert gpucnn.cat([a, b]).tolist() == [0, 0, 1, 1]
    assert gpucnn.stack([a, b]).tolist() == [[0, 0], [1, 1]]
    assert gpucnn.where(a < b, a, b).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: x.squeeze(2), ArgumentError, r"squeeze: axis 2 is out of range for shape \(2,"),
        (lambda x: x.squeeze("a"), ArgumentError, "squeeze: axis must be an int, got 'a'"),
        (lambda x: x.unsqueeze(3), ArgumentError, "unsqueeze: axis 3 .* expected -3 to 2"),
        (lambda x: ops.swapaxes(x, 0, 5), ArgumentError, "swapaxes: axis 5 is out of range"),
        (lambda x: ops.stack([]), ArgumentError, "stack: expected at least one tensor"),
        (lambda x: ops.stack([x, x[0]]), ShapeError, r"got \(2, 3\) and, at 1, \(3,\)"),
        (lambda x: ops.stack([x, x.double()]), DtypeError, "float32 and float64 differ"),
        (lambda x: ops.stack([x, x], 3), ArgumentError, "stack: axis 3 is out of range"),
    ],
)
def test_a_mistake_is_an_error_that_names_the_op(call, error, message):
    with pytest.raises(error, match=message):
        call(gpucnn.ones(2, 3))
