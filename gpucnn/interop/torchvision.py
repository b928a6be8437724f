"""torchvision's AlexNet to gpucnn's alexnet_torchvision and back, number for number.

torchvision keeps filters as (OC, C, KH, KW) and flattens images in the order channel, row, column;
gpucnn keeps (OC, KH, KW, C) and flattens row, column, channel.  So filters have their axes moved,
and so do the columns of the first dense layer.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from gpucnn import models
from gpucnn.checkpoint import described, read_checkpoint, rebuild, save
from gpucnn.data import Normalize
from gpucnn.errors import ArgumentError, CheckpointError, MissingExtra

State = dict[str, np.ndarray[Any, np.dtype[np.float32]]]

# Layers in torchvision's names and in ours, and the shapes of their weights over there
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
_FIRST_DENSE = "classifier.1"

# What torchvision's weights saw of an image: mean and deviation of ImageNet's channels
IMAGENET = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def from_torchvision(state: Mapping[str, Any]) -> State:
    """A state for alexnet_torchvision from torchvision's state dict of arrays.

    Raises CheckpointError, listing what is wrong, if it is not a state dict of that AlexNet.
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
            array = np.asarray(state[name], dtype=np.float32)
            if theirs == _FIRST_DENSE and part == "weight":
                array = array.reshape(-1, 256, 6, 6).transpose(0, 2, 3, 1).reshape(array.shape)
            elif array.ndim == 4:
                array = array.transpose(0, 2, 3, 1)
            converted[f"{ours}.{part}"] = np.ascontiguousarray(array)
    if problems:
        raise CheckpointError(
            "convert: not a state dict of torchvision's AlexNet\n  " + "\n  ".join(problems[:12])
        )
    return converted


def to_torchvision(state: Mapping[str, Any]) -> State:
    """torchvision's state dict, as arrays, from the state of an alexnet_torchvision."""
    converted: State = {}
    for theirs, (ours, _) in _LAYERS.items():
        w = np.asarray(state[f"{ours}.weight"], dtype=np.float32)
        if theirs == _FIRST_DENSE:
            w = w.reshape(-1, 6, 6, 256).transpose(0, 3, 1, 2).reshape(w.shape)
        elif w.ndim == 4:
            w = w.transpose(0, 3, 1, 2)
        converted[f"{theirs}.weight"] = np.ascontiguousarray(w)
        converted[f"{theirs}.bias"] = np.asarray(state[f"{ours}.bias"], dtype=np.float32)
    return converted


def convert_file(source: str | Path, target: str | Path) -> str:
    """Convert between a gpucnn checkpoint and a torchvision state dict; says what was written.

    A source in gpucnn's format becomes a state dict, any other a gpucnn checkpoint.  State dicts
    are .safetensors, or .pth and .pt: those need PyTorch, and are read without executing what a
    pickle may hold.  Raises CheckpointError, ArgumentError or MissingExtra.
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
    name, _ = described(checkpoint, source)
    if name != "alexnet_torchvision":
        raise CheckpointError(
            f"convert: {source} holds {name}; of gpucnn's models torchvision has "
            "alexnet_torchvision alone"
        )
    state = to_torchvision(rebuild(checkpoint, source).state_dict())
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
            "  where it comes from, save it anew: torch.save(model.state_dict(), path)"
        ) from error


def _torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingExtra(
            f"convert: {path.suffix} files need PyTorch: pip install torch\n"
            "  or use .safetensors, which does not"
        ) from error
    return torch
