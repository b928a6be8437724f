import numpy as np
import pytest

import gpucnn
from gpucnn import data, inspect, models, nn, train
from gpucnn.errors import ArgumentError, ShapeError

CLASSES = ("ant", "bee", "cat")


class Echo(nn.Module):
    """Its logits are the image itself."""

    def forward(self, x):
        return x.reshape(len(x), 3)


def echo(probabilities, labels):
    images = np.log(np.float32(probabilities)).reshape(-1, 1, 1, 3)
    return inspect.predict(Echo(), images, labels, batch_size=2)


RIGHT, UNSURE, WRONG = [0.8, 0.1, 0.1], [0.4, 0.5, 0.1], [0.01, 0.04, 0.95]


def test_the_worst_mistake_is_the_one_with_the_least_likely_truth():
    predictions = echo([RIGHT, UNSURE, WRONG, RIGHT, UNSURE], [0, 0, 0, 1, 1])
    assert predictions.predicted.tolist() == [0, 1, 2, 0, 1]
    np.testing.assert_allclose(predictions.probabilities[2], WRONG, rtol=1e-5)
    np.testing.assert_allclose(predictions.losses[2], -np.log(0.01), rtol=1e-5)
    assert predictions.worst(9).tolist() == [2, 3, 1]
    assert predictions.worst(1).tolist() == [2]


def test_the_surest_have_the_smallest_loss_with_one_of_each_class_first():
    predictions = echo([RIGHT, UNSURE, WRONG, RIGHT, UNSURE], [0, 0, 2, 1, 1])
    assert predictions.surest(2).tolist() == [2, 0]
    assert predictions.surest(9).tolist() == [2, 0, 4, 1, 3]


def test_the_evaluation_equals_that_of_train_evaluate(rng):
    model = models.alexnet_cifar10(generator=rng)
    test_set = data.Synthetic(train=False, n=40)
    normalize = data.Normalize(*data.channel_statistics(test_set.images))
    loader = data.DataLoader(test_set, 16, transform=normalize, device="cpu")
    expected = train.evaluate(model, loader)
    images = normalize(test_set.images, rng)
    seen = inspect.predict(model, images, test_set.labels, batch_size=16).evaluation
    np.testing.assert_array_equal(seen.confusion, expected.confusion)
    assert seen.loss == pytest.approx(expected.loss, rel=1e-6)
    assert seen.accuracy == expected.accuracy


def test_labels_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match=r"expected labels \(2,\) for 2 images"):
        echo([RIGHT, RIGHT], [0])
    with pytest.raises(ArgumentError, match="classes are 0 to 2"):
        echo([RIGHT, RIGHT], [0, 3])


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_charts_are_drawn_in_both_themes(tmp_path, theme):
    image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    predictions = echo([RIGHT, UNSURE, WRONG], [0, 0, 0])
    inspect.confusion_chart(tmp_path / "c.png", predictions.evaluation.confusion, CLASSES, theme)
    pictures = np.zeros((3, 8, 8, 3), np.uint8)
    worst = inspect.mistakes_page(tmp_path / "m.png", pictures, predictions, CLASSES, 5, theme)
    assert worst.tolist() == [2, 1]
    for name in ("c.png", "m.png"):
        with image.open(tmp_path / name) as file:
            corner = np.asarray(file.convert("L"))[0, 0]
        assert (corner > 128) == (theme == "light")


def test_a_model_without_mistakes_has_an_empty_page(tmp_path):
    predictions = echo([RIGHT], [0])
    pictures = np.zeros((1, 8, 8, 3), np.uint8)
    assert len(inspect.mistakes_page(tmp_path / "m.png", pictures, predictions, CLASSES)) == 0
    assert (tmp_path / "m.png").exists()


def test_a_confusion_matrix_of_another_size_or_an_unknown_theme_is_refused(tmp_path):
    with pytest.raises(ShapeError, match=r"expected \(3, 3\) for 3 classes"):
        inspect.confusion_chart(tmp_path / "c.png", np.eye(4), CLASSES)
    with pytest.raises(ArgumentError, match="expected light or dark"):
        inspect.confusion_chart(tmp_path / "c.png", np.eye(3), CLASSES, "blue")


def test_a_hundred_classes_are_drawn_without_names(tmp_path):
    inspect.confusion_chart(tmp_path / "c.png", np.eye(100), [str(i) for i in range(100)])
    assert (tmp_path / "c.png").exists()


def test_labels_may_be_a_list_a_tensor_or_an_array_of_a_gpu(gpu):
    labels = [0, 1]
    on_the_gpu = gpucnn.tensor(np.array(labels), gpu)
    for given in (labels, np.array(labels), gpucnn.tensor(labels), on_the_gpu, on_the_gpu.data):
        predictions = echo([RIGHT, RIGHT], given)
        assert isinstance(predictions.labels, np.ndarray)
        assert predictions.labels.tolist() == labels
