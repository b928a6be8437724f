import numpy as np
import pytest
from devices import assert_close, host, tensor

import gpucnn
from gpucnn import data, models, nn, train
from gpucnn.errors import ShapeError


@pytest.fixture
def model(rng):
    """A model whose output depends on where a view was cut and whether it was mirrored."""
    return nn.Sequential(nn.Flatten(), nn.Linear(4 * 4 * 2, 3, generator=rng)).astype(np.float64)


def by_hand(model, image):
    """The mean of the softmaxes of ten views, with plain slices."""
    h, w, _ = image.shape
    shares = []
    for top, left in ((0, 0), (0, w - 4), (h - 4, 0), (h - 4, w - 4), ((h - 4) // 2, (w - 4) // 2)):
        view = image[top : top + 4, left : left + 4]
        for seen in (view, view[:, ::-1]):
            logits = model[1].weight.data @ seen.reshape(-1) + model[1].bias.data
            shares.append(np.exp(logits) / np.exp(logits).sum())
    return np.mean(shares, axis=0)


def test_the_result_is_the_logarithm_of_the_mean_of_ten_softmaxes(model, device, rng):
    x = rng.standard_normal((3, 7, 9, 2))
    expected = np.array([by_hand(model, image) for image in x])
    shares = np.exp(host(models.TenViews(model.to(device), 4)(tensor(x, device))))
    assert_close(shares, expected)
    assert np.allclose(shares.sum(axis=1), 1)


def test_evaluate_accepts_ten_views_as_a_model(rng):
    model = nn.Sequential(nn.Flatten(), nn.Linear(4 * 4 * 2, 3, generator=rng))
    images = rng.integers(256, size=(5, 6, 6, 2), dtype=np.uint8)
    dataset = data.Dataset(images, np.array([0, 1, 2, 0, 1]), ("a", "b", "c"))
    normalize = data.Normalize((0.5, 0.5), (0.5, 0.5))
    loader = data.DataLoader(dataset, 2, transform=normalize, device="cpu")
    result = train.evaluate(models.TenViews(model, 4), loader)
    shares = np.array([by_hand(model, image) for image in normalize(images)])
    assert np.isclose(result.loss, -np.log(shares[np.arange(5), dataset.labels]).mean(), atol=1e-5)
    assert result.accuracy == (shares.argmax(axis=1) == dataset.labels).mean()
    assert model.training


def test_images_smaller_than_a_view_are_refused(model):
    with pytest.raises(ShapeError, match="views of 4 x 4 pixels do not fit"):
        models.TenViews(model, 4)(gpucnn.tensor(np.zeros((1, 3, 9, 2))))


def test_a_class_that_every_view_rules_out_has_a_finite_logit():
    class Sure(nn.Module):
        def forward(self, x):
            return gpucnn.tensor(np.tile(np.float32([0, 500]), (len(x), 1)))

    y = models.TenViews(Sure(), 4)(gpucnn.tensor(np.zeros((1, 6, 6, 3), np.float32)))
    np.testing.assert_allclose(y.data, [[-500, 0]])
