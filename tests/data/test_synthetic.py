import numpy as np
import pytest

from gpucnn import data
from gpucnn.errors import ArgumentError


def test_the_same_seed_draws_the_same_images_and_another_seed_others():
    one, same, other = (data.Synthetic(n=200, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.images, same.images)
    np.testing.assert_array_equal(one.labels, same.labels)
    assert (one.images != other.images).mean() > 0.9


def test_train_and_test_share_no_image():
    train, test = data.Synthetic(n=500), data.Synthetic(train=False, n=500)
    together = np.concatenate([train.images, test.images])
    assert len({image.tobytes() for image in together}) == 1000


def test_sizes_shapes_and_names():
    train, test = data.Synthetic(), data.Synthetic(train=False)
    assert train.images.shape == (8000, 32, 32, 3)
    assert test.images.shape == (2000, 32, 32, 3)
    assert len(train.classes) == 10
    assert np.bincount(train.labels).tolist() == [800] * 10
    assert np.bincount(test.labels).tolist() == [200] * 10


@pytest.mark.parametrize("n", [1, 7, 1003])
def test_classes_are_equally_frequent_to_within_one_and_mixed(n):
    labels = data.Synthetic(n=n).labels
    counts = np.bincount(labels, minlength=10)
    assert len(labels) == n
    assert counts.max() - counts.min() <= 1
    if n == 1003:
        assert len(set(labels[:40].tolist())) == 10
        assert abs(np.corrcoef(np.arange(n), labels)[0, 1]) < 0.1


@pytest.mark.parametrize("arguments", [{"n": 0}, {"n": -5}, {"seed": -1}])
def test_invalid_arguments_are_refused(arguments):
    with pytest.raises(ArgumentError, match="Synthetic"):
        data.Synthetic(**arguments)


def softmax_regression(images, labels, decay, steps=300):
    """Weights and biases of the best linear classifier, by accelerated full-batch descent."""
    x = np.concatenate([images, np.ones((len(images), 1), np.float32)], axis=1)
    target = np.eye(10, dtype=np.float32)[labels]
    direction = np.ones(x.shape[1], np.float32)
    for _ in range(30):  # power iteration for the largest eigenvalue of x.T @ x
        direction = x.T @ (x @ (direction / np.linalg.norm(direction)))
    largest = 1.05 * np.linalg.norm(direction)
    step = 1 / (0.5 * largest / len(x) + decay)  # 1 / Lipschitz constant
    w = previous = np.zeros((x.shape[1], 10), np.float32)
    for i in range(steps):
        ahead = w + i / (i + 3) * (w - previous)
        logits = x @ ahead
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        gradient = x.T @ (p - target) / len(x) + decay * ahead
        previous, w = w, (ahead - step * gradient).astype(np.float32)
    return w


@pytest.mark.slow
@pytest.mark.parametrize("decay", [0.01, 0.1, 1.0])
def test_a_linear_model_stays_under_60_percent(decay):
    train, test = data.Synthetic(), data.Synthetic(train=False)
    normalize = data.Normalize(*data.channel_statistics(train.images))
    x, y = (normalize(part.images).reshape(len(part), -1) for part in (train, test))
    w = softmax_regression(x, train.labels, decay)
    accuracy = ((y @ w[:-1] + w[-1]).argmax(axis=1) == test.labels).mean()
    assert 0.3 < accuracy < 0.6  # it has learned something
