"""Trained networks that come with gpucnn: one checkpoint each, small enough for the wheel.

    speedrun_cifar10    CIFAR-10: colour pictures of ten kinds of animals and vehicles
    lenet5              MNIST: handwritten digits, white on black

`models.speedrun_cifar10(weights="default")` builds one, and `gpucnn predict` uses them.  Filters
and matrices are stored as float16, all else as float32.  Each file has a card that tells how it was
trained and how good it is.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn.errors import ArgumentError, CheckpointError
from gpucnn.tensor_file import Host, TensorFile, open_tensors

__all__ = ["DEFAULT", "fingerprint", "info", "names", "path", "state_dict"]

DEFAULT = "speedrun_cifar10"  # for pictures, where no checkpoint is named
_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The models of gpucnn.models that come trained."""
    return sorted(path.stem for path in _FOLDER.glob("*.safetensors"))


def path(name: str) -> Path:
    """The checkpoint of the trained model `name`: for gpucnn.load, or to read with safetensors.

    Raises ArgumentError for a model that does not come trained.
    """
    if name not in names():
        raise ArgumentError(f"{name!r:.99} does not come trained; expected {' or '.join(names())}")
    return _FOLDER / f"{name}.safetensors"


def info(name: str) -> dict[str, Any]:
    """What the file of the trained model `name` says about it.

    "classes" are the names of its outputs and "normalize" the arguments of data.Normalize for its
    images; "settings" and "history" are those of its training.  "card" has the texts "data",
    "recipe" and "command"; the "seed"; "accuracy", a share of the test images from 0 to 1, and
    "accuracy with six views" for the speedrun's; and "sha256", the fingerprint of the arrays.

    Raises ArgumentError for a model that does not come trained, CheckpointError for a damaged file.
    """
    with _opened(name) as file:
        found: dict[str, Any] = json.loads(file.metadata["gpucnn"])
    return found


def state_dict(name: str) -> dict[str, Host]:
    """The arrays of the trained model `name`, for load_state_dict.

    Raises ArgumentError for a model that does not come trained, CheckpointError for a damaged file.
    """
    with _opened(name) as file:
        arrays = {entry.removeprefix("model."): file.read(entry)[0] for entry in file.entries}
        if fingerprint(arrays) != json.loads(file.metadata["gpucnn"])["card"]["sha256"]:
            raise CheckpointError("the fingerprint of its arrays does not match")
    return arrays


def fingerprint(arrays: Mapping[str, Host]) -> str:
    """The SHA-256 of the arrays' names and little-endian bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


@contextmanager
def _opened(name: str) -> Iterator[TensorFile]:
    """The open file of the trained model `name`; an error says how to get a good one."""
    file = path(name)
    try:
        with open_tensors(file) as tensors:
            yield tensors
    except CheckpointError as error:
        raise CheckpointError(
            f"{file}: {error}\n  install gpucnn again: pip install --force-reinstall gpucnn"
        ) from error
