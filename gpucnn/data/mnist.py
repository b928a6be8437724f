"""MNIST and Fashion-MNIST: 70,000 grey images of 28 x 28 pixels, in idx files.

Sources: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits", which also
describes the idx format; H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST", 2017.
"""

import gzip
import math
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpucnn.data.dataset import DataNotFound, Dataset, check_labels, root_folder
from gpucnn.data.download import fetch, refuse_missing_folder
from gpucnn.device import Array
from gpucnn.errors import DataError

_FILES = {
    True: ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    False: ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_MAX_BYTES = 1 << 31  # of a decompressed file


@dataclass(frozen=True)
class _Collection:
    """A data set in MNIST's format."""

    name: str
    classes: tuple[str, ...]
    folder: str  # below the root: for downloads, and searched first
    other_folders: tuple[str, ...]  # below the root: where other programs store it
    system_folder: str | None  # where a system package installs it
    mirrors: tuple[str, ...]
    sha256: dict[str, str]  # of the gzipped files that the mirrors serve


_MNIST = _Collection(
    name="MNIST",
    classes=tuple("0123456789"),
    folder="mnist",
    other_folders=("MNIST/raw", "MNIST"),
    system_folder=None,
    mirrors=(
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
    ),
    sha256={
        "train-images-idx3-ubyte": (
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
        ),
        "train-labels-idx1-ubyte": (
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
        ),
        "t10k-images-idx3-ubyte": (
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
        ),
        "t10k-labels-idx1-ubyte": (
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
        ),
    },
)
_FASHION = _Collection(
    name="Fashion-MNIST",
    classes=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    folder="fashion-mnist",
    other_folders=("FashionMNIST/raw", "FashionMNIST"),
    system_folder="/usr/share/datasets/fashion-mnist",  # Debian's dataset-fashion-mnist
    mirrors=(
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
    sha256={
        "train-images-idx3-ubyte": (
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"
        ),
        "train-labels-idx1-ubyte": (
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"
        ),
        "t10k-images-idx3-ubyte": (
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"
        ),
        "t10k-labels-idx1-ubyte": (
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"
        ),
    },
)


def MNIST(
    root: "str | os.PathLike[str] | None" = None, train: bool = True, download: bool = False
) -> Dataset:
    """MNIST: 60,000 training or 10,000 test images, uint8 (N, 28, 28, 1), of handwritten digits.

    The idx files, plain or gzipped, are read from root or its folders mnist, MNIST/raw and
    MNIST; root None means `default_root()`.  With download, missing files are downloaded to
    root/mnist, which is created if necessary; a folder named by GPUCNN_DATA must exist.

    Raises DataNotFound if a file is not there or cannot be downloaded, DataError if one is damaged.
    """
    return _load(_MNIST, root, train, download)


def FashionMNIST(
    root: "str | os.PathLike[str] | None" = None, train: bool = True, download: bool = False
) -> Dataset:
    """Fashion-MNIST: 60,000 training or 10,000 test images, uint8 (N, 28, 28, 1), of clothing.

    Arguments and errors are those of MNIST, with the folders fashion-mnist, FashionMNIST/raw and
    FashionMNIST and, with root None, the folder of Debian's package dataset-fashion-mnist.
    """
    return _load(_FASHION, root, train, download)


def _load(
    collection: _Collection,
    root: "str | os.PathLike[str] | None",
    train: bool,
    download: bool,
) -> Dataset:
    base = root_folder(root)
    folders = [base / name for name in (collection.folder, *collection.other_folders)] + [base]
    if root is None and collection.system_folder is not None:
        folders.append(Path(collection.system_folder))
    images_path, labels_path = (
        _file(collection, name, folders, root, download) for name in _FILES[train]
    )
    images, labels = _read_idx(images_path, 3), _read_idx(labels_path, 1).astype(np.int64)
    if len(images) != len(labels):
        raise DataError(
            f"{labels_path} has {len(labels)} labels for {len(images)} images in {images_path}\n"
            "  the files do not belong together; get fresh copies"
        )
    check_labels(labels, len(collection.classes), labels_path)
    split = "train" if train else "test"
    return Dataset(images[..., None], labels, collection.classes, f"{collection.name} {split}")


def _file(
    collection: _Collection,
    name: str,
    folders: list[Path],
    root: "str | os.PathLike[str] | None",
    download: bool,
) -> Path:
    for folder in folders:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    refuse_missing_folder(root)
    base = root_folder(root)
    urls = [f"{mirror}{name}.gz" for mirror in collection.mirrors]
    if not download:
        raise DataNotFound(
            f"{collection.name} is not in {base}: no {name} or {name}.gz\n"
            f"  download it (download=True), or put {urls[0]} there"
        )
    return fetch(urls, base / collection.folder / f"{name}.gz", collection.sha256[name])


def _read_idx(path: Path, dimensions: int) -> Array:
    """The array in an idx file of uint8 with the given number of dimensions."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4 + 4 * dimensions)
            if header[:4] != bytes((0, 0, 8, dimensions)) or len(header) != 4 + 4 * dimensions:
                raise DataError(
                    f"{path}: starts with {header[:4].hex()}, expected {2048 + dimensions:08x}\n"
                    f"  not an idx file of bytes in {dimensions} dimensions; get a fresh copy"
                )
            shape = struct.unpack(f">{dimensions}I", header[4:])
            size = math.prod(shape)
            body = file.read(min(size, _MAX_BYTES) + 1)  # one byte more detects a longer file
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); get a fresh copy") from error
    if len(body) != size:
        actual = f"{len(body)} bytes" if len(body) < size else "more"
        raise DataError(
            f"{path}: expected {size} bytes for {' x '.join(map(str, shape))}, got {actual}\n"
            "  the file is truncated or damaged; get a fresh copy"
        )
    return np.frombuffer(body, np.uint8).reshape(shape)
