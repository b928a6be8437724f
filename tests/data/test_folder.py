import os
import sys
import warnings

import numpy as np
import pytest

from gpucnn import data
from gpucnn.errors import ArgumentError, DataError, MissingExtra

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")

COLOURS = {"blue": (0, 0, 250), "green": (0, 250, 0), "red": (250, 0, 0)}


@pytest.fixture
def folder(tmp_path):
    """Four uniform images of each colour, in many sizes and formats, and files to ignore."""
    for name, colour in COLOURS.items():
        (tmp_path / name / "deeper").mkdir(parents=True)
        for i, (suffix, size) in enumerate(
            [(".jpg", (40, 30)), (".png", (20, 50)), (".JPEG", (300, 200)), (".bmp", (9, 9))]
        ):
            place = tmp_path / name / ("deeper" if i == 3 else ".") / f"{i}{suffix}"
            Image.new("RGB", size, colour).save(place)
        (tmp_path / name / "notes.txt").write_text("no image")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "readme.txt").write_text("no class")
    return tmp_path


def test_every_image_has_the_size_and_the_class_of_its_directory(folder):
    dataset = data.ImageFolder(folder, 16)
    assert dataset.classes == ("blue", "green", "red")
    assert len(dataset) == 12
    assert dataset.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    for i in range(12):
        image, label = dataset[i]
        assert image.shape == (16, 16, 3)
        assert image.dtype == np.uint8
        assert label == dataset.labels[i]
        expected = COLOURS[dataset.classes[label]]
        assert abs(image.astype(int) - expected).max() <= 8  # JPEG is lossy


def test_height_and_width_may_differ(folder):
    assert data.ImageFolder(folder, (8, 20))[0][0].shape == (8, 20, 3)


def test_the_longer_side_is_cropped_to_the_center(tmp_path):
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 255
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "x.png")
    assert (data.ImageFolder(tmp_path, 10)[0][0] == 255).all()


def test_grey_palette_and_transparent_images_become_rgb(tmp_path):
    (tmp_path / "a").mkdir()
    for mode in ("L", "P", "RGBA", "1", "CMYK", "LA"):
        suffix = "jpg" if mode == "CMYK" else "png"
        Image.new(mode, (12, 12)).save(tmp_path / "a" / f"{mode}.{suffix}")
    dataset = data.ImageFolder(tmp_path, 8)
    assert len(dataset) == 6
    for i in range(6):
        assert dataset[i][0].shape == (8, 8, 3)


def test_exif_orientation_is_applied(tmp_path):
    (tmp_path / "a").mkdir()
    pixels = np.zeros((10, 10, 3), np.uint8)
    pixels[:5] = 255  # bright on top
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(pixels).save(tmp_path / "a" / "x.png", exif=exif)
    image, _ = data.ImageFolder(tmp_path, 10)[0]
    assert image[0].max() == 0
    assert image[9].min() == 255


def test_a_loader_reads_a_folder(folder):
    loader = data.DataLoader(data.ImageFolder(folder, 16), 5, shuffle=True, num_workers=3)
    batches = list(loader)
    assert [images.shape for images, _ in batches] == [(5, 16, 16, 3)] * 2 + [(2, 16, 16, 3)]
    for images, labels in batches:
        brightest = np.array([2, 1, 0])[labels]  # blue, green, red
        np.testing.assert_array_equal(images[:, 8, 8].argmax(axis=1), brightest)


@pytest.fixture
def damaged(folder):
    whole = (folder / "green" / "2.JPEG").read_bytes()
    (folder / "green" / "2.JPEG").write_bytes(whole[: len(whole) // 3])
    (folder / "red" / "1.png").write_bytes(b"no image at all")
    (folder / "red" / "5.jpg").mkdir()
    return folder


def test_a_damaged_image_names_its_file_and_the_remedy(damaged):
    dataset = data.ImageFolder(damaged, 16)
    with pytest.raises(DataError, match=r'2.JPEG: not a readable image (?s:.*)on_error="skip"'):
        list(data.DataLoader(dataset, 4))


def test_damaged_images_are_skipped_with_a_warning_each_and_a_count(damaged):
    dataset = data.ImageFolder(damaged, 16, on_error="skip")
    loader = data.DataLoader(dataset, 4)
    with pytest.warns(UserWarning, match="skipped, ") as record:
        sizes = [len(labels) for _, labels in loader]
    assert sizes == [4, 3, 2, 1]
    messages = [str(warning.message) for warning in record]
    assert len(messages) == 3
    assert [message[-8:] for message in messages] == ["1 so far", "2 so far", "3 so far"]
    assert len(dataset.skipped) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # each file is reported once
        assert sum(len(labels) for _, labels in loader) == 10


def test_a_truncated_jpeg_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "x.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    dataset = data.ImageFolder(tmp_path, 64)
    for end in np.random.default_rng(1).integers(0, len(whole) - 2, 30):
        path.write_bytes(whole[:end])
        with pytest.raises(DataError, match=r"x\.jpg"):
            dataset[0]


def test_take_keeps_the_proportions_of_the_classes(folder):
    dataset = data.ImageFolder(folder, 16)
    assert dataset.take(6).labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert len(dataset.take(100)) == 12
    assert len(dataset) == 12
    assert dataset.take(3)[2][1] == 2
    with pytest.raises(ArgumentError, match="take"):
        dataset.take(0)


def test_folders_without_classes_or_images_are_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        data.ImageFolder(tmp_path / "nowhere", 8)
    with pytest.raises(DataError, match="expected a directory for each class"):
        data.ImageFolder(tmp_path, 8)
    (tmp_path / "cats").mkdir()
    with pytest.raises(DataError, match=r"cats: expected at least one image"):
        data.ImageFolder(tmp_path, 8)


@pytest.mark.parametrize("arguments", [(0,), ((8, -1),), (8, "ignore")])
def test_invalid_arguments_are_refused(folder, arguments):
    with pytest.raises(ArgumentError, match="ImageFolder"):
        data.ImageFolder(folder, *arguments)


def test_without_pillow_the_error_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(MissingExtra, match=r"Pillow: pip install .gpucnn\[data\]"):
        data.ImageFolder(folder, 8)


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of Unix")
def test_a_pipe_among_the_images_is_refused_or_skipped_without_waiting(folder):
    os.mkfifo(folder / "red" / "9.png")
    dataset = data.ImageFolder(folder, 16)
    with pytest.raises(DataError, match=r"9\.png: .*got a pipe(?s:.*)on_error="):
        dataset[dataset.paths.index(folder / "red" / "9.png")]
    dataset = data.ImageFolder(folder, 16, on_error="skip")
    with pytest.warns(UserWarning, match=r"9\.png: .*got a pipe; skipped, 1 so far"):
        assert dataset[dataset.paths.index(folder / "red" / "9.png")] is None


@pytest.fixture
def linked(folder, tmp_path_factory):
    """A folder with links to an image, a class and a directory outside of it, one at a time."""
    outside = tmp_path_factory.mktemp("outside")
    Image.new("RGB", (9, 9), (7, 7, 7)).save(outside / "secret.png")

    def link(name, target=""):
        (folder / name).symlink_to(outside / target)
        return folder

    return link


def test_a_link_out_of_the_folder_is_refused_by_name_unless_links_are_followed(linked):
    root = linked("red/z.png", "secret.png")
    with pytest.raises(DataError, match=r"red/z\.png: links to .*secret\.png, outside of"):
        data.ImageFolder(root, 8)
    dataset = data.ImageFolder(root, 8, follow_links=True)
    assert (dataset[12][0] == 7).all()


def test_a_class_that_links_out_of_the_folder_is_refused_unless_links_are_followed(linked):
    root = linked("yellow")
    with pytest.raises(DataError, match=r"yellow: links to .*(?s:.*)follow_links=True"):
        data.ImageFolder(root, 8)
    assert data.ImageFolder(root, 8, follow_links=True).classes[-1] == "yellow"


def test_links_inside_the_folder_are_followed_but_never_in_a_circle(folder):
    (folder / "red" / "same.png").symlink_to(folder / "red" / "1.png")
    (folder / "red" / "deeper" / "up").symlink_to(folder / "red")
    (folder / "crimson").symlink_to("red")
    for follow in (False, True):
        dataset = data.ImageFolder(folder, 8, follow_links=follow)
        assert dataset.classes == ("blue", "crimson", "green", "red")
        assert np.bincount(dataset.labels).tolist() == [4, 5, 4, 5]
        assert dataset[8][0].shape == (8, 8, 3)


def test_a_root_that_is_a_link_is_not_outside_of_itself(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("place") / "photos"
    place.symlink_to(folder)
    (folder / "red" / "same.png").symlink_to(place / "red" / "1.png")
    assert len(data.ImageFolder(place, 8)) == 13


@pytest.mark.skipif(sys.platform != "linux", reason="file systems of Linux allow any bytes")
def test_names_of_any_bytes_are_shown_escaped_and_a_class_must_be_utf_8(folder):
    (folder / "red" / os.fsdecode(b"\xff\x1b[2J.png")).write_bytes(b"no image")
    dataset = data.ImageFolder(folder, 8, on_error="skip")
    with pytest.warns(UserWarning, match=r"\\udcff\\x1b\[2J\.png: not a readable image"):
        dataset[12]
    os.mkdir(os.fsencode(folder) + b"/\xe9t\xe9")
    with pytest.raises(DataError, match=r"the class '\\udce9t\\udce9' is not UTF-8; rename"):
        data.ImageFolder(folder, 8)


def test_the_repr_escapes_control_characters(folder):
    place = folder.rename(folder.with_name("\x1b[31mred"))
    assert repr(data.ImageFolder(place, 8)).startswith(r"ImageFolder(\x1b[31mred: 12 images")
    dataset = data.Dataset(np.zeros((1, 2, 2, 3), np.uint8), np.zeros(1, np.int64), ("a",), "\x07")
    assert repr(dataset).startswith(r"Dataset(\x07: 1 images")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_a_directory_that_may_not_be_read_is_named_and_not_left_out(folder):
    (folder / "red" / "deeper").chmod(0o000)
    try:
        with pytest.raises(DataError, match=r"deeper: cannot be read \(Permission denied\)"):
            data.ImageFolder(folder, 8)
    finally:
        (folder / "red" / "deeper").chmod(0o755)
