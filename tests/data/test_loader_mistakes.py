"""Invalid arguments, items and transforms of a DataLoader end in one clear error."""

import json

import numpy as np
import pytest

import gpucnn
from gpucnn import data
from gpucnn.device import Device
from gpucnn.errors import ArgumentError, DataError, DtypeError, ShapeError


def numbered(n):
    return data.Dataset(np.zeros((n, 8, 8, 3), np.uint8), np.arange(n) % 7, tuple("abcdefg"))


def three_arguments(images, generator, labels):
    return images


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch_size": 0}, "batch_size must be an int of at least 1, got 0"),
        ({"batch_size": -1}, "got -1"),
        ({"batch_size": 2.0}, "got 2.0"),
        ({"batch_size": True}, "got True"),
        ({"batch_size": "2"}, "got '2'"),
        ({"batch_size": None}, "got None"),
        ({"prefetch": -1}, "prefetch must be an int of at least 0, got -1"),
        ({"prefetch": 1.5}, "prefetch"),
        ({"num_workers": 0}, "num_workers must be an int of at least 1, got 0"),
        ({"seed": -1}, "seed must be an int of at least 0, got -1"),
        ({"seed": 0.5}, "seed"),
        ({"seed": 2**128}, f"seed must be at most {2**128 - 1}, got {2**128}"),
        (
            {"batch_size": 11, "drop_last": True},
            "drop_last drops the only batch: 10 images, batch_size 11",
        ),
        ({"dataset": numbered(10)[:0]}, "has no images"),
        ({"dataset": []}, "has no images"),
        ({"dataset": None}, "expected a Dataset, or an object with len() and [i], got None"),
        ({"dataset": iter([])}, "expected a Dataset"),
        (
            {"transform": "flip"},
            "must be callable as transform(images, generator) or transform(images), got 'flip'",
        ),
        ({"transform": three_arguments}, "got three_arguments(images, generator, labels)"),
        ({"transform": lambda: None}, "got <lambda>()"),
    ],
)
def test_invalid_arguments_are_refused(arguments, words):
    with pytest.raises(ArgumentError) as caught:
        data.DataLoader(**({"dataset": numbered(10), "batch_size": 2} | arguments))
    assert str(caught.value).startswith("DataLoader: ")
    assert words in str(caught.value)


def test_numpy_integers_are_accepted():
    loader = data.DataLoader(numbered(10), np.int64(4), seed=np.int32(3), prefetch=np.uint8(1))
    assert len(list(loader)) == 3
    json.dumps(loader.state_dict())


def test_a_data_set_on_a_gpu_is_refused(gpu):
    xp, there = Device.parse(gpu).xp, numbered(4)
    there = data.Dataset(xp.asarray(there.images), xp.asarray(there.labels), there.classes)
    with pytest.raises(ArgumentError, match="images are not NumPy arrays"):
        data.DataLoader(there, 2)


@pytest.mark.parametrize(
    ("result", "error", "words"),
    [
        (None, ArgumentError, "returned None for images (3, 8, 8, 3)"),
        (gpucnn.tensor(np.zeros((3, 8, 8, 3))), ArgumentError, "returned a float64 Tensor"),
        ([1, 2, 3], ArgumentError, "returned a list of 3"),
        (np.array([None] * 3), ArgumentError, "returned an object ndarray (3,)"),
        (np.zeros((2, 8, 8, 3)), ShapeError, "returned shape (2, 8, 8, 3) for images (3, 8, 8, 3)"),
        (np.zeros(()), ShapeError, "as many images as it was given"),
    ],
)
@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_transform_that_does_not_return_the_images_is_named(result, error, words, prefetch):
    loader = data.DataLoader(numbered(6), 3, transform=lambda *_: result, prefetch=prefetch)
    with pytest.raises(error) as caught:
        list(loader)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


IMAGE = np.zeros((8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("item", "error", "words"),
    [
        (IMAGE, DataError, "item 1 of list is a uint8 ndarray (8, 8, 3); expected (image, label)"),
        (3, DataError, "item 1 of list is an int"),
        ((IMAGE,), DataError, "a tuple of 1"),
        ((IMAGE, 1, 2), DataError, "a tuple of 3"),
        ((None, 1), DtypeError, "its image: expected numbers, got None"),
        (("cat.jpg", 1), DtypeError, "its image: expected numbers, got a str"),
        ((IMAGE.astype(object), 1), DtypeError, "an object ndarray"),
        ((IMAGE.astype(float), 1), DtypeError, "images of one batch have dtypes float64 and uint8"),
        ((IMAGE[1:], 1), ShapeError, "have shapes (7, 8, 3) and (8, 8, 3)"),
        ((IMAGE, 1.0), DtypeError, "labels of one batch have dtypes float32 and int64"),
        ((IMAGE, [1, 2]), ShapeError, "labels of one batch have shapes () and (2,)"),
        ((IMAGE, None), DtypeError, "its label: expected numbers, got None"),
        ((IMAGE, "cat"), DtypeError, "its label: expected numbers, got a str"),
        ((IMAGE, -1), DataError, "label -1 is not 0 or more"),
    ],
)
def test_an_item_that_is_not_an_image_and_a_label_is_named(item, error, words):
    with pytest.raises(error) as caught:
        list(data.DataLoader([(IMAGE, 0), item], 2))
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


def test_an_items_label_past_the_data_sets_classes_is_named():
    class Three(list):
        classes = ("a", "b", "c")

    with pytest.raises(DataError, match=r"item 3 of Three: label 3 is not in 0 to 2"):
        list(data.DataLoader(Three((IMAGE, i) for i in range(6)), 2))
