"""Checkpoints: one safetensors file with the arrays, and JSON in its header for the rest.

Tensors are named model.<parameter or buffer> and optimizer.<state>; the header's "gpucnn" entry
says what they belong to.  A file appears under its name only when it is complete.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from gpucnn.device import Array
from gpucnn.errors import CheckpointError
from gpucnn.files import write_whole

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
    host = {
        name: np.asarray(x if isinstance(x, np.ndarray) else x.get(), order="C")
        for name, x in tensors.items()
    }
    write_whole(path, save(host, {"gpucnn": json.dumps({"format": FORMAT, **info})}))


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
