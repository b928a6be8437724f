import gzip
import struct
from dataclasses import replace

import numpy as np
import pytest

from gpucnn import data
from gpucnn.data import mnist
from gpucnn.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (9, 28, 28)).astype(np.uint8)
LABELS = np.arange(9)


def idx(array):
    array = array.astype(np.uint8)
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


def write(folder, images=None, labels=None, zipped=False, split="t10k"):
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        f"{split}-images-idx3-ubyte": idx(IMAGES) if images is None else images,
        f"{split}-labels-idx1-ubyte": idx(LABELS) if labels is None else labels,
    }
    for name, content in contents.items():
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("folder", ["", "mnist", "MNIST/raw", "MNIST"])
def test_mnist_is_read_plain_and_zipped_from_each_folder(tmp_path, folder, zipped):
    write(tmp_path / folder, zipped=zipped)
    dataset = data.MNIST(tmp_path, train=False)
    np.testing.assert_array_equal(dataset.images[..., 0], IMAGES)
    np.testing.assert_array_equal(dataset.labels, LABELS)
    assert dataset.classes == tuple("0123456789")
    assert dataset.name == "MNIST test"


def test_each_split_is_read_from_its_own_files(tmp_path):
    write(tmp_path, split="train")
    write(tmp_path, labels=idx(LABELS[::-1]))
    assert data.MNIST(tmp_path).labels.tolist() == LABELS.tolist()
    assert data.MNIST(tmp_path, train=False).labels.tolist() == LABELS[::-1].tolist()


@pytest.mark.parametrize("folder", ["fashion-mnist", "FashionMNIST/raw", ""])
def test_fashion_mnist_is_not_taken_from_mnists_folders(tmp_path, folder):
    write(tmp_path / "mnist")
    with pytest.raises(data.DataNotFound, match="Fashion-MNIST is not in"):
        data.FashionMNIST(tmp_path, train=False)
    write(tmp_path / folder, labels=idx(LABELS[::-1]))
    dataset = data.FashionMNIST(tmp_path, train=False)
    assert dataset.labels.tolist() == LABELS[::-1].tolist()
    assert dataset.classes[9] == "Ankle boot"


def test_a_system_package_is_used_if_root_is_none(tmp_path, monkeypatch):
    write(tmp_path / "system")
    system = str(tmp_path / "system")
    monkeypatch.setattr(mnist, "_FASHION", replace(mnist._FASHION, system_folder=system))
    monkeypatch.setenv("GPUCNN_DATA", str(tmp_path / "empty"))
    assert len(data.FashionMNIST(train=False)) == 9
    with pytest.raises(data.DataNotFound):
        data.FashionMNIST(tmp_path / "empty", train=False)


@pytest.mark.parametrize("download", [False, True])
def test_a_missing_folder_in_gpucnn_data_is_named_and_not_created(tmp_path, monkeypatch, download):
    monkeypatch.setenv("GPUCNN_DATA", str(tmp_path / "mispelt"))
    with pytest.raises(data.DataNotFound, match=r"GPUCNN_DATA: .*mispelt does not exist"):
        data.MNIST(download=download)
    assert list(tmp_path.iterdir()) == []


def test_missing_files_are_named_with_the_remedy(tmp_path):
    with pytest.raises(data.DataNotFound, match=r"train-images-idx3-ubyte(?s:.*)download"):
        data.MNIST(tmp_path)


@pytest.mark.parametrize("zipped", [False, True])
def test_a_truncated_file_is_named(tmp_path, zipped):
    whole = idx(IMAGES)
    for end in (0, 1, 4, 15, 16, *np.random.default_rng(0).integers(17, len(whole), 20)):
        write(tmp_path, images=whole[:end], zipped=zipped)
        with pytest.raises(DataError, match="t10k-images-idx3-ubyte"):
            data.MNIST(tmp_path, train=False)


def test_a_truncated_or_corrupted_gzip_file_is_named(tmp_path):
    write(tmp_path, zipped=True)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    generator = np.random.default_rng(1)
    for end in (0, 1, 9, *generator.integers(10, len(whole), 20), len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte.gz"):
            data.MNIST(tmp_path, train=False)
    for place in generator.integers(20, len(whole), 20):
        changed = bytearray(whole)
        changed[place] ^= 0x55
        path.write_bytes(changed)
        with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte.gz: cannot be read"):
            data.MNIST(tmp_path, train=False)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (b"\0\0\x08\x01" + idx(IMAGES)[4:], "starts with 00000801, expected 00000803"),
        (b"\0\0\x0d\x03" + idx(IMAGES)[4:], "starts with 00000d03"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "starts with 89504e47"),
        (idx(IMAGES) + b"x", "got more"),
        (idx(IMAGES)[:4] + b"\xff" * 12 + bytes(100), "got 4294967295 x 4294967295 x 4294967295"),
        (idx(IMAGES)[:4] + b"\0\x04\x93\xe1" + idx(IMAGES)[8:], "got 300001 x 28 x 28"),
        (idx(IMAGES[:, :27]), "expected N x 28 x 28 bytes, N at most 300,000, got 9 x 27 x 28"),
        (idx(IMAGES)[:116], "expected 7056 bytes for 9 x 28 x 28, got 100 bytes"),
    ],
)
def test_the_error_describes_a_file_of_another_kind(tmp_path, images, message):
    write(tmp_path, images=images)
    with pytest.raises(DataError, match=message):
        data.MNIST(tmp_path, train=False)


def test_different_numbers_of_images_and_labels_are_refused(tmp_path):
    write(tmp_path, labels=idx(LABELS[:-1]))
    with pytest.raises(DataError, match="8 labels for 9 images"):
        data.MNIST(tmp_path, train=False)


def test_a_label_out_of_range_is_refused(tmp_path):
    write(tmp_path, labels=idx(LABELS + 2))
    with pytest.raises(DataError, match=r"labels-idx1-ubyte: label 10 of image 8"):
        data.MNIST(tmp_path, train=False)


def test_a_compressed_file_ends_where_its_data_ends(tmp_path):
    whole = gzip.compress(idx(IMAGES))
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    write(tmp_path, zipped=True)
    for after in (b"x", bytes(9), whole, gzip.compress(b"")):
        path.write_bytes(whole + after)
        with pytest.raises(DataError, match=r"gz: cannot be read \(bytes follow its end\)"):
            data.MNIST(tmp_path, train=False)
    path.write_bytes(whole[:-8] + bytes(8))
    with pytest.raises(DataError, match=r"gz: cannot be read \(.*incorrect data check\)"):
        data.MNIST(tmp_path, train=False)


def test_a_compressed_file_is_not_inflated_further_than_its_header_says(tmp_path):
    write(tmp_path, zipped=True)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(idx(IMAGES) + bytes(1 << 26), 1))
    with pytest.raises(DataError, match="expected 7056 bytes for 9 x 28 x 28, got more"):
        data.MNIST(tmp_path, train=False)


def test_a_sparse_file_of_6_gib_is_refused_before_it_is_read(tmp_path):
    write(tmp_path)
    with (tmp_path / "t10k-images-idx3-ubyte").open("r+b") as file:
        file.truncate(6 << 30)
    with pytest.raises(DataError, match="N at most 300,000, got 6,442,450,944 bytes"):
        data.MNIST(tmp_path, train=False)
