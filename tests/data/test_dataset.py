from pathlib import Path

import numpy as np
import pytest

from gpucnn import data
from gpucnn.errors import ArgumentError, DataError, DtypeError, ShapeError


def make(n=10):
    images = np.arange(n * 12, dtype=np.uint8).reshape(n, 2, 2, 3)
    return data.Dataset(images, np.arange(n) % 3, ("a", "b", "c"), "mine")


def test_a_number_gives_an_image_and_a_label_and_anything_else_a_data_set():
    dataset = make()
    image, label = dataset[4]
    np.testing.assert_array_equal(image, dataset.images[4])
    assert (label, type(label)) == (1, int)
    part = dataset[np.array([5, 1])]
    np.testing.assert_array_equal(part.images, dataset.images[[5, 1]])
    assert part.labels.tolist() == [2, 1]
    assert (part.classes, part.name) == (dataset.classes, "mine")
    assert len(dataset[2:5]) == 3
    assert [label for _, label in dataset] == dataset.labels.tolist()


def test_take_gives_the_first_images():
    assert make().take(4).labels.tolist() == [0, 1, 2, 0]
    assert len(make().take(99)) == 10
    with pytest.raises(ArgumentError, match="take"):
        make().take(0)


def test_repr_tells_what_it_is():
    assert repr(make()) == "Dataset(mine: 10 images of 2x2x3, 3 classes)"


def test_it_is_frozen():
    with pytest.raises(AttributeError):
        make().name = "other"


@pytest.mark.parametrize(
    ("images", "labels", "error"),
    [
        (np.zeros((2, 4, 4), np.uint8), np.zeros(2, np.int64), ShapeError),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(3, np.int64), ShapeError),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros((2, 1), np.int64), ShapeError),
        (np.zeros((2, 4, 4, 3)), np.zeros(2, np.int64), DtypeError),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2), DtypeError),
        (np.zeros((2, 4, 4, 3), np.uint8), np.array([0, 2]), DataError),
        (np.zeros((2, 4, 4, 3), np.uint8), np.array([-1, 0]), DataError),
    ],
)
def test_arrays_that_are_no_data_set_are_refused(images, labels, error):
    with pytest.raises(error, match="mine"):
        data.Dataset(images, labels, ("a", "b"), "mine")


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {"GPUCNN_DATA": "/d", "XDG_CACHE_HOME": "/x"}, "/d"),
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/gpucnn"),
        ("linux", {}, "/home/me/.cache/gpucnn"),
        ("linux", {"GPUCNN_DATA": "~/d"}, "/home/me/d"),
        ("darwin", {"XDG_CACHE_HOME": "/x"}, "/home/me/Library/Caches/gpucnn"),
        ("win32", {"LOCALAPPDATA": "/l"}, "/l/gpucnn"),
        ("win32", {}, "/home/me/AppData/Local/gpucnn"),
    ],
)
def test_default_root_follows_the_platform(monkeypatch, platform, environment, expected):
    for name in ("GPUCNN_DATA", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.platform", platform)
    assert data.default_root() == Path(expected)
