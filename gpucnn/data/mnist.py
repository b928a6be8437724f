"""MNIST and Fashion-MNIST: 70,000 grey images of 28 x 28 pixels, in idx files.

Sources: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits", which also
describes the idx format; H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST", 2017.
"""

import math
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpucnn.data.dataset import DataNotFound, Dataset, check_labels, root_folder
from gpucnn.data.download import Expected, fetch, refuse_missing_folder
from gpucnn.data.reading import read_bounded
from gpucnn.device import Array
from gpucnn.errors import DataError

_FILES = {
    True: ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    False: ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_IMAGE = (28, 28)
_MAX_ITEMS = 300_000  # EMNIST, the largest set of digits in this format, has 280,000


@dataclass(frozen=True)
class _Collection:
    """A data set in MNIST's format."""

    name: str
    classes: tuple[str, ...]
    folder: str  # below the root: for downloads, and searched first
    other_folders: tuple[str, ...]  # below the root: where other programs store it
    system_folder: str | None  # where a system package installs it
    mirrors: tuple[str, ...]
    files: dict[str, Expected]  # the gzipped files that the mirrors serve


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
    files={
        "train-images-idx3-ubyte": Expected(
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609", 9_912_422
        ),
        "train-labels-idx1-ubyte": Expected(
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c", 28_881
        ),
        "t10k-images-idx3-ubyte": Expected(
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6", 1_648_877
        ),
        "t10k-labels-idx1-ubyte": Expected(
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6", 4_542
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
        "https://fashion-mnist.s3.eu-central-1.amazonaws.com/",
    ),
    files={
        "train-images-idx3-ubyte": Expected(
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84", 26_421_880
        ),
        "train-labels-idx1-ubyte": Expected(
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845", 29_515
        ),
        "t10k-images-idx3-ubyte": Expected(
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073", 4_422_102
        ),
        "t10k-labels-idx1-ubyte": Expected(
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5", 5_148
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
    images, labels = _read_idx(images_path, _IMAGE), _read_idx(labels_path, ()).astype(np.int64)
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
            if os.path.isfile(path):
                return path
    refuse_missing_folder(root)
    base = root_folder(root)
    urls = [f"{mirror}{name}.gz" for mirror in collection.mirrors]
    if not download:
        raise DataNotFound(
            f"{collection.name} is not in {base}: no {name} or {name}.gz\n"
            f"  download it (download=True), or put {urls[0]} there"
        )
    return fetch(urls, base / collection.folder / f"{name}.gz", collection.files[name])


def _read_idx(path: Path, item: tuple[int, ...]) -> Array:
    """The array in an idx file of uint8: at most _MAX_ITEMS items of shape `item`."""
    dimensions = 1 + len(item)
    start = 4 + 4 * dimensions
    limit = start + _MAX_ITEMS * math.prod(item)
    expected = " x ".join(("N", *map(str, item))) + f" bytes, N at most {_MAX_ITEMS:,}"
    zipped = path.suffix == ".gz"
    # Compression adds at most a hundredth to bytes that it cannot shorten.
    content = read_bounded(path, limit + zipped * (limit // 100 + 1000), expected)
    inflater = zlib.decompressobj(wbits=31) if zipped else None  # 31: gzip, which has a CRC
    try:
        header = inflater.decompress(content, start) if inflater else content[:start]
        if header[:4] != bytes((0, 0, 8, dimensions)) or len(header) != start:
            raise DataError(
                f"{path}: starts with {header[:4].hex()}, expected {2048 + dimensions:08x}\n"
                f"  not an idx file of bytes in {dimensions} dimensions; get a fresh copy"
            )
        shape = struct.unpack(f">{dimensions}I", header[4:])
        if shape[1:] != item or shape[0] > _MAX_ITEMS:
            raise DataError(
                f"{path}: expected {expected}, got {' x '.join(map(str, shape))}\n"
                "  the file is damaged or from another data set; get a fresh copy"
            )
        size = math.prod(shape)
        if inflater:  # one byte more than expected detects a longer file
            body: bytes | memoryview = inflater.decompress(inflater.unconsumed_tail, size + 1)
            if len(body) <= size and (not inflater.eof or inflater.unused_data):
                raise zlib.error(
                    "it ends too early" if not inflater.eof else "bytes follow its end"
                )
        else:
            body = memoryview(content)[start:]
    except zlib.error as error:
        raise DataError(f"{path}: cannot be read ({error}); get a fresh copy") from error
    if len(body) != size:
        actual = f"{len(body)} bytes" if len(body) < size else "more"
        raise DataError(
            f"{path}: expected {size} bytes for {' x '.join(map(str, shape))}, got {actual}\n"
            "  the file is truncated or damaged; get a fresh copy"
        )
    return np.frombuffer(body, np.uint8).reshape(shape)
