from pathlib import Path

import numpy as np
import pytest

import gpucnn
from gpucnn import data
from gpucnn.device import Device
from gpucnn.errors import ArgumentError, DataError, DtypeError, ShapeError


def make(n=10):
    images = np.arange(n * 12, dtype=np.uint8).reshape(n, 2, 2, 3)
    return data.Dataset(images, np.arange(n) % 3, ("a", "b", "c"), "mine")


def test_an_integer_index_returns_image_and_label_and_any_other_a_data_set():
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


def test_take_returns_the_first_images():
    assert make().take(4).labels.tolist() == [0, 1, 2, 0]
    assert len(make().take(99)) == 10
    for wrong in (0, -1, 2.0, "2", True, None):
        with pytest.raises(ArgumentError, match="take: expected an int of at least 1 image"):
            make().take(wrong)


def test_repr_has_name_count_shape_and_classes():
    assert repr(make()) == "Dataset(mine: 10 images of 2x2x3, 3 classes)"


def test_it_is_frozen():
    with pytest.raises(AttributeError):
        make().name = "other"


PIXELS = np.zeros((2, 4, 4, 3), np.uint8)
TWO = np.zeros(2, np.int64)


@pytest.mark.parametrize(
    ("images", "labels", "error", "words"),
    [
        (PIXELS[..., 0], TWO, ShapeError, "got (2, 4, 4) and (2,)"),
        (PIXELS, np.zeros(3, np.int64), ShapeError, "got (2, 4, 4, 3) and (3,)"),
        (PIXELS, TWO[:, None], ShapeError, "(2, 1)"),
        (PIXELS, np.int64(3), ShapeError, "and ()"),
        (PIXELS[:, :0], TWO, ShapeError, "no pixels"),
        (PIXELS.astype(object), TWO, DtypeError, "images: expected numbers, got an object ndarray"),
        (PIXELS.astype(bool), TWO, DtypeError, "got bool and int64"),
        (PIXELS.astype(complex), TWO, DtypeError, "expected numbers, got a complex128"),
        (PIXELS.astype(int) + 256, TWO, DataError, "pixels in 0 to 255, got 256 to 256"),
        (PIXELS.astype(np.int8) - 1, TWO, DataError, "pixels in 0 to 255, got -1 to -1"),
        (None, TWO, DtypeError, "images: expected numbers, got None"),
        ([[1], [2, 3]], TWO, ShapeError, "the rows of a list of 2 differ in length"),
        (PIXELS, np.zeros(2), DtypeError, "got uint8 and float64"),
        (PIXELS, [0.0, 1.0], DtypeError, "got uint8 and float32"),
        (PIXELS, [True, False], DtypeError, "got uint8 and bool"),
        (PIXELS, ["a", "b"], DtypeError, "labels: expected numbers, got a list of 2"),
        (PIXELS, np.array([0, 2]), DataError, "label 2 of image 1 is not in 0 to 1"),
        (PIXELS, np.array([-1, 0]), DataError, "indices into classes, starting at 0"),
    ],
)
def test_invalid_images_and_labels_are_refused(images, labels, error, words):
    with pytest.raises(error) as caught:
        data.Dataset(images, labels, ("a", "b"), "mine")
    assert str(caught.value).startswith("mine: ")
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ((PIXELS + 7).tolist(), np.uint8),
        (list(PIXELS + 7), np.uint8),
        ((PIXELS + 7).astype(np.int64), np.uint8),
        ((PIXELS + 7).astype(">u2"), np.uint8),
        (gpucnn.tensor(PIXELS + 7), np.uint8),
        ((PIXELS + 7).astype(np.float64), np.float32),
        ((PIXELS + 7).astype(np.float16), np.float32),
        ((PIXELS + 7).astype(">f4"), np.float32),
        ((PIXELS + 7.0).tolist(), np.float32),
    ],
)
def test_images_become_uint8_or_float32_with_their_values(given, kept):
    images = data.Dataset(given, TWO, ("a", "b")).images
    assert images.dtype == kept
    assert images.dtype.isnative
    np.testing.assert_array_equal(images, PIXELS + 7)


@pytest.mark.parametrize(
    "labels",
    [
        [0, 1],
        (0, 1),
        np.array([0, 1], np.int32),
        np.array([0, 1], np.uint8),
        np.array([0, 1], ">i8"),
        gpucnn.tensor([0, 1]),
    ],
)
def test_labels_become_int64(labels):
    found = data.Dataset(PIXELS, labels, ("a", "b")).labels
    assert found.dtype == np.int64
    assert found.dtype.isnative
    assert found.tolist() == [0, 1]


def test_images_and_labels_of_the_right_dtype_are_not_copied():
    for pixels in (PIXELS, PIXELS.astype(np.float32)):
        dataset = data.Dataset(pixels, TWO, ("a", "b"))
        assert dataset.images is pixels
        assert dataset.labels is TWO


def test_without_class_names_the_classes_are_numbered_up_to_the_largest_label():
    dataset = data.Dataset(PIXELS, [3, 0])
    assert dataset.classes == ("0", "1", "2", "3")
    assert dataset[1:].classes == dataset.classes
    assert data.Dataset(PIXELS[:0], []).classes == ()


@pytest.mark.parametrize("classes", [2, "ab", {"a", "b"}])
def test_classes_that_are_not_a_list_of_names_are_refused(classes):
    with pytest.raises(ArgumentError, match="mine: classes must be a list of names, got"):
        data.Dataset(PIXELS, TWO, classes, "mine")


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (("a", ""), "got a str for class 1"),
        (("a", 3), "got an int for class 1"),
        (("a", None), "got None for class 1"),
        (("a", b"b"), "got a bytes for class 1"),
    ],
)
def test_each_class_needs_a_name(classes, words):
    with pytest.raises(ArgumentError) as caught:
        data.Dataset(PIXELS, TWO, classes, "mine")
    assert words in str(caught.value)


def test_labels_without_any_class_are_refused():
    with pytest.raises(DataError, match="label 0 of image 0 is not allowed: there are no classes"):
        data.Dataset(PIXELS, TWO, ())


def test_a_data_set_on_a_device_is_checked_too(device):
    xp = Device.parse(device).xp
    there = data.Dataset(xp.asarray(PIXELS), xp.asarray(TWO), ("a", "b"))
    assert len(there) == 2
    with pytest.raises(DataError, match="label 5 of image 1"):
        data.Dataset(xp.asarray(PIXELS), xp.asarray(np.array([0, 5])), ("a", "b"))


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
