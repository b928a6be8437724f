"""Good files of every format that gpucnn reads: small, and the same at every start."""

import gzip
import io
import pickle
import struct
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

import gpucnn
from gpucnn import data, models, nn, optim, train
from gpucnn.train.script import Script

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from official_files import COUNT, images_and_labels, planes, python2_pickle, python_batch

NORMALIZE = data.Normalize((0.5,), (0.25,))
MALICE = pickle.dumps({b"data": eval}, protocol=0), b"cos\nsystem\n(S'touch proof'\ntR."


def _written(write: Callable[[Path], Any], name: str = "file.safetensors") -> bytes:
    """The bytes of the file that `write` writes."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / name)
        return (Path(folder) / name).read_bytes()


# --- checkpoints ---


def own_model() -> nn.Module:
    """A model that gpucnn.models does not have."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(12, 6), nn.Dropout(0.5, generator=np.random.default_rng(1)),
        nn.ReLU(), nn.Linear(6, 3),
    )  # fmt: skip


def named_model() -> nn.Module:
    return models.mlp([12, 6, 3])


def trainer(optimizer: str) -> train.Trainer:
    """A Trainer on eight small images: of own_model() with Adam, of named_model() with SGD."""
    gpucnn.manual_seed(0)
    rng = np.random.default_rng(2)
    images = rng.integers(0, 256, (8, 2, 2, 3)).astype(np.uint8)
    dataset = data.Dataset(images, np.arange(8) % 3, ("a", "b", "c"))
    loader = data.DataLoader(
        dataset, 4, shuffle=True, transform=data.Normalize((0.5,) * 3, (0.25,) * 3), device="cpu",
        prefetch=0,
    )  # fmt: skip
    if optimizer == "adam":
        model, info = own_model(), {"model": {"class": "Sequential"}}
        adam = optim.Adam(model.parameters(), 0.01)
        schedule = optim.lr_scheduler.CosineAnnealingLR(adam, 8)
        return train.Trainer(model, adam, loader, scheduler=schedule, info=info, verbose=False)
    model = named_model()
    sgd = optim.SGD(model.parameters(), 0.01, momentum=0.9)
    return train.Trainer(model, sgd, loader, info=run_info(), verbose=False)


def run_info() -> dict[str, Any]:
    """What a script's job records."""
    job = script().start(["--quiet", "--device", "cpu"])
    return {
        "model": {"name": "mlp", "config": {"sizes": [12, 6, 3]}},
        "classes": ["a", "b", "c"],
        **script().recorded(job.settings),
    }


def script() -> Script:
    return Script("fuzzed", "A script.", epochs=2, batch_size=4, lr=0.1)


def runs(optimizer: str) -> list[bytes]:
    """Checkpoints of a run: before it, inside an epoch, after one."""
    run = trainer(optimizer)
    found = [_written(run.save)]
    for images, labels in run.loader:
        run.train_step(images, labels)
        found.append(_written(run.save))
        break
    run = trainer(optimizer)
    run.fit(1)
    run.history[0].update(seconds=1.0, images_per_second=8.0, step_ms=500.0)  # were measured
    found.append(_written(run.save))
    return found


def model_files() -> list[bytes]:
    gpucnn.manual_seed(0)
    mlp, lenet = models.mlp([12, 6, 3]), models.lenet5(classes=3)
    classes = ["a", "b", "c"]
    return [
        _written(lambda path: gpucnn.save(path, mlp, "mlp", {"sizes": [12, 6, 3]}, classes)),
        _written(lambda path: gpucnn.save(path, mlp)),
        _written(
            lambda path: gpucnn.save(path, lenet, "lenet5", {"classes": 3}, classes, NORMALIZE)
        ),
    ]


def lenet_file() -> list[bytes]:
    return model_files()[2:]


def _alexnet() -> dict[str, np.ndarray]:
    """The names of torchvision's AlexNet, with tensors of a few numbers."""
    from gpucnn.interop.torchvision import _LAYERS

    return {
        f"{layer}.{part}": np.ones((1,) * len(shape if part == "weight" else shape[:1]), np.float32)
        for layer, (_, shape) in _LAYERS.items()
        for part in ("weight", "bias")
    }


def state_dicts() -> list[bytes]:
    """safetensors files for `gpucnn convert`: of torchvision, and of gpucnn."""
    info = {"model": {"name": "alexnet_torchvision", "config": {"classes": 1}}}
    tensors = {f"model.{name}": array for name, array in _alexnet().items()}
    return [
        safetensors.numpy.save(_alexnet()),
        _written(lambda path: train.write_checkpoint(path, tensors, info)),
    ]


def torch_files() -> list[bytes]:
    import torch

    ones = torch.ones(1)
    state = {name: ones.reshape(array.shape) for name, array in _alexnet().items()}
    found = []
    for new in (True, False):
        buffer = io.BytesIO()
        torch.save(state, buffer, _use_new_zipfile_serialization=new)
        found.append(buffer.getvalue())
    # The older format names a storage by its address.
    address = str(ones.untyped_storage()._cdata).encode()
    found[1] = found[1].replace(struct.pack("<I", len(address)) + address, b"\1\0\0\0a")
    return [*found, *MALICE]


# --- data sets ---


def batches(classes: int, key: bytes) -> list[bytes]:
    """Pickled CIFAR batches, as Python 2 wrote them and as Python 3 does."""
    batch = python_batch(*images_and_labels(COUNT, classes, 0), key)
    if key != b"labels":
        batch[b"coarse_labels"] = [0] * COUNT
    return [python2_pickle(batch), *(pickle.dumps(batch, p) for p in (2, 4, 5)), *MALICE]


def pickles() -> list[bytes]:
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    value = {b"data": array, b"labels": [1, 2], b"more": [array.T, 1 << 70, 0.5, "text", None]}
    return [
        *(pickle.dumps(value, protocol) for protocol in range(6)),
        python2_pickle(value),
        *MALICE,
    ]


def records(labels: int) -> list[bytes]:
    images, answers = images_and_labels(COUNT, 10, 0)
    column = np.repeat(answers[:, None].astype(np.uint8), labels, 1)
    return [np.hstack([column, planes(images)]).tobytes()]


def archive() -> list[bytes]:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
        for content, name in zip([batches(10, b"labels")[0]] * 6, names, strict=True):
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return [gzip.compress(buffer.getvalue(), 1, mtime=0)]


def idx(dimensions: int) -> list[bytes]:
    shape = (9, 28, 28)[:dimensions]
    numbers = np.random.default_rng(0).integers(0, 10, shape).astype(np.uint8)
    return [struct.pack(f">HBB{dimensions}I", 0, 8, dimensions, *shape) + numbers.tobytes()]


def zipped(files: list[bytes]) -> list[bytes]:
    return [gzip.compress(content, 6, mtime=0) for content in files]


# --- images ---


def images(formats: tuple[str, ...]) -> list[bytes]:
    """Small pictures in every mode that a format has."""
    from PIL import Image

    rng = np.random.default_rng(4)
    base = Image.fromarray(rng.integers(0, 256, (11, 9, 3)).astype(np.uint8))
    found = []
    for name in formats:
        for mode in ("RGB", "L", "P", "1", "RGBA", "LA", "CMYK", "I;16", "I", "F"):
            buffer = io.BytesIO()
            try:
                picture = base.convert("L").convert(mode) if mode == "I;16" else base.convert(mode)
                picture.save(buffer, name)
            except (OSError, ValueError, KeyError):  # a mode that the format does not have
                continue
            found.append(buffer.getvalue())
    for extra in ({"compression": "tiff_lzw"}, {"compression": "tiff_deflate"}):
        if "TIFF" in formats:
            buffer = io.BytesIO()
            base.save(buffer, "TIFF", **extra)
            found.append(buffer.getvalue())
    if "GIF" in formats:
        buffer = io.BytesIO()
        base.save(buffer, "GIF", save_all=True, append_images=[base.rotate(90)])
        found.append(buffer.getvalue())
    if "JPEG" in formats:
        buffer = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6
        base.save(buffer, "JPEG", exif=exif)
        found.append(buffer.getvalue())
    return found
