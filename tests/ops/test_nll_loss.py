"""nll_loss: log-probabilities and labels, beside PyTorch and beside cross_entropy."""

import numpy as np
import pytest
from devices import assert_close, host, in_both_dtypes, leaf, results, tensor

import gpucnn
from gpucnn import nn, ops
from gpucnn.errors import ArgumentError, DtypeError, ShapeError
from gpucnn.testing import gradcheck

REDUCTIONS = ["mean", "sum", "none"]
LABELS = np.array([[2, 0, 4], [1, 4, 4]])
WEIGHT = np.array([0.5, 2.0, 1.0, 3.0, 0.25])


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@in_both_dtypes
def test_values_and_gradients_are_pytorchs(reduction, weight, dtype, device, rng):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    x = np.log(rng.dirichlet(np.ones(5), (2, 3)))
    ours = leaf(x, device, dtype)
    theirs = torch.tensor(x, requires_grad=True)
    exact = torch.nn.functional.nll_loss(
        theirs.movedim(-1, 1),  # PyTorch has the classes second
        torch.tensor(LABELS),
        None if weight is None else torch.tensor(weight),
        reduction=reduction,
    )
    dy = rng.standard_normal(tuple(exact.shape))
    exact.backward(torch.tensor(dy))
    y, dx = results(ops.nll_loss(ours, LABELS, weight, reduction), dy, ours)
    assert y.shape == tuple(exact.shape)
    assert_close(y, exact.detach().numpy())
    assert_close(dx, theirs.grad.numpy())


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
def test_of_log_softmax_it_is_cross_entropy(weight, device, rng):
    x = rng.standard_normal((2, 3, 5))
    one, other = leaf(x, device, np.float32), leaf(x, device, np.float32)
    y, dx = results(ops.nll_loss(ops.log_softmax(one), LABELS, weight), 1.0, one)
    z, dz = results(ops.cross_entropy(other, LABELS, weight), 1.0, other)
    assert_close(y, z)
    np.testing.assert_allclose(dx, dz, atol=1e-7)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_it_passes_gradcheck_and_gives_the_same_bits_twice(reduction, device, rng):
    x = rng.standard_normal((4, 5))
    labels = np.array([0, 4, 4, 2], np.uint8)
    gradcheck(lambda t: ops.nll_loss(t, labels, WEIGHT, reduction), x, device=device)
    found = []
    for _ in range(2):
        t = leaf(x, device, np.float32)
        y = ops.nll_loss(t, labels, WEIGHT, reduction)
        found.append(results(y, np.ones(y.shape), t))
    for one, other in zip(*found, strict=True):
        assert one.tobytes() == other.tobytes()


def test_a_result_used_twice_and_an_input_that_is_not_contiguous(device, rng):
    x = leaf(rng.standard_normal((5, 4)), device)
    y = ops.nll_loss(x.T, [0, 4, 4, 2], reduction="none")
    dx = results((y * y).sum(), 1.0, x)[1]
    expected = np.zeros((5, 4))
    for column, row in enumerate([0, 4, 4, 2]):
        expected[row, column] = 2 * host(x)[row, column]
    np.testing.assert_allclose(dx, expected)


def test_infinities_and_weights_of_zero_are_pytorchs(device):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    x = np.array([[0.0, -np.inf], [-np.inf, 0.0], [np.nan, 0.0]])
    labels = np.array([1, 1, 1])
    for weight in ([1.0, 1.0], [1.0, 0.0]):
        for reduction in REDUCTIONS:
            ours, theirs = leaf(x, device), torch.tensor(x, requires_grad=True)
            exact = torch.nn.functional.nll_loss(
                theirs, torch.tensor(labels), torch.tensor(weight).double(), reduction=reduction
            )
            exact.sum().backward()
            y = ops.nll_loss(ours, labels, weight, reduction)
            y, dx = results(y, np.ones(y.shape), ours)
            np.testing.assert_array_equal(y, exact.detach().numpy())
            np.testing.assert_array_equal(dx, theirs.grad.numpy())


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32(half, device, rng):
    pytest.importorskip("ml_dtypes")
    x = tensor(-30 * rng.random((5000, 5)), device, np.float32).astype(half)
    labels = rng.integers(0, 5, 5000)
    exact = ops.nll_loss(x.astype(np.float32), labels, reduction="sum").item()
    assert exact > 65504  # the largest float16
    with gpucnn.autocast(half):
        y = ops.nll_loss(x, labels, reduction="sum")
    assert y.dtype == np.float32
    assert y.item() == pytest.approx(exact, rel=1e-5)
    assert ops.nll_loss(x, labels).dtype == x.dtype


def test_a_label_out_of_range_is_nan_on_a_gpu_and_refused_on_the_cpu(device):
    x = leaf([[-1.0, -2.0], [-3.0, -4.0], [-5.0, -6.0]], device)
    for label in (2, -1):
        labels = tensor(np.array([0, label, 1]), device)
        if device == "cpu":
            with pytest.raises(ArgumentError, match=r"nll_loss: labels must be in 0\.\.1, got"):
                ops.nll_loss(x, labels)
            continue
        x.grad = None
        y, dx = results(ops.nll_loss(x, labels, reduction="none"), np.ones(3), x)
        np.testing.assert_array_equal(y, [1, np.nan, 6])
        assert np.isnan(dx[1]).any()
        np.testing.assert_array_equal(dx[[0, 2]], [[-1, 0], [0, -1]])


def test_no_examples_have_a_sum_but_no_mean(device):
    x = leaf(np.zeros((0, 3)), device)
    none = np.zeros(0, np.int64)
    assert ops.nll_loss(x, none, reduction="sum").item() == 0
    y, dx = results(ops.nll_loss(x, none, reduction="none"), np.zeros(0), x)
    assert (y.shape, dx.shape) == ((0,), (0, 3))
    with pytest.raises(ShapeError, match=r"nll_loss: no examples to average over in x \(0, 3\)"):
        ops.nll_loss(x, none)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: ops.nll_loss(x, [0, 1, 2], reduction="max"), ArgumentError, "'max' is unknown"),
        (lambda x: nn.NLLLoss(reduction="max"), ArgumentError, "NLLLoss: reduction 'max' is unkno"),
        (lambda x: ops.nll_loss(x, [0, 1]), ShapeError, r"nll_loss: x \(3, 4\) need labels of sha"),
        (lambda x: ops.nll_loss(x[0], 1), ShapeError, r"nll_loss: x \(4,\) need labels"),
        (lambda x: ops.nll_loss(x, [0, 1, 4]), ArgumentError, r"must be in 0\.\.3, got 0\.\.4"),
        (lambda x: ops.nll_loss(x, [0.0, 1.0, 2.0]), DtypeError, "expected integer labels, got"),
        (lambda x: ops.nll_loss(x, [0, 1, 2], [1, 2]), ShapeError, "expected 4 class weights, got"),
        (lambda x: ops.nll_loss([[1, 2]], [0]), DtypeError, "nll_loss: expected floating-point"),
        (lambda x: ops.nll_loss(x[:, :0], [0] * 3, None, "sum"), ShapeError, "no examples"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(gpucnn.tensor(np.ones((3, 4), np.float32)))


def test_the_module_passes_its_settings_on(device):
    x = tensor(np.log(np.full((3, 4), 0.25)), device, np.float32)
    loss = nn.NLLLoss([1, 2, 3, 4], "sum")
    np.testing.assert_array_equal(
        host(loss(x, [0, 1, 3])), host(ops.nll_loss(x, [0, 1, 3], [1, 2, 3, 4], "sum"))
    )
    assert loss(x, [0, 1, 3]).item() == pytest.approx(7 * np.log(4))
