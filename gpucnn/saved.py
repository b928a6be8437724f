"""Models in files: weights, and the name and configuration that rebuild the network around them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn import models
from gpucnn.data import Normalize
from gpucnn.device import Device
from gpucnn.errors import ArgumentError, CheckpointError
from gpucnn.nn import Module
from gpucnn.train.checkpoint import Checkpoint, read_checkpoint, write_checkpoint


def save(
    path: str | Path,
    model: Module,
    name: str,
    config: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    normalize: Normalize | None = None,
) -> None:
    """Write the weights of `model`, which models.build(name, **config) built, to `path`.

    The file is a checkpoint without the training: `load` and `gpucnn predict` take it.  classes are
    the names of the outputs, normalize is what images went through before the model saw them.

    Raises ArgumentError if name is not in models.BY_NAME or config is not plain JSON data,
    CheckpointError if the file cannot be written.
    """
    if name not in models.BY_NAME:
        raise ArgumentError(
            f"save: model {name!r} is unknown; expected one of {', '.join(models.BY_NAME)}"
        )
    info: dict[str, Any] = {"model": {"name": name, "config": dict(config or {})}}
    if classes is not None:
        info["classes"] = list(classes)
    if normalize is not None:
        info["normalize"] = {"mean": list(normalize.mean), "std": list(normalize.std)}
    try:
        json.dumps(info)
    except TypeError as error:
        raise ArgumentError(f"save: config and classes must be plain data ({error})") from error
    tensors = {f"model.{key}": array for key, array in model.state_dict().items()}
    try:
        write_checkpoint(path, tensors, info)
    except OSError as error:
        raise CheckpointError(f"save: {path} cannot be written ({error.strerror})") from error


def load(path: str | Path, device: str | Device | None = None) -> Module:
    """The model in a checkpoint of a training run or of `save`, in evaluation mode on `device`.

    device None means that of the `with gpucnn.device(...)` around the call, or else the CPU.

    The network is built anew by its name and configuration: nothing in the file is executed.
    Raises CheckpointError if the file is missing, damaged, without a model, or does not fit it.
    """
    return rebuild(read_checkpoint(path), path, device)


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
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise CheckpointError(
            f"checkpoint {path}: does not say which model it holds\n"
            '  write it with gpucnn.save, or with a Trainer whose info has "model": '
            '{"name": ..., "config": {...}}'
        )
    config = entry.get("config", {})
    if not isinstance(config, dict):
        raise CheckpointError(
            f"checkpoint {path}: the model's configuration is {config!r}, not names and values"
        )
    return entry["name"], config
