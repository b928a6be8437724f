"""gpucnn.save and gpucnn.load: a model in a checkpoint file."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

from gpucnn import models
from gpucnn.checkpoint.files import read_checkpoint, write_checkpoint
from gpucnn.data import Normalize
from gpucnn.device import Device
from gpucnn.errors import ArgumentError, DivergenceError, kind
from gpucnn.models.registry import outline
from gpucnn.nn import Module
from gpucnn.nn.finite import damaged

_Own = TypeVar("_Own", bound=Module)


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
    config is not plain JSON data or classes are not text.  Raises DivergenceError if a parameter
    or running statistic is NaN or infinite, so that no good file is overwritten.  Raises
    OutputError if the file cannot be written.
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
    if where := damaged(model):
        raise DivergenceError(
            f"save: {where}; {path} not written\n"
            "  to study the model as it is: numpy.savez(path, **model.state_dict())"
        )
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
        built = outline(name, config)
    except (TypeError, ValueError, OverflowError) as error:
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
    Loading never executes code from the file.  Values keep their bits: NaN and infinity are loaded
    as they are.  Floating-point arrays of another dtype are converted to the model's.

    Raises CheckpointError if the file is missing, damaged or without a model, or if its arrays do
    not fit the model.  The error then lists missing and unexpected names and different shapes and
    dtypes, and the given model is unchanged.  No array of a file that does not fit is read.
    """
    if isinstance(model, str | Device):  # load(path, device)
        model, device = None, model
    if model is None:
        return read_checkpoint(path).build_model(device)
    if not isinstance(model, Module):
        raise ArgumentError(f"load: expected a Module to load into, got {kind(model)}")
    model.load_state_dict(read_checkpoint(path, model).part("model"))
    model.eval()
    return model if device is None else model.to(device)
