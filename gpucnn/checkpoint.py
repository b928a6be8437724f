"""The checkpoint file format: models and training runs in safetensors files.

Arrays are named model.<parameter or buffer> and optimizer.<state>.  The header entry "gpucnn" is
JSON: the format number, the model's name and configuration, and whatever the writer adds.  Files
are written atomically.
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

FORMAT = 2  # raise it when a name or the meaning of an entry changes


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file in memory."""

    path: Path  # of the file, for errors
    tensors: dict[str, np.ndarray[Any, Any]]
    info: dict[str, Any]  # the JSON of the header

    def part(self, prefix: str) -> dict[str, np.ndarray[Any, Any]]:
        """The tensors under `prefix`, with it removed: load_state_dict accepts part("model")."""
        start = prefix + "."
        return {k.removeprefix(start): v for k, v in self.tensors.items() if k.startswith(start)}

    def model_config(self) -> tuple[str, dict[str, Any]]:
        """The model's name and configuration, for models.build.

        Raises CheckpointError if the file does not name its model.
        """
        entry = self.info.get("model")
        if isinstance(entry, dict) and isinstance(entry.get("class"), str):
            raise CheckpointError(
                f"checkpoint {self.path}: holds the weights of a model of your own, "
                f"{entry['class']}, but not how to build it\n"
                f"  load them into one: gpucnn.load({str(self.path)!r}, model)"
            )
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise CheckpointError(
                f"checkpoint {self.path}: does not say which model it holds\n"
                "  load it into one: gpucnn.load(path, model); or write it with a name: "
                'gpucnn.save, or a Trainer whose info has "model": {"name": ..., "config": {...}}'
            )
        config = entry.get("config", {})
        if not isinstance(config, dict):
            raise CheckpointError(
                f"checkpoint {self.path}: the model's configuration is {config!r}; "
                "expected a dict of arguments"
            )
        return entry["name"], config

    def build_model(self, device: str | Device | None = None) -> Module:
        """Build the named model on `device`, load its weights, and set evaluation mode.

        Raises CheckpointError if the file does not name a model of gpucnn.models, or its arrays do
        not fit that model.
        """
        name, config = self.model_config()
        try:
            # A separate generator: the weights that it draws are overwritten, and the default
            # generator must not advance.
            model = models.build(name, generator=np.random.default_rng(0), **config)
            model.load_state_dict(self.part("model"))
        except (ArgumentError, CheckpointError, TypeError) as error:
            raise CheckpointError(
                f"checkpoint {self.path}: its model {name} {config} cannot be rebuilt\n  {error}"
            ) from error
        return model.eval().to(Device.parse(device))


def write_checkpoint(path: str | Path, tensors: dict[str, Array], info: dict[str, Any]) -> None:
    """Write `tensors`, from any device, and `info`, plain JSON data, to `path` atomically.

    Raises OutputError on failure, and leaves an existing file of that name untouched.
    """
    host = {name: np.asarray(to_host(x), order="C") for name, x in tensors.items()}
    write_whole(
        path, safetensors.numpy.save(host, {"gpucnn": json.dumps({"format": FORMAT, **info})})
    )


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a file that write_checkpoint wrote.

    Raises CheckpointError, naming the file, if it is missing, damaged, in another format, or not
    written by gpucnn.
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
            f"checkpoint {path}: format {version}; this version of gpucnn reads format {FORMAT}\n"
            "  use the version of gpucnn that wrote it, or train again"
        )
    return Checkpoint(path, tensors, info)


# --- models ---


def save(
    path: str | Path,
    model: Module,
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    normalize: Normalize | None = None,
) -> None:
    """Write the parameters and buffers of `model` to a checkpoint file.

        gpucnn.save(path, model, "lenet5", {"classes": 3})  # built by models.build(name, **config)
        gpucnn.save(path, model)                            # a model of your own

    With name and config, `load(path)` and `gpucnn predict` rebuild the model from the file alone.
    Without them the file holds the state only, for `load(path, model)`.  classes are the names of
    the outputs, and normalize is the normalisation of the training images; predict uses both.

    Raises ArgumentError if name is not in models.BY_NAME; if the layers of models.build(name,
    **config), or the names, shapes or dtypes of its tensors, differ from those of `model`; and if
    config or classes are not plain JSON data.  Raises OutputError if the file cannot be written.
    """
    if not isinstance(model, Module):
        raise ArgumentError(f"save: expected a Module to save, got {kind(model)}")
    if name is None and config is not None:
        raise ArgumentError("save: config needs the name of a model; pass both or neither")
    try:
        info: dict[str, Any] = {"model": {"class": type(model).__name__}}
        if name is not None:
            info["model"] = {"name": name, "config": dict(config or {})}
        if classes is not None:
            info["classes"] = list(classes)
        if normalize is not None:
            info["normalize"] = {"mean": list(normalize.mean), "std": list(normalize.std)}
        info = json.loads(json.dumps(info))  # as `load` will read it
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"save: config and classes must be plain data ({error})") from error
    if name is not None:
        _check_rebuilds(model, name, info["model"]["config"])
    write_checkpoint(
        path, {f"model.{key}": array for key, array in model.state_dict().items()}, info
    )


def _check_rebuilds(model: Module, name: str, config: dict[str, Any]) -> None:
    """Raise ArgumentError unless models.build(name, **config) has the structure of `model`."""
    if name not in models.BY_NAME:
        raise ArgumentError(
            f"save: model {name!r} is unknown; expected one of {', '.join(models.BY_NAME)}\n"
            "  for a model of your own leave out the name: save(path, model), load(path, model)"
        )
    try:
        built = outline(name, **config)
    except (ArgumentError, TypeError, ValueError, OverflowError) as error:
        raise ArgumentError(f"save: model {name} cannot be built from {config}: {error}") from error
    ours, theirs = _structure(model), _structure(built)
    differences = [
        f"{key or 'the model'}: {theirs.get(key, 'none')} built, {ours.get(key, 'none')} given"
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
    """Load a model, in evaluation mode, from a file written by `save` or by a training run.

        model = gpucnn.load("best.safetensors", device="cuda")
        mine = gpucnn.load("mine.safetensors", MyNetwork())

    Without `model`, build the network that the file names, on `device`; None means the device of an
    enclosing `with gpucnn.device(...)`, or the CPU.  With `model`, copy the weights into it, move
    it to `device` unless that is None, and return it.  load(path, "cuda") names a device too.
    Loading never executes code from the file.

    Raises CheckpointError if the file is missing, damaged or without a model, or if its arrays do
    not fit the model.  The error then lists missing and unexpected names and different shapes, and
    the given model is unchanged.
    """
    if isinstance(model, str | Device):  # load(path, device)
        model, device = None, model
    checkpoint = read_checkpoint(path)
    if model is None:
        return checkpoint.build_model(device)
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
