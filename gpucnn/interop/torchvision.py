"""Convert torchvision's AlexNet to gpucnn's alexnet_torchvision and back, bit for bit.

torchvision stores filters as (OC, C, KH, KW) and flattens images channel by channel.  gpucnn stores
(OC, KH, KW, C) and flattens pixel by pixel.  So conversion permutes the axes of the filters and the
columns of the first linear layer.
"""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn import models
from gpucnn.checkpoint import read_checkpoint, save
from gpucnn.data import Normalize
from gpucnn.errors import ArgumentError, CheckpointError, MissingExtra
from gpucnn.files import refuse_same_file, write_whole
from gpucnn.interop.pth import read_state
from gpucnn.tensor_file import arrange, check_regular, open_tensors, pieces_of_file

State = dict[str, np.ndarray[Any, np.dtype[np.float32]]]

# {torchvision's name of a layer: (ours, the shape of its weight in torchvision)}; None: any size
_LAYERS = {
    "features.0": ("0", (64, None, 11, 11)),
    "features.3": ("3", (192, 64, 5, 5)),
    "features.6": ("6", (384, 192, 3, 3)),
    "features.8": ("8", (256, 384, 3, 3)),
    "features.10": ("10", (256, 256, 3, 3)),
    "classifier.1": ("16", (4096, 256 * 6 * 6)),
    "classifier.4": ("19", (4096, 4096)),
    "classifier.6": ("21", (None, 4096)),
}
_FIRST_LINEAR = "classifier.1"

# The normalisation that torchvision's weights were trained with: ImageNet's mean and deviation
IMAGENET = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def check_torchvision(state: Mapping[str, Any]) -> None:
    """Raise CheckpointError, listing up to 12 differences, unless it is the state of that AlexNet.

    Only the shape of each value is read.
    """
    problems = [f"unexpected: {name}" for name in state if name.rpartition(".")[0] not in _LAYERS]
    for theirs, (_, shape) in _LAYERS.items():
        for part, expected in (("weight", shape), ("bias", shape[:1])):
            name = f"{theirs}.{part}"
            if name not in state:
                problems.append(f"missing: {name}")
                continue
            found = tuple(state[name].shape)
            if len(found) != len(expected) or any(
                want not in (None, got) for want, got in zip(expected, found, strict=True)
            ):
                sizes = " x ".join("any" if size is None else str(size) for size in expected)
                problems.append(f"{name}: expected {sizes}, got {' x '.join(map(str, found))}")
    if (
        not problems
        and state["classifier.6.weight"].shape[0] != state["classifier.6.bias"].shape[0]
    ):
        problems.append("classifier.6: weight and bias differ in the number of classes")
    if problems:
        raise CheckpointError(
            "not a state dict of torchvision's AlexNet\n  " + "\n  ".join(problems[:12])
        )


def from_torchvision(state: Mapping[str, Any]) -> State:
    """The state dict of alexnet_torchvision, from torchvision's with arrays as values.

    Raises CheckpointError as check_torchvision does.
    """
    check_torchvision(state)
    return {
        f"{ours}.{part}": _permuted(state[name], name, (256, 6, 6), (0, 2, 3, 1))
        for theirs, (ours, _) in _LAYERS.items()
        for part in ("weight", "bias")
        for name in [f"{theirs}.{part}"]
    }


def to_torchvision(state: Mapping[str, Any]) -> State:
    """torchvision's state dict, with arrays as values, from that of alexnet_torchvision."""
    converted: State = {}
    for theirs, (ours, _) in _LAYERS.items():
        for part in ("weight", "bias"):
            array, name = state[f"{ours}.{part}"], f"{theirs}.{part}"
            converted[name] = _permuted(array, name, (6, 6, 256), (0, 3, 1, 2))
    return converted


def _permuted(
    array: Any, name: str, image: tuple[int, int, int], axes: tuple[int, int, int, int]
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """`array`, called `name` in torchvision, with the axes of its images in another order.

    image is the shape of what the first linear layer sees flattened, before the permutation.
    """
    array = np.asarray(array, dtype=np.float32)
    if name == f"{_FIRST_LINEAR}.weight":
        array = array.reshape(-1, *image).transpose(axes).reshape(array.shape)
    elif array.ndim == 4:
        array = array.transpose(axes)
    return np.ascontiguousarray(array)


def convert_file(source: str | Path, target: str | Path) -> str:
    """Convert a gpucnn checkpoint to a torchvision state dict, or the reverse; report the result.

    A source in gpucnn's format becomes a state dict, any other a gpucnn checkpoint.  State dicts
    are .safetensors, .pth or .pt files.  Reading executes no pickled code, and reads no array of a
    state dict that does not fit.  Writing .pth or .pt files needs PyTorch.

    Raises ArgumentError for another file extension, or a target that is the source; CheckpointError
    for a file that is missing, damaged or of another model; OutputError if the target cannot be
    written; MissingExtra without PyTorch.
    """
    source, target = Path(source), Path(target)
    refuse_same_file("convert", source, target)
    for path in (source, target):
        if path.suffix not in (".safetensors", ".pth", ".pt"):
            raise ArgumentError(f"convert: {path}: expected a .safetensors, .pth or .pt file")
    with _named(source):
        check_regular(source)
    if _is_checkpoint(source):
        return _export(source, target)
    if target.suffix != ".safetensors":
        raise ArgumentError(f"convert: {target}: a gpucnn checkpoint ends in .safetensors")
    with _named(source):
        state = _read_state(source)
    config = {"classes": len(state["21.bias"]), "channels": state["0.weight"].shape[3]}
    model = models.build("alexnet_torchvision", generator=np.random.default_rng(0), **config)
    model.load_state_dict(state)
    normalize = IMAGENET if config["channels"] == 3 else None
    save(target, model, "alexnet_torchvision", config, normalize=normalize)
    return f"{target}: a gpucnn checkpoint of alexnet_torchvision"


def _export(source: Path, target: Path) -> str:
    checkpoint = read_checkpoint(source)
    name, _ = checkpoint.model_config()
    if name != "alexnet_torchvision":
        raise CheckpointError(
            f"convert: {source} holds {name}; expected alexnet_torchvision, the only model that "
            "torchvision has too"
        )
    state = to_torchvision(checkpoint.build_model().state_dict())
    if target.suffix == ".safetensors":
        write_whole(target, pieces_of_file(arrange(state)[0], {}))
    else:
        torch, content = _torch(target), io.BytesIO()
        torch.save({key: torch.from_numpy(array) for key, array in state.items()}, content)
        write_whole(target, [content.getbuffer()])
    return f"{target}: a state dict for torchvision.models.alexnet"


def _is_checkpoint(path: Path) -> bool:
    if path.suffix != ".safetensors":
        return False
    with _named(path), open_tensors(path) as file:
        return "gpucnn" in file.metadata


def _read_state(path: Path) -> State:
    """The converted state dict in a file of torchvision's weights."""
    if path.suffix != ".safetensors":
        return from_torchvision(read_state(path))
    with open_tensors(path) as file:
        check_torchvision(file.entries)
        return from_torchvision({name: file.read(name)[0] for name in file.entries})


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"convert: {path}: {error}") from error
    except MemoryError as error:
        raise CheckpointError(f"convert: {path}: its arrays do not fit in memory") from error


def _torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingExtra(
            f"convert: {path.suffix} files need PyTorch: pip install torch\n"
            "  or use a .safetensors file, which does not"
        ) from error
    return torch
