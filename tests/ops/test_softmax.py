import numpy as np
import pytest
from devices import assert_close, error_beside_cpu, host, in_both_dtypes, leaf, results, tensor

import gpucnn
from gpucnn import ops
from gpucnn.errors import ArgumentError, DtypeError, ShapeError
from gpucnn.testing import gradcheck

LABELS = np.array([0, 3, 1, 1, 2])


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax_sums_to_one_and_log_softmax_is_its_logarithm(axis, device, rng):
    x = rng.standard_normal((3, 4)) * 5
    for dtype in (np.float32, np.float64):
        t = tensor(x, device, dtype)
        y = host(ops.softmax(t, axis))
        assert y.dtype == dtype
        assert_close(y.sum(axis=axis), np.ones(12 // y.shape[axis]))
        assert_close(ops.log_softmax(t, axis), np.log(y))
    gradcheck(lambda t: ops.softmax(t, axis), x, device=device)
    gradcheck(lambda t: ops.log_softmax(t, axis), x, device=device)


@in_both_dtypes
def test_huge_logits_do_not_overflow(dtype, device):
    x = tensor([[1e4, 0, -1e4]], device, dtype)
    assert np.array_equal(host(ops.softmax(x)), [[1, 0, 0]])
    assert host(ops.log_softmax(x)).tolist() == [[0, -1e4, -2e4]]
    assert ops.cross_entropy(x, [2]).item() == 2e4


@pytest.mark.parametrize(
    "weights", [None, np.array([1.0, 2.0, 0.5, 3.0])], ids=["even", "weighted"]
)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_cross_entropy_equals_pytorchs_and_its_gradient_matches_differences(
    reduction, smoothing, weights, device, rng
):
    logits = rng.standard_normal((5, 4)) * 3

    def op(t):
        given = None if weights is None else tensor(weights, device, t.dtype)
        return ops.cross_entropy(t, LABELS, given, smoothing, reduction)

    gradcheck(op, logits, device=device)
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    for dtype in (np.float32, np.float64):
        ours = leaf(logits, device, dtype)
        theirs = torch.tensor(host(ours).astype(np.float64), requires_grad=True)
        loss = op(ours)
        loss.backward()
        expected = torch.nn.functional.cross_entropy(
            theirs,
            torch.tensor(LABELS),
            weight=None if weights is None else torch.tensor(weights),
            label_smoothing=smoothing,
            reduction=reduction,
        )
        expected.backward()
        assert loss.dtype == ours.grad.dtype == dtype
        assert_close(loss, expected.detach().numpy())
        assert_close(ours.grad, theirs.grad.numpy())


INF = np.inf
EXTREME = [
    ([[1, -INF, 2]], [0]),  # a masked class
    ([[1, -INF, 2]], [1]),  # which is the label
    ([[1, -INF, 2], [0, 1, 2]], [0, 2]),
    ([[3e38, -3e38, 0]], [0]),
    ([[3e38, -3e38, 0]], [1]),
    ([[-INF, -INF, -INF]], [0]),
    ([[INF, 0, 1]], [0]),
    ([[np.nan, 0, 1]], [0]),
]


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5], [1.0, 0.0, 0.5]], ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("logits", "labels"), EXTREME)
@in_both_dtypes
def test_masked_classes_and_logits_3e38_apart_have_pytorchs_loss_and_gradient(
    logits, labels, reduction, smoothing, weights, dtype, device
):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    ours = leaf(np.array(logits, dtype), device)
    loss = ops.cross_entropy(ours, labels, weights, smoothing, reduction)
    loss.backward()
    theirs = torch.tensor(np.array(logits, dtype), requires_grad=True)
    expected = torch.nn.functional.cross_entropy(
        theirs,
        torch.tensor(labels),
        None if weights is None else torch.tensor(weights, dtype=theirs.dtype),
        label_smoothing=smoothing,
        reduction=reduction,
    )
    expected.backward()
    np.testing.assert_allclose(loss.item(), expected.item(), rtol=1e-6)
    np.testing.assert_allclose(host(ours.grad), theirs.grad.numpy(), rtol=1e-6, atol=1e-7)


@in_both_dtypes
def test_a_masked_class_leaves_the_loss_of_the_others(dtype, device):
    logits = leaf([[1, -INF, 2]], device, dtype)
    loss = ops.cross_entropy(logits, [0])
    loss.backward()
    share = 1 / (1 + np.e)
    assert_close(loss, np.array(np.log(1 + np.e)))
    assert_close(logits.grad, np.array([[share - 1, 0, 1 - share]]))


@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
@pytest.mark.parametrize("logits", [logits for logits, _ in EXTREME])
@in_both_dtypes
def test_softmax_of_extremes_equals_pytorchs(op, logits, dtype, device):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    ours = leaf(np.array(logits, dtype), device)
    theirs = torch.tensor(np.array(logits, dtype), requires_grad=True)
    dy = np.arange(1.0, 1 + len(logits[0]) * len(logits)).reshape(len(logits), -1).astype(dtype)
    y, expected = getattr(ops, op)(ours), getattr(torch, op)(theirs, -1)
    actual = results(y, dy, ours)
    expected.backward(torch.tensor(dy))
    np.testing.assert_allclose(actual[0], expected.detach().numpy(), rtol=1e-6)
    np.testing.assert_allclose(actual[1], theirs.grad.numpy(), rtol=1e-6, atol=1e-6)


def test_softmax_cross_entropy_is_another_name_of_cross_entropy():
    assert ops.softmax_cross_entropy is ops.cross_entropy
    assert {"cross_entropy", "softmax_cross_entropy"} <= set(ops.__all__)


def test_labels_may_be_a_tensor_an_array_or_a_list(device, rng):
    logits = tensor(rng.standard_normal((5, 4)), device)
    expected = ops.cross_entropy(logits, LABELS).item()
    for labels in (gpucnn.tensor(LABELS), tensor(LABELS, device), LABELS.tolist()):
        assert ops.cross_entropy(logits, labels).item() == expected


@in_both_dtypes
def test_cross_entropy_by_hand(dtype, device):
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]))
    expected = -(np.log(0.25) + np.log(0.8)) / 2
    loss = ops.cross_entropy(tensor(logits, device, dtype), [2, 1])
    assert_close(loss, np.array(expected))


def test_labels_may_have_several_axes(device, rng):
    logits = rng.standard_normal((2, 3, 4))
    labels = rng.integers(0, 4, (2, 3))
    for dtype in (np.float32, np.float64):
        t = tensor(logits, device, dtype)
        flat = ops.cross_entropy(t.reshape(6, 4), labels.reshape(6))
        assert ops.cross_entropy(t, labels).item() == flat.item()
    gradcheck(lambda t: ops.cross_entropy(t, labels), logits, device=device)


@pytest.mark.parametrize("shape", [(1, 1), (1, 33), (300, 2), (7, 1000), (2, 3, 5)])
def test_any_number_of_rows_and_classes_agrees_with_the_cpu(shape, gpu, rng):
    labels = rng.integers(0, shape[-1], shape[:-1])
    logits = rng.standard_normal(shape) * 5

    def op(_, t):
        return ops.cross_entropy(t, labels) * 3.0

    assert error_beside_cpu(op, logits, device=gpu) <= 2e-6


@pytest.mark.parametrize("label", [-1, 3, 1 << 40])
def test_a_label_out_of_range_on_a_device_makes_the_loss_nan_and_reads_no_memory(
    label, gpu, monkeypatch, rng
):
    monkeypatch.setenv("GPUCNN_CUDASIM", "address")
    logits = leaf(rng.standard_normal((4, 3), np.float32), gpu)
    labels, weights = tensor([0, 1, label, 2], gpu), tensor(np.ones(3, np.float32), gpu)
    assert np.isnan(ops.cross_entropy(logits, labels, weights, 0.1).item())


def test_arguments_that_do_not_fit_are_refused(device):
    logits = tensor(np.zeros((2, 3), np.float32), device)
    with pytest.raises(ArgumentError, match=r"labels must be in 0..2, got 0..3"):
        ops.cross_entropy(logits, [0, 3])
    with pytest.raises(ArgumentError, match=r"got -1..0"):
        ops.cross_entropy(logits, [0, -1])
    with pytest.raises(ShapeError, match=r"need labels of shape \(2,\), got \(3,\)"):
        ops.cross_entropy(logits, [0, 1, 2])
    with pytest.raises(DtypeError, match="expected integer labels, got float64"):
        ops.cross_entropy(logits, [0.0, 1.0])
    with pytest.raises(ArgumentError, match=r"label_smoothing must be in \[0, 1\), got 1.0"):
        ops.cross_entropy(logits, [0, 1], label_smoothing=1.0)
    with pytest.raises(ArgumentError, match="reduction 'none' is unknown; expected mean or sum"):
        ops.cross_entropy(logits, [0, 1], reduction="none")
    with pytest.raises(ShapeError, match="expected 3 class weights"):
        ops.cross_entropy(logits, [0, 1], weight=[1, 2])
    with pytest.raises(ShapeError, match="no examples"):
        ops.cross_entropy(logits[:0], np.zeros(0, np.int64))
    with pytest.raises(ShapeError, match="axis 2 is out of range"):
        ops.softmax(logits, 2)


def test_mean_squared_error_averages_over_every_element(device, rng):
    arrays = rng.random((2, 3)), rng.random((2, 3))
    y, target = (tensor(a, device) for a in arrays)
    assert_close(ops.mse_loss(y, target), np.square(arrays[0] - arrays[1]).mean())
    gradcheck(ops.mse_loss, *arrays, device=device)
    with pytest.raises(ShapeError, match="differ"):
        ops.mse_loss(y, target[0])
