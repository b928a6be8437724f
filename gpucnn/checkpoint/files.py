"""Checkpoint files: arrays and JSON data in a safetensors file, with checksums.

Arrays are named model.<parameter or buffer> and optimizer.<state>.  The metadata of the header are
three texts:

    gpucnn                JSON: the format number, the model's name and configuration, and whatever
                          the writer adds
    gpucnn_info_crc32     the CRC-32 of that text
    gpucnn_tensors_crc32  JSON: that of each array, its name, dtype and shape included

CRC-32 finds every error of up to 32 adjacent bits, and all but one in four billion others.  It
finds damage, not forgery: anyone can compute it.  It is about three times as fast as SHA-256.
"""

import json
import reprlib
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn import models, schema
from gpucnn.checkpoint.info import Info, checked_info
from gpucnn.device import Array, Device, to_host
from gpucnn.errors import ArgumentError, CheckpointError, DtypeError
from gpucnn.files import write_whole
from gpucnn.models.registry import BY_NAME, outline
from gpucnn.nn import Dropout, Module
from gpucnn.tensor_file import (
    Host,
    Refused,
    TensorFile,
    arrange,
    check_regular,
    open_tensors,
    pieces_of_file,
)

FORMAT = 3  # raise it when a name or the meaning of an entry changes
_INFO, _INFO_CRC, _TENSORS_CRC = "gpucnn", "gpucnn_info_crc32", "gpucnn_tensors_crc32"
_CHECKSUMS = schema.record({}, others=schema.integer(0, 2**32 - 1))
_DAMAGED = "  use another checkpoint of the run, such as best.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file in memory."""

    path: Path  # of the file, for errors
    tensors: dict[str, Host]
    info: dict[str, Any]  # the JSON of the header

    def part(self, prefix: str) -> dict[str, Host]:
        """The tensors under `prefix`, with it removed: load_state_dict accepts part("model")."""
        return _part(self.tensors, prefix)

    def model_config(self) -> tuple[str, dict[str, Any]]:
        """The model's name and configuration, for models.build.

        Raises CheckpointError if the file does not name its model.
        """
        entry = self.info.get("model", {})
        if "class" in entry:
            raise CheckpointError(
                f"checkpoint {self.path}: holds the weights of a model of your own, "
                f"{entry['class']:.99}, but not how to build it\n"
                f"  load them into one: gpucnn.load({str(self.path)!r}, model)"
            )
        if not entry:
            raise CheckpointError(
                f"checkpoint {self.path}: does not say which model it holds\n"
                "  load it into one: gpucnn.load(path, model); or write it with a name: "
                'gpucnn.save, or a Trainer whose info has "model": {"name": ..., "config": {...}}'
            )
        return entry["name"], entry.get("config", {})

    def build_model(self, device: str | Device | None = None) -> Module:
        """Build the named model on `device`, load its weights, and set evaluation mode.

        Raises CheckpointError if the file does not name a model of gpucnn.models.
        """
        name, config = self.model_config()
        try:
            # A separate generator: the weights that it draws are overwritten, and the default
            # generator must not advance.
            model = models.build(name, generator=np.random.default_rng(0), **config)
            for module in model.modules():
                if isinstance(module, Dropout):
                    module.generator = None  # dropout draws from the default generator
            model.load_state_dict(self.part("model"))
        except (ArgumentError, CheckpointError, TypeError) as error:
            raise CheckpointError(
                f"checkpoint {self.path}: {_cannot_rebuild(name, config, error)}"
            ) from error
        return model.eval().to(Device.parse(device))


def _cannot_rebuild(name: str, config: dict[str, Any], error: Exception) -> str:
    return f"its model {name:.99} {reprlib.repr(config)} cannot be rebuilt\n  {str(error)[:2000]}"


def write_checkpoint(path: str | Path, tensors: dict[str, Array], info: dict[str, Any]) -> None:
    """Write `tensors`, from any device, and `info`, plain JSON data, to `path` atomically.

    Contiguous arrays on the CPU are not copied.  Raises OutputError on failure, and leaves an
    existing file of that name untouched; ArgumentError for an `info` that read_checkpoint would
    refuse, and DtypeError for an array that is not of real numbers.
    """
    try:
        text = json.dumps({**info, "format": FORMAT}, allow_nan=False)
        checked_info(schema.parse(text, "info"))
    except (TypeError, ValueError, RecursionError) as error:  # a CheckpointError is a ValueError
        raise ArgumentError(f"checkpoint {path}: info is not as expected: {error}") from error
    try:
        pieces, checksums = arrange({name: to_host(x) for name, x in tensors.items()})
    except DtypeError as error:
        raise DtypeError(f"checkpoint {path}: {error}") from None
    metadata = {
        _INFO: text,
        _INFO_CRC: f"{zlib.crc32(text.encode()):08x}",
        _TENSORS_CRC: json.dumps(checksums),
    }
    write_whole(path, pieces_of_file(pieces, metadata))


def read_checkpoint(path: str | Path, model: Module | None = None) -> Checkpoint:
    """Read a file that write_checkpoint wrote, and verify its checksums.

    The arrays under "model" are compared with those of `model`, or else of the model of
    gpucnn.models that the file names, before any array is read.

    Raises CheckpointError, naming the file, if it is missing, damaged, in another format, or not
    written by gpucnn; if an entry of its JSON is not as expected; or if its arrays do not fit the
    model.
    """
    path = Path(path)
    with _named(path):
        check_regular(path)
        with ExitStack() as stack:
            with _damage():
                file = stack.enter_context(open_tensors(path))
                content, checksums = _verified(file)
            info = checked_info(content)
            _check_model(file, info, model)
            with _damage():
                tensors = {name: _read(file, name, checksums[name]) for name in file.entries}
    return Checkpoint(path, tensors, info)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {path}: {error}") from error


@contextmanager
def _damage() -> Iterator[None]:
    try:
        yield
    except Refused:
        raise
    except CheckpointError as error:
        raise CheckpointError(f"damaged or not a checkpoint ({error})\n{_DAMAGED}") from error


def _verified(file: TensorFile) -> tuple[Any, dict[str, int]]:
    """The JSON of the info, whose checksum is right, and the checksums of the arrays."""
    if _INFO not in file.metadata:
        raise Refused("a safetensors file, but not written by gpucnn")
    text = file.metadata[_INFO]
    intact = file.metadata.get(_INFO_CRC) == f"{zlib.crc32(text.encode()):08x}"
    info = schema.parse(text, "info")
    version = info.get("format") if isinstance(info, dict) else None
    if version != FORMAT and (intact or _INFO_CRC not in file.metadata):
        raise Refused(
            f"format {schema.shown(version)}; this version of gpucnn reads format {FORMAT}\n"
            "  use the version of gpucnn that wrote it, or train again"
        )
    if not intact:
        raise CheckpointError("the checksum of its info does not match")
    checksums = schema.parse(file.metadata.get(_TENSORS_CRC, ""), _TENSORS_CRC)
    _CHECKSUMS(checksums, _TENSORS_CRC)
    for name in file.entries.keys() ^ checksums.keys():
        raise CheckpointError(f"the tensors and their checksums differ in {name}")
    return info, checksums


def _read(file: TensorFile, name: str, expected: int) -> Host:
    array, checksum = file.read(name)
    if checksum != expected:
        raise CheckpointError(f"the checksum of the tensor {name} does not match")
    return array


def _check_model(file: TensorFile, info: Info, model: Module | None) -> None:
    """Raise CheckpointError, and allocate nothing, unless the arrays fit the model.

    That bounds the memory of reading too: a run holds a few arrays of the model's size.
    """
    state = _part(file.entries, "model")
    entry = info.get("model", {})
    if model is not None:
        if not state:
            raise CheckpointError("holds no model")
        model.check_state_dict(state)
    elif entry.get("name") in BY_NAME:
        name, config = entry["name"], entry.get("config", {})
        try:
            outline(name, config, [x.size for x in state.values()]).check_state_dict(state)
        except (TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(_cannot_rebuild(name, config, error)) from error
    else:
        return
    ours = sum(x.nbytes for x in state.values())
    others = sum(x.nbytes for x in file.entries.values()) - ours
    if others > 8 * ours + len(file.entries) * 4096 + 2**20:
        raise CheckpointError(
            f"{others:,} bytes beside the {ours:,} bytes of its model; expected at most 8 times "
            "as many"
        )


def _part(named: dict[str, Any], prefix: str) -> dict[str, Any]:
    start = prefix + "."
    return {k.removeprefix(start): v for k, v in named.items() if k.startswith(start)}
