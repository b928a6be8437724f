"""Checkpoints: models, and runs of training, in safetensors files.

Arrays are named model.<parameter or buffer> and optimizer.<state>; the header's "gpucnn" entry is
JSON that says what they belong to.  A file appears under its name only when it is complete.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from gpucnn import models
from gpucnn.data import Normalize
from gpucnn.device import Array, Device, to_host
from gpucnn.errors import ArgumentError, CheckpointError, kind
from gpucnn.files import write_whole
from gpucnn.models.registry import outline
from gpucnn.nn import Module

_Own = TypeVar("_Own", bound=Module)

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds: arrays by name, and everything else as plain data."""

    tensors: dict[str, np.ndarray[Any, Any]]
    info: dict[str, Any]

    def part(self, prefix: str) -> dict[str, np.ndarray[Any, Any]]:
        """The tensors under `prefix`, without it: part("model") is a state for load_state_dict."""
        start = prefix + "."
        return {k.removeprefix(start): v for k, v in self.tensors.items() if k.startswith(start)}


def write_checkpoint(path: str | Path, tensors: dict[str, Array], info: dict[str, Any]) -> None:
    """Write `tensors` and `info` (plain JSON data) to `path`, all or nothing.

    Raises OutputError if it cannot be written; an earlier file of that name is whole then.
    """
    host = {name: np.asarray(to_host(x), order="C") for name, x in tensors.items()}
    write_whole(
        path, safetensors.numpy.save(host, {"gpucnn": json.dumps({"format": FORMAT, **info})})
    )


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read what write_checkpoint wrote.

    Raises CheckpointError, naming the file, if it is missing, damaged, or not gpucnn's.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path}: there is no such file")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {path}: damaged or not a safetensors file ({error})\n"
            "  use another checkpoint of the run, such as best.safetensors"
        ) from error
    try:
        info = json.loads(metadata["gpucnn"])
        version = info["format"]
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(
            f"checkpoint {path}: a safetensors file, but not written by gpucnn"
        ) from None
    if version != FORMAT:
        raise CheckpointError(
            f"checkpoint {path}: format {version}, and this gpucnn reads {FORMAT}; "
            "use the gpucnn that wrote it"
        )
    return Checkpoint(tensors, info)


# --- models ---


def save(
    path: str | Path,
    model: Module,
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    normalize: Normalize | None = None,
) -> None:
    """Write the weights of `model` to `path`: a checkpoint without the training.

        gpucnn.save(path, model, "lenet5", {"classes": 3})  # built by models.build(name, **config)
        gpucnn.save(path, model)                            # a model of your own

    With name and config the file suffices: `load(path)` and `gpucnn predict` rebuild the model.
    Without them it holds the state alone, for `load(path, model)`.  classes are the names of the
    outputs, normalize is what images went through before the model saw them.

    Raises ArgumentError if name is not in models.BY_NAME, or models.build(name, **config) gives
    other layers than the model's, or tensors of other names, shapes or dtypes; or if config or
    classes are not plain JSON data.  Raises OutputError if the file cannot be written.
    """
    if not isinstance(model, Module):
        raise ArgumentError(f"save: expected a Module to save, got {kind(model)}")
    if name is None and config is not None:
        raise ArgumentError("save: a config goes with the name of a model in gpucnn.models")
    try:
        info: dict[str, Any] = {"model": {"class": type(model).__name__}}
        if name is not None:
            info["model"] = {"name": name, "config": dict(config or {})}
        if classes is not None:
            info["classes"] = list(classes)
        if normalize is not None:
            info["normalize"] = {"mean": list(normalize.mean), "std": list(normalize.std)}
        info = json.loads(json.dumps(info))  # as `load` will see it
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"save: config and classes must be plain data ({error})") from error
    if name is not None:
        _check_rebuilds(model, name, info["model"]["config"])
    write_checkpoint(
        path, {f"model.{key}": array for key, array in model.state_dict().items()}, info
    )


def _check_rebuilds(model: Module, name: str, config: dict[str, Any]) -> None:
    """ArgumentError unless models.build(name, **config) gives a model like `model`."""
    if name not in models.BY_NAME:
        raise ArgumentError(
            f"save: model {name!r} is unknown; expected one of {', '.join(models.BY_NAME)}\n"
            "  a model of your own is saved without a name: save(path, model), load(path, model)"
        )
    try:
        built = outline(name, **config)
    except (ArgumentError, TypeError, ValueError, OverflowError) as error:
        raise ArgumentError(f"save: model {name} cannot be built from {config}: {error}") from error
    ours, theirs = _structure(model), _structure(built)
    differences = [
        f"{key or 'the model'}: {theirs.get(key, 'nothing')} built, {ours.get(key, 'nothing')} here"
        for key in {**theirs, **ours}
        if ours.get(key) != theirs.get(key)
    ]
    if differences:
        raise ArgumentError(
            f"save: {name} built with {config} is not the model to be saved\n  "
            + "\n  ".join(differences[:8])
            + "\n  pass the name and config that built it, or neither: save(path, model), "
            "load(path, model)"
        )


def _structure(model: Module) -> dict[str, str]:
    """Each module's class, and each tensor's shape and dtype, by dotted name."""
    found = {name: type(module).__name__ for name, module in model.named_modules()}
    state = model.state_dict().items()
    return found | {name: f"{tuple(x.shape)} {x.dtype}" for name, x in state}


@overload
def load(
    path: str | Path, model: str | Device | None = None, device: str | Device | None = None
) -> Module: ...


@overload
def load(path: str | Path, model: _Own, device: str | Device | None = None) -> _Own: ...


def load(path: str | Path, model: Any = None, device: str | Device | None = None) -> Any:
    """The model in a checkpoint of a training run or of `save`, in evaluation mode.

        model = gpucnn.load("best.safetensors", device="cuda")
        mine = gpucnn.load("mine.safetensors", MyNetwork())

    Without `model` the network is built anew, by the name and configuration in the file, on
    `device`; None means that of the `with gpucnn.device(...)` around the call, or else the CPU.
    With `model`, of the structure that was saved, the weights are copied into it: it is returned,
    moved to `device` unless that is None.  load(path, "cuda") names a device too.  Nothing in the
    file is executed.

    Raises CheckpointError if the file is missing, damaged, without a model, or does not fit it; an
    own model is unchanged then, and the error lists missing and unexpected names, and shapes.
    """
    if isinstance(model, str | Device):  # load(path, device)
        model, device = None, model
    checkpoint = read_checkpoint(path)
    if model is None:
        return rebuild(checkpoint, path, device)
    if not isinstance(model, Module):
        raise ArgumentError(f"load: expected a Module to load into, got {kind(model)}")
    state = checkpoint.part("model")
    if not state:
        raise CheckpointError(f"checkpoint {path}: holds no model")
    try:
        model.load_state_dict(state)
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {path}: {error}") from error
    model.eval()
    return model if device is None else model.to(device)


def rebuild(checkpoint: Checkpoint, path: str | Path, device: str | Device | None = None) -> Module:
    """The model of `checkpoint`, which was read from `path`, as `load` gives it."""
    name, config = described(checkpoint, path)
    try:
        # A generator of its own, since the weights that it draws are replaced at once
        model = models.build(name, generator=np.random.default_rng(0), **config)
        model.load_state_dict(checkpoint.part("model"))
    except (ArgumentError, CheckpointError, TypeError) as error:
        raise CheckpointError(
            f"checkpoint {path}: its model {name} {config} cannot be rebuilt\n  {error}"
        ) from error
    return model.eval().to(Device.parse(device))


def described(checkpoint: Checkpoint, path: str | Path) -> tuple[str, dict[str, Any]]:
    """Name and configuration of the checkpoint's model, for models.build."""
    entry = checkpoint.info.get("model")
    if isinstance(entry, dict) and isinstance(entry.get("class"), str):
        raise CheckpointError(
            f"checkpoint {path}: holds the weights of a model of your own, {entry['class']}, and "
            f"not how to build it\n  load them into one: gpucnn.load({str(path)!r}, model)"
        )
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise CheckpointError(
            f"checkpoint {path}: does not say which model it holds\n"
            "  load it into one: gpucnn.load(path, model); or write it with a name: gpucnn.save, "
            'or a Trainer whose info has "model": {"name": ..., "config": {...}}'
        )
    config = entry.get("config", {})
    if not isinstance(config, dict):
        raise CheckpointError(
            f"checkpoint {path}: the model's configuration is {config!r}, not names and values"
        )
    return entry["name"], config
