import hashlib
import io
import os
import pickle
import re
import sys
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from official_files import COUNT, images_and_labels, planes, python2_pickle, python_batch

from gpucnn import data
from gpucnn.data import cifar
from gpucnn.errors import DataError

BATCHES = [f"data_batch_{k}" for k in range(1, 6)]


def assert_holds(dataset, pairs):
    np.testing.assert_array_equal(dataset.images, np.concatenate([images for images, _ in pairs]))
    np.testing.assert_array_equal(dataset.labels, np.concatenate([labels for _, labels in pairs]))
    assert dataset.images.dtype == np.uint8
    assert dataset.labels.dtype == np.int64


def binary(images, *labels):
    return np.concatenate([np.stack(labels, 1).astype(np.uint8), planes(images)], 1).tobytes()


def make_archive(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def trust(monkeypatch, path):
    """Make the SHA-256 of the file at path the official one."""
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    versions = tuple(
        replace(v, sha256=sha256) if v.archive == path.name else v for v in cifar._CIFAR10
    )
    monkeypatch.setattr(cifar, "_CIFAR10", versions)


@pytest.fixture
def archive(cifar10_python, tmp_path, monkeypatch):
    """A folder with only an archive, accepted as the official one, and its contents."""
    root, truth = cifar10_python
    folder = root / "cifar-10-batches-py"
    place = tmp_path / "other"
    place.mkdir()
    path = place / "cifar-10-python.tar.gz"
    make_archive(path, {f"{folder.name}/{f.name}": f.read_bytes() for f in folder.iterdir()})
    trust(monkeypatch, path)
    return place, truth


# --- reading ---


def test_python_version_is_read_from_its_folder_or_the_folder_above(cifar10_python):
    root, truth = cifar10_python
    for place in (root, root / "cifar-10-batches-py", str(root)):
        assert_holds(data.CIFAR10(place), [truth[name] for name in BATCHES])
        assert_holds(data.CIFAR10(place, train=False), [truth["test_batch"]])


def test_files_of_the_full_size_are_read(tmp_path):
    images, labels = images_and_labels(10_000, 10, 0)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "test_batch").write_bytes(python2_pickle(python_batch(images, labels)))
    dataset = data.CIFAR10(tmp_path, train=False)
    assert_holds(dataset, [(images, labels)])
    assert dataset.classes[0] == "airplane"
    assert dataset.classes[-1] == "truck"


@pytest.mark.parametrize("protocol", range(6))
def test_a_batch_repickled_by_python_3_is_read(tmp_path, small, protocol):
    images, labels = images_and_labels(COUNT, 10, 1)
    (tmp_path / "test_batch").write_bytes(
        pickle.dumps({"data": planes(images), "labels": labels.tolist()}, protocol)
    )
    assert_holds(data.CIFAR10(tmp_path, train=False), [(images, labels)])


def test_labels_may_be_an_array(tmp_path, small):
    images, labels = images_and_labels(COUNT, 10, 1)
    batch = {b"data": planes(images), b"labels": labels.astype(">i4")}
    (tmp_path / "test_batch").write_bytes(python2_pickle(batch))
    assert_holds(data.CIFAR10(tmp_path, train=False), [(images, labels)])


def test_binary_version_holds_the_same_as_the_python_version(tmp_path, cifar10_python):
    root, truth = cifar10_python
    folder = tmp_path / "b" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for name, (images, labels) in truth.items():
        (folder / f"{name}.bin").write_bytes(binary(images, labels))
    for train in (True, False):
        one, other = data.CIFAR10(root, train), data.CIFAR10(tmp_path / "b", train)
        assert_holds(other, [(one.images, one.labels)])


def test_cifar100_fine_and_coarse_labels_in_both_versions(tmp_path, small):
    images, fine = images_and_labels(COUNT, 100, 3)
    coarse = np.random.default_rng(4).integers(0, 20, COUNT)
    python, binary_folder = tmp_path / "cifar-100-python", tmp_path / "b" / "cifar-100-binary"
    python.mkdir()
    binary_folder.mkdir(parents=True)
    batch = python_batch(images, fine, b"fine_labels") | {b"coarse_labels": coarse.tolist()}
    (python / "train").write_bytes(python2_pickle(batch))
    (binary_folder / "train.bin").write_bytes(binary(images, coarse, fine))
    for root in (tmp_path, tmp_path / "b"):
        assert_holds(data.CIFAR100(root), [(images, fine)])
        assert_holds(data.CIFAR100(root, coarse=True), [(images, coarse)])
    assert len(data.CIFAR100(tmp_path).classes) == 100
    assert len(data.CIFAR100(tmp_path, coarse=True).classes) == 20


def test_root_none_means_gpucnn_data(cifar10_python, monkeypatch):
    root, truth = cifar10_python
    monkeypatch.setenv("GPUCNN_DATA", str(root))
    assert_holds(data.CIFAR10(train=False), [truth["test_batch"]])


@pytest.mark.parametrize("download", [False, True])
def test_a_missing_folder_in_gpucnn_data_is_named_and_not_created(tmp_path, monkeypatch, download):
    monkeypatch.setenv("GPUCNN_DATA", str(tmp_path / "mispelt"))
    message = f"GPUCNN_DATA: {tmp_path / 'mispelt'} does not exist"
    with pytest.raises(data.DataNotFound, match=re.escape(message)):
        data.CIFAR10(download=download)
    pair, reason = data.find_cifar10(download=download)
    assert pair is None
    assert reason.startswith(message)
    assert list(tmp_path.iterdir()) == []


def test_a_download_uses_the_given_folder_or_the_cache(tmp_path, monkeypatch):
    asked = []

    def fetch(urls, path, sha256, quiet=False):
        asked.append(path.parent)
        raise data.DataNotFound("no network")

    monkeypatch.setattr(cifar, "fetch", fetch)
    monkeypatch.delenv("GPUCNN_DATA", raising=False)
    monkeypatch.setattr("gpucnn.data.dataset.default_root", lambda: tmp_path / "cache")
    for root in (None, tmp_path / "new"):
        with pytest.raises(data.DataNotFound, match="no network"):
            data.CIFAR10(root, download=True)
    assert asked == [tmp_path / "cache", tmp_path / "new"]


# --- archives ---


def test_archive_is_verified_read_and_extracted(archive):
    place, truth = archive
    if sys.platform != "win32":  # without locks, what a killed process left stays
        (place / ".cifar-10-batches-py-killed").mkdir()
    assert_holds(data.CIFAR10(place), [truth[name] for name in BATCHES])
    folder = place / "cifar-10-batches-py"
    assert {path.name for path in folder.iterdir()} == set(truth)
    (place / "cifar-10-python.tar.gz").unlink()
    assert_holds(data.CIFAR10(place, train=False), [truth["test_batch"]])
    assert [path.name for path in place.iterdir()] == [folder.name]  # no temporary files


def test_archive_itself_may_be_the_root(archive):
    place, truth = archive
    dataset = data.CIFAR10(place / "cifar-10-python.tar.gz", train=False)
    assert_holds(dataset, [truth["test_batch"]])


def test_archive_in_a_folder_that_cannot_be_written_is_read(archive, monkeypatch):
    place, truth = archive

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)  # root ignores file modes
    assert_holds(data.CIFAR10(place, train=False), [truth["test_batch"]])
    assert not (place / "cifar-10-batches-py").exists()


def test_archive_with_another_hash_or_size_is_refused(archive):
    place, _ = archive
    path = place / "cifar-10-python.tar.gz"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(DataError, match=r"cifar-10-python.tar.gz: SHA-256 .*(?s:.*)again"):
        data.CIFAR10(place)
    os.truncate(path, 6 << 30)  # sparse
    with pytest.raises(DataError, match="6,442,450,944 bytes, expected 170,498,071"):
        data.CIFAR10(place)


def test_truncated_archive_is_refused_even_if_its_hash_is_trusted(archive, monkeypatch):
    place, _ = archive
    path = place / "cifar-10-python.tar.gz"
    whole = path.read_bytes()
    for end in np.random.default_rng(0).integers(0, len(whole) - 8, 12):
        path.write_bytes(whole[:end])
        trust(monkeypatch, path)
        with pytest.raises(DataError, match="not a readable archive"):
            data.CIFAR10(place)


@pytest.mark.parametrize("evil", ["../data_batch_1", "/data_batch_1", "..", "link"])
def test_archive_with_paths_outside_its_folder_writes_nothing_there(
    tmp_path, small, monkeypatch, evil
):
    place = tmp_path / "place"
    place.mkdir()
    path = place / "cifar-10-python.tar.gz"
    if evil == "link":
        with tarfile.open(path, "w:gz") as tar:
            for name in (*BATCHES, "test_batch"):
                info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/hostname"
                tar.addfile(info)
    else:
        make_archive(path, {evil: b"evil", f"cifar-10-batches-py/{evil}": b"evil"})
    trust(monkeypatch, path)
    with pytest.raises(DataError, match="not a readable archive"):
        data.CIFAR10(place)
    assert {p.name for p in tmp_path.rglob("*")} == {"place", path.name}


# --- damage ---


def test_missing_data_names_the_folder_and_the_remedy(tmp_path):
    with pytest.raises(data.DataNotFound, match=r"CIFAR-10 is not in .*(?s:.*)download"):
        data.CIFAR10(tmp_path / "nowhere")


def test_missing_batch_is_named(cifar10_python):
    root, _ = cifar10_python
    path = root / "cifar-10-batches-py" / "data_batch_4"
    path.unlink()
    with pytest.raises(DataError, match=r"data_batch_4 is missing\n"):
        data.CIFAR10(root)
    path.mkdir()
    with pytest.raises(DataError, match="data_batch_4: cannot be read"):
        data.CIFAR10(root)
    path.rmdir()
    path.symlink_to("/dev/zero")
    with pytest.raises(DataError, match=r"data_batch_4: cannot be read: .* got a device"):
        data.CIFAR10(root)


def test_truncated_python_batch_names_the_file(tmp_path, small):
    images, labels = images_and_labels(COUNT, 10, 1)
    whole = python2_pickle(python_batch(images, labels))
    generator = np.random.default_rng(5)
    ends = [0, 1, 2, *generator.integers(3, len(whole), 40), *range(len(whole) - 40, len(whole))]
    for end in ends:
        (tmp_path / "test_batch").write_bytes(whole[:end])
        with pytest.raises(DataError, match="test_batch"):
            data.CIFAR10(tmp_path, train=False)


def test_corrupted_python_batch_is_read_or_refused_clearly(tmp_path, small):
    images, labels = images_and_labels(COUNT, 10, 1)
    whole = python2_pickle(python_batch(images, labels))
    structure = [i for i in range(len(whole)) if i < 400 or i > len(whole) - 700]
    generator = np.random.default_rng(6)
    refused = 0
    for _ in range(300):
        changed = bytearray(whole)
        for place in generator.choice(structure, 2):
            changed[place] = generator.integers(256)
        (tmp_path / "test_batch").write_bytes(changed)
        try:
            data.CIFAR10(tmp_path, train=False)
        except DataError as error:
            assert "test_batch" in str(error)  # noqa: PT017  most changes are refused, not all
            refused += 1
    assert refused > 100


def test_binary_file_of_any_other_length_names_the_file(tmp_path, small):
    whole = binary(*images_and_labels(COUNT, 10, 1))
    lengths = np.random.default_rng(7).integers(0, len(whole), 10)
    for content in (*(whole[:n] for n in lengths), whole[:-3073], whole + b"x", whole * 2):
        (tmp_path / "test_batch.bin").write_bytes(content)
        with pytest.raises(DataError, match=r"test_batch.bin: expected 12 records of 3073 bytes"):
            data.CIFAR10(tmp_path, train=False)


@pytest.mark.parametrize("label", [-1, 10, 255, 10**30])
def test_label_out_of_range_names_file_and_label(tmp_path, small, label):
    images, labels = images_and_labels(COUNT, 10, 1)
    batch = python_batch(images, labels)
    batch[b"labels"][3] = label
    (tmp_path / "test_batch").write_bytes(python2_pickle(batch))
    with pytest.raises(DataError, match=r"test_batch: label -?\d+ of image 3 is not in 0 to 9"):
        data.CIFAR10(tmp_path, train=False)


def test_binary_label_out_of_range_names_file_and_label(tmp_path, small):
    images, labels = images_and_labels(COUNT, 10, 1)
    labels[5] = 77
    (tmp_path / "test_batch.bin").write_bytes(binary(images, labels))
    with pytest.raises(DataError, match=r"test_batch.bin: label 77 of image 5"):
        data.CIFAR10(tmp_path, train=False)


GOOD, LABELS = np.zeros((COUNT, 3072), np.uint8), [0] * COUNT


@pytest.mark.parametrize(
    "batch",
    [
        [],
        {},
        {b"data": GOOD},
        {b"labels": LABELS},
        {b"data": GOOD[:, :-1], b"labels": LABELS},
        {b"data": GOOD[:-1], b"labels": LABELS},
        {b"data": GOOD.astype(np.float32), b"labels": LABELS},
        {b"data": GOOD.tolist(), b"labels": LABELS},
        {b"data": GOOD, b"labels": LABELS[:-1]},
        {b"data": GOOD, b"labels": [0.5] * COUNT},
        {b"data": GOOD, b"labels": ["cat"] * COUNT},
        {b"data": GOOD, b"labels": 3},
        {b"data": GOOD, b"labels": np.zeros(COUNT)},
        {b"data": GOOD, b"labels": np.zeros((COUNT, 1), np.int64)},
    ],
)
def test_batch_with_wrong_contents_names_the_file(tmp_path, small, batch):
    (tmp_path / "test_batch").write_bytes(pickle.dumps(batch, 2))
    with pytest.raises(DataError, match=r"test_batch: (expected|not a pickle)"):
        data.CIFAR10(tmp_path, train=False)


@pytest.mark.parametrize("name", ["test_batch", "test_batch.bin"])
def test_a_sparse_file_of_6_gib_is_refused_before_it_is_read(tmp_path, name):
    with (tmp_path / name).open("wb") as file:
        file.truncate(6 << 30)
    with pytest.raises(DataError, match=f"{name}: expected .*, got 6,442,450,944 bytes"):
        data.CIFAR10(tmp_path, train=False)


def test_the_limit_on_a_batch_holds_the_wordiest_pickle(tmp_path, small):
    """All escapes: Python 2's protocol 0 of black images, with long file names."""
    batch = {
        b"data": np.zeros((COUNT, 3072), np.uint8),
        b"labels": [9] * COUNT,
        b"filenames": ["x" * 100] * COUNT,
    }
    content = pickle.dumps(batch, 0).replace(b"\\u0000", b"\\x00")
    limit, _ = cifar._CIFAR10[0].budget("test_batch")
    assert len(content) < limit < 2 * len(content)


# --- find_cifar10 ---


def test_find_cifar10_returns_both_splits_and_their_source(cifar10_python):
    root, truth = cifar10_python
    pair, note = data.find_cifar10(root, download=False)
    assert_holds(pair[0], [truth[name] for name in BATCHES])
    assert_holds(pair[1], [truth["test_batch"]])
    assert str(root / "cifar-10-batches-py") in note


def test_find_cifar10_returns_the_reason_if_there_is_no_data(tmp_path):
    pair, note = data.find_cifar10(tmp_path, download=False)
    assert pair is None
    assert str(tmp_path) in note


def test_find_cifar10_does_not_skip_damaged_files(cifar10_python):
    root, _ = cifar10_python
    path = root / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="test_batch"):
        data.find_cifar10(root, download=False)


def test_the_official_files_if_present():
    root = os.environ.get("GPUCNN_DATA")
    if not root or not (data.default_root() / "cifar-10-batches-py").is_dir():
        pytest.skip("GPUCNN_DATA holds no cifar-10-batches-py")
    train, test = data.CIFAR10(), data.CIFAR10(train=False)
    assert np.bincount(train.labels).tolist() == [5000] * 10
    assert np.bincount(test.labels).tolist() == [1000] * 10
    mean, std = data.channel_statistics(train.images)
    np.testing.assert_allclose(
        mean, (0.4914, 0.4822, 0.4465), atol=1e-3
    )  # the commonly published values
    np.testing.assert_allclose(std, (0.2470, 0.2435, 0.2616), atol=3e-3)
