"""What a Trainer prints by default."""

import sys
from collections.abc import Sequence
from typing import Any

from gpucnn.device import Device
from gpucnn.train.callbacks import EpochLine
from gpucnn.train.progress import ProgressBar
from gpucnn.train.trainer import Callback

STEPS = 20  # between updates of the bar's metrics on a GPU: reading them makes the host wait


def reporters(callbacks: Sequence[Callback], loader: Any, device: Device) -> list[Callback]:
    """An EpochLine and, if standard error is a terminal, a ProgressBar.

    Each is left out if `callbacks` has one, and the bar too if the loader does not say its length.
    """
    added: list[Callback] = []
    counted = all(hasattr(loader, name) for name in ("__len__", "batch_size", "dataset"))
    stream = sys.stderr
    if counted and stream is not None and not stream.closed and stream.isatty():
        added.append(ProgressBar(refresh=1 if device.kind == "cpu" else STEPS))
    added.append(EpochLine())
    return [one for one in added if not any(isinstance(own, type(one)) for own in callbacks)]
