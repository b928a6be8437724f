"""Convert torchvision's AlexNet to gpucnn's alexnet_torchvision and back, bit for bit.

torchvision stores filters as (OC, C, KH, KW) and flattens images channel by channel.  gpucnn stores
(OC, KH, KW, C) and flattens pixel by pixel.  So conversion permutes the axes of the filters and the
columns of the first linear layer.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from gpucnn import models
from gpucnn.checkpoint import read_checkpoint, save
from gpucnn.data import Normalize
from gpucnn.errors import ArgumentError, CheckpointError, MissingExtra

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


def from_torchvision(state: Mapping[str, Any]) -> State:
    """The state dict of alexnet_torchvision, from torchvision's with arrays as values.

    Raises CheckpointError, listing up to 12 differences, unless it is that AlexNet's.
    """
    problems = [f"unexpected: {name}" for name in state if name.rpartition(".")[0] not in _LAYERS]
    converted: State = {}
    for theirs, (ours, shape) in _LAYERS.items():
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
                continue
            converted[f"{ours}.{part}"] = _permuted(state[name], name, (256, 6, 6), (0, 2, 3, 1))
    if problems:
        raise CheckpointError(
            "convert: not a state dict of torchvision's AlexNet\n  " + "\n  ".join(problems[:12])
        )
    return converted


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
    are .safetensors, .pth or .pt files.  The last two need PyTorch, which reads them without
    executing pickled code.

    Raises ArgumentError for another file extension; CheckpointError for a file that is missing,
    damaged, of another model, or cannot be written; MissingExtra without PyTorch.
    """
    source, target = Path(source), Path(target)
    for path in (source, target):
        if path.suffix not in (".safetensors", ".pth", ".pt"):
            raise ArgumentError(f"convert: {path}: expected a .safetensors, .pth or .pt file")
    if not source.is_file():
        raise CheckpointError(f"convert: {source}: there is no such file")
    if _is_checkpoint(source):
        return _export(source, target)
    if target.suffix != ".safetensors":
        raise ArgumentError(f"convert: {target}: a gpucnn checkpoint ends in .safetensors")
    state = from_torchvision(_read_state(source))
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
    try:
        if target.suffix == ".safetensors":
            save_file(state, target)
        else:
            torch = _torch(target)
            torch.save({key: torch.from_numpy(array) for key, array in state.items()}, target)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"convert: {target} cannot be written ({error})") from error
    return f"{target}: a state dict for torchvision.models.alexnet"


def _is_checkpoint(path: Path) -> bool:
    if path.suffix != ".safetensors":
        return False
    try:
        with safe_open(path, framework="numpy") as file:
            return "gpucnn" in (file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"convert: {path}: damaged or not a safetensors file ({error})"
        ) from error


def _read_state(path: Path) -> Mapping[str, Any]:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"convert: {path}: cannot be read ({error})") from error
    torch = _torch(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {key: value.float().numpy() for key, value in state.items()}
    except Exception as error:  # a damaged or hostile pickle can raise anything
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise CheckpointError(
            f"convert: {path}: not a state dict that can be read safely ({reason})\n"
            "  save it again in PyTorch: torch.save(model.state_dict(), path)"
        ) from error


def _torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingExtra(
            f"convert: {path.suffix} files need PyTorch: pip install torch\n"
            "  or use a .safetensors file, which does not"
        ) from error
    return torch
