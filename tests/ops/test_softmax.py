import numpy as np
import pytest

import gpucnn
from gpucnn import ops
from gpucnn.errors import ArgumentError, DtypeError, ShapeError
from gpucnn.testing import gradcheck

LABELS = np.array([0, 3, 1, 1, 2])


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax_sums_to_one_and_log_softmax_is_its_logarithm(axis, rng):
    x = rng.standard_normal((3, 4)) * 5
    y = ops.softmax(x, axis).numpy()
    np.testing.assert_allclose(y.sum(axis=axis), 1)
    np.testing.assert_allclose(np.log(y), ops.log_softmax(x, axis).numpy())
    gradcheck(lambda t: ops.softmax(t, axis), x)
    gradcheck(lambda t: ops.log_softmax(t, axis), x)


def test_huge_logits_overflow_nowhere():
    x = np.array([[1e4, 0, -1e4]], np.float32)
    assert np.array_equal(ops.softmax(x).numpy(), [[1, 0, 0]])
    assert ops.log_softmax(x).numpy().tolist() == [[0, -1e4, -2e4]]
    assert ops.softmax_cross_entropy(x, [2]).item() == 2e4


@pytest.mark.parametrize(
    "weights", [None, np.array([1.0, 2.0, 0.5, 3.0])], ids=["even", "weighted"]
)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_pytorchs_and_its_gradient_matches_differences(
    smoothing, weights, rng
):
    logits = rng.standard_normal((5, 4)) * 3

    def op(t):
        return ops.softmax_cross_entropy(t, LABELS, smoothing, weights)

    gradcheck(op, logits)
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits),
        torch.tensor(LABELS),
        weight=None if weights is None else torch.tensor(weights),
        label_smoothing=smoothing,
    )
    assert op(logits).item() == pytest.approx(expected.item(), rel=1e-12)


def test_cross_entropy_by_hand():
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]))
    expected = -(np.log(0.25) + np.log(0.8)) / 2
    assert ops.softmax_cross_entropy(logits, [2, 1]).item() == pytest.approx(expected)


def test_labels_may_have_more_axes_than_one(rng):
    logits = rng.standard_normal((2, 3, 4))
    labels = rng.integers(0, 4, (2, 3))
    flat = ops.softmax_cross_entropy(logits.reshape(6, 4), labels.reshape(6))
    assert ops.softmax_cross_entropy(logits, labels).item() == flat.item()
    gradcheck(lambda t: ops.softmax_cross_entropy(t, labels), logits)


def test_the_loss_of_float32_logits_is_float32_and_so_is_the_gradient():
    x = gpucnn.tensor(np.zeros((2, 3), np.float32), requires_grad=True)
    loss = ops.softmax_cross_entropy(x, np.array([0, 1]), 0.1, np.ones(3))
    loss.backward()
    assert loss.dtype == x.grad.dtype == np.float32


def test_what_does_not_fit_is_refused():
    logits = np.zeros((2, 3), np.float32)
    with pytest.raises(ArgumentError, match=r"labels must be in 0..2, got 0..3"):
        ops.softmax_cross_entropy(logits, [0, 3])
    with pytest.raises(ArgumentError, match=r"got -1..0"):
        ops.softmax_cross_entropy(logits, [0, -1])
    with pytest.raises(ShapeError, match=r"want labels of shape \(2,\), got \(3,\)"):
        ops.softmax_cross_entropy(logits, [0, 1, 2])
    with pytest.raises(DtypeError, match="expected integer labels, got float64"):
        ops.softmax_cross_entropy(logits, [0.0, 1.0])
    with pytest.raises(ArgumentError, match=r"label_smoothing must be in \[0, 1\), got 1.0"):
        ops.softmax_cross_entropy(logits, [0, 1], 1.0)
    with pytest.raises(ShapeError, match="expected 3 class weights"):
        ops.softmax_cross_entropy(logits, [0, 1], class_weights=[1, 2])
    with pytest.raises(ShapeError, match="no examples"):
        ops.softmax_cross_entropy(np.zeros((0, 3), np.float32), np.zeros(0, np.int64))
    with pytest.raises(ShapeError, match="axis 2 is out of range"):
        ops.softmax(logits, 2)


def test_mean_squared_error_averages_over_every_element(rng):
    y, target = rng.random((2, 3)), rng.random((2, 3))
    expected = ((y - target) ** 2).mean()
    assert ops.mean_squared_error(y, target).item() == pytest.approx(expected)
    gradcheck(ops.mean_squared_error, y, target)
    with pytest.raises(ShapeError, match="differ"):
        ops.mean_squared_error(y, target[0])
