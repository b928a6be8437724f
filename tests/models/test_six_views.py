"""SixViews: the weighted mean of six logits, of shifts with reflected edges."""

import numpy as np
import pytest
from devices import assert_close, host, tensor

import gpucnn
from gpucnn import data, models, nn, train
from gpucnn.errors import ArgumentError, ShapeError


def network(rng, h=5, w=6):
    """A model whose output depends on every pixel."""
    return nn.Sequential(nn.Flatten(), nn.Linear(h * w * 2, 3, generator=rng)).astype(np.float64)


def by_hand(model, images, shift=1):
    """With NumPy's padding, cut at the two corners."""
    n, h, w, _ = images.shape
    edges = ((0, 0), (shift, shift), (shift, shift), (0, 0))
    padded = np.pad(images, edges, mode="reflect")
    total = np.zeros((n, 3))
    for top, weight in ((shift, 0.25), (0, 0.125), (2 * shift, 0.125)):
        view = padded[:, top : top + h, top : top + w]
        for seen in (view, view[:, :, ::-1]):
            logits = seen.reshape(n, -1) @ model[1].weight.data.T + model[1].bias.data
            total += weight * logits
    return total


@pytest.mark.parametrize("shift", [1, 2, 4])
def test_the_result_is_the_weighted_mean_of_six_logits(shift, device, rng):
    model, x = network(rng), rng.standard_normal((3, 5, 6, 2))
    expected = by_hand(model, x, shift)
    assert_close(host(models.SixViews(model.to(device), shift)(tensor(x, device))), expected)


def test_evaluate_accepts_six_views_as_a_model(rng):
    model = network(rng).astype(np.float32)
    images = rng.integers(256, size=(5, 5, 6, 2), dtype=np.uint8)
    dataset = data.Dataset(images, np.array([0, 1, 2, 0, 1]), ("a", "b", "c"))
    normalize = data.Normalize((0.5, 0.5), (0.5, 0.5))
    loader = data.DataLoader(dataset, 2, transform=normalize, device="cpu")
    result = train.evaluate(models.SixViews(model), loader)
    logits = by_hand(model, normalize(images))
    assert result.accuracy == (logits.argmax(axis=1) == dataset.labels).mean()


def test_mistakes_are_refused(rng):
    with pytest.raises(ArgumentError, match="SixViews: shift must be a positive int, got 0"):
        models.SixViews(network(rng), 0)
    with pytest.raises(ShapeError, match="a shift by 5 pixels does not fit images"):
        models.SixViews(network(rng), 5)(gpucnn.tensor(np.zeros((1, 5, 6, 2))))
    assert "shift=1" in repr(models.SixViews(network(rng)))
