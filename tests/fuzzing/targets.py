# ruff: noqa: E501 -- a table reads best with a row a line
"""The readers of gpucnn: TARGETS."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

import gpucnn
from fuzzing import corpus
from fuzzing.cases import Target
from fuzzing.mutators import (
    anywhere,
    idx_header,
    inside_gzip,
    inside_zip,
    pickle_opcodes,
    png_chunks,
)
from fuzzing.safetensors_files import the_header, the_information, the_tensors
from gpucnn import data, models, train
from gpucnn.data import cifar
from gpucnn.data.pickles import read_arrays
from gpucnn.interop.torchvision import convert_file
from gpucnn.models.classifier import Classifier

CHECKPOINT = (the_information, the_information, the_tensors, the_header)
FILE = "file.safetensors"


# --- checkpoints ---


def _load(path: Path) -> None:
    gpucnn.load(path)


def _load_into(path: Path) -> None:
    gpucnn.load(path, corpus.named_model())


def _input_shape(path: Path) -> None:
    name, config = train.read_checkpoint(path).model_config()
    models.input_shape(name, **config)


def _resume(optimizer: str) -> Callable[[Path], None]:
    def read(path: Path) -> None:
        run = corpus.trainer(optimizer)
        run.resume(path)
        for images, labels in run.loader:  # and go on
            run.train_step(images, labels)
            break

    return read


def _settings(path: Path) -> None:
    """What --resume does before it trains."""
    threads, algorithm = gpucnn.get_num_threads(), gpucnn.get_conv_algorithm()
    try:
        job = corpus.script().start(["--resume", str(path), "--quiet"])
        try:
            optimizer = job.optimizer(corpus.own_model())
            job.scheduler(optimizer, job.settings.epochs * 4)
        finally:
            job.close()
    finally:
        gpucnn.set_num_threads(threads)
        gpucnn.set_conv_algorithm(algorithm)


def _classify(path: Path) -> None:
    classifier = Classifier(path)
    classifier.probabilities(np.zeros((1, *classifier.shape), np.uint8))


def _convert(path: Path) -> None:
    convert_file(path, path.with_name("converted.safetensors"))


# --- data sets ---


_FEW: dict[str, Any] = {
    name: tuple(
        replace(version, images_per_file=(corpus.COUNT, corpus.COUNT))
        for version in getattr(cifar, name)
    )
    for name in ("_CIFAR10", "_CIFAR100")
}


def _cifar10(path: Path) -> None:
    with patch.multiple(cifar, **_FEW):
        data.CIFAR10(path.parent, train=False)


def _archive(path: Path) -> None:
    """A mutated archive that has the official one's checksum, and so may be extracted."""
    try:
        with patch.multiple(cifar, **_FEW, sha256_of=lambda path: cifar._CIFAR10[0].sha256):
            data.CIFAR10(path.parent, train=False)
    finally:
        shutil.rmtree(path.with_name("cifar-10-batches-py"), ignore_errors=True)


def _cifar100(path: Path) -> None:
    with patch.multiple(cifar, **_FEW):
        data.CIFAR100(path.parent, train=False)


def _read_mnist(path: Path) -> None:
    data.MNIST(path.parent, train=False)


def _fashion(path: Path) -> None:
    data.FashionMNIST(path.parent, train=False)


def _arrays(path: Path) -> None:
    read_arrays(path, path.read_bytes())


# --- images ---


def _folder(path: Path) -> None:
    data.ImageFolder(path.parents[1], 8)[0]


class _Predict:
    """Reads a picture as `gpucnn predict` does."""

    classifier: Any = None

    def __call__(self, path: Path) -> None:
        if self.classifier is None:
            model = path.with_name("model.safetensors")
            self.classifier = Classifier(model)
        self.classifier.read(path)


def _class_names(path: Path) -> None:
    from gpucnn.commands.predict import _lines

    _lines(path)


def _image(name: str, suffix: str, share: float = 0.4) -> Target:
    return Target(
        name, _PICTURE, f"class/image{suffix}", lambda: corpus.images((name,)),
        (png_chunks,) if name == "PNG" else (), _folder, share=share,
    )  # fmt: skip


_LABELS = "t10k-labels-idx1-ubyte"
_IMAGES = "t10k-images-idx3-ubyte"
_CONVERTED = ("converted.safetensors",)

_MODEL = "a mutated checkpoint, loaded"
_RUN = "a mutated checkpoint, resumed"
_STATE = "a mutated state dict, converted"
_PICKLE = "a mutated pickle of arrays"
_CIFAR = "a mutated file of CIFAR-10 or CIFAR-100"
_MNIST = "a mutated file of MNIST or Fashion-MNIST"
_PICTURE = "a mutated image"
_NAMES = "a mutated list of class names"

TARGETS = [
    Target("read_checkpoint", _MODEL, FILE, lambda: corpus.runs("adam"), CHECKPOINT, train.read_checkpoint),
    Target("load", _MODEL, FILE, corpus.model_files, CHECKPOINT, _load, share=2),
    Target("load into a model", _MODEL, FILE, lambda: corpus.runs("sgd"), CHECKPOINT, _load_into),
    Target("input_shape", _MODEL, FILE, corpus.model_files, CHECKPOINT, _input_shape, share=0.5),
    Target("Classifier", _MODEL, FILE, corpus.lenet_file, CHECKPOINT, _classify),
    Target("resume, Adam", _RUN, FILE, lambda: corpus.runs("adam"), CHECKPOINT, _resume("adam"), share=2),
    Target("resume, SGD", _RUN, FILE, lambda: corpus.runs("sgd"), CHECKPOINT, _resume("sgd")),
    Target("--resume", _RUN, FILE, lambda: corpus.runs("sgd"), (the_information,), _settings, lambda: {"run.lock": b""}, share=1.5),
    Target("convert, .safetensors", _STATE, FILE, corpus.state_dicts, (the_tensors, the_header, the_information), _convert, writes=_CONVERTED),
    Target("pickle", _PICKLE, "arrays.pickle", corpus.pickles, (pickle_opcodes,), _arrays, share=3),
    Target("CIFAR-10, pickle", _CIFAR, "test_batch", lambda: corpus.batches(10, b"labels"), (pickle_opcodes,), _cifar10),
    Target("CIFAR-100, pickle", _CIFAR, "test", lambda: corpus.batches(100, b"fine_labels"), (pickle_opcodes,), _cifar100),
    Target("CIFAR-10, binary", _CIFAR, "test_batch.bin", lambda: corpus.records(1), (), _cifar10, share=0.5),
    Target("CIFAR-100, binary", _CIFAR, "test.bin", lambda: corpus.records(2), (), _cifar100, share=0.5),
    Target("CIFAR-10, archive", _CIFAR, "cifar-10-python.tar.gz", corpus.archive, (inside_gzip(anywhere),), _archive, share=0.3),
    Target("MNIST, images", _MNIST, _IMAGES, lambda: corpus.idx(3), (idx_header,), _read_mnist, lambda: {_LABELS: corpus.idx(1)[0]}),
    Target("MNIST, labels", _MNIST, _LABELS, lambda: corpus.idx(1), (idx_header,), _read_mnist, lambda: {_IMAGES: corpus.idx(3)[0]}, share=0.5),
    Target("Fashion-MNIST, gzip", _MNIST, f"{_IMAGES}.gz", lambda: corpus.zipped(corpus.idx(3)), (inside_gzip(idx_header), inside_gzip(anywhere)), _fashion, lambda: {_LABELS: corpus.idx(1)[0]}),
    Target("class names", _NAMES, "classes.txt", lambda: ["cat\ndog\nKäse\n".encode()], (), _class_names, share=0.2),
]  # fmt: skip

if find_spec("PIL"):
    TARGETS += [
        _image("PNG", ".png", share=1.5),
        _image("JPEG", ".jpg", share=0.6),
        _image("GIF", ".gif"),
        _image("TIFF", ".tif", share=0.8),
        _image("BMP", ".bmp"),
        _image("PPM", ".ppm"),
        _image("WEBP", ".webp"),
        Target("predict", _PICTURE, "image.png", lambda: corpus.images(("PNG", "JPEG", "TIFF")), (png_chunks,), _Predict(), lambda: {"model.safetensors": corpus.lenet_file()[0]}, share=0.6),
    ]  # fmt: skip

if find_spec("torch"):
    TARGETS += [
        Target("convert, .pth", _STATE, "file.pth", corpus.torch_files, (inside_zip,), _convert, writes=_CONVERTED),
    ]  # fmt: skip
