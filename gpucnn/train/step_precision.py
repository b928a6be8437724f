"""The precision of a Trainer's steps: autocast, TF32, and the loss scale of float16."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from gpucnn.device import Array, Device
from gpucnn.optim import GradScaler, Optimizer
from gpucnn.optim.loss_scaler import LEAST
from gpucnn.precision import HALVES, autocast, autocast_of, chosen, float32_precision
from gpucnn.tensor import Tensor

_FLOAT32 = {"fp32": "highest", "tf32": "high"}  # for set_float32_precision


class StepPrecision:
    """How a Trainer computes on `device`.

    scaler   the loss scale of "fp16", else None

    Raises ArgumentError for an unknown name, DtypeError for bf16 without the package ml_dtypes.
    """

    def __init__(self, precision: str | None, device: Device) -> None:
        self.name = chosen(precision, device)
        self._float32 = _FLOAT32.get(self.name) if precision is not None else None
        self._half = HALVES.get(self.name)
        autocast_of(self.name, device)  # an error belongs here, not into the first step
        self.scaler = GradScaler(device) if self.name == "fp16" else None

    def products(self) -> AbstractContextManager[None]:
        """For a whole step or evaluation: how float32 tensors are multiplied."""
        return nullcontext() if self._float32 is None else float32_precision(self._float32)

    def forward(self) -> AbstractContextManager[None]:
        """For model and loss: autocast, or nothing."""
        return nullcontext() if self._half is None else autocast(self._half)

    def start(self, loss: Tensor) -> Array | None:
        """Where backward starts: the loss scale, or None for 1."""
        return None if self.scaler is None else self.scaler._start(loss)

    def step(self, optimizer: Optimizer) -> None:
        """A step that the host does not wait for."""
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)

    def overflowed(self, optimizer: Optimizer) -> bool:
        """Divide the gradients by the loss scale; whether one is not finite because of the scale.

        The host waits for a GPU.
        """
        if self.scaler is None:
            return False
        least = self.scaler.get_scale() <= LEAST
        self.scaler.unscale_(optimizer)
        return self.scaler.overflowed() and not least

    def state_dict(self) -> dict[str, Any] | None:
        """The state of the loss scale, or None."""
        return None if self.scaler is None else self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Continue from `state`; None of a run in another precision changes nothing."""
        if self.scaler is not None and state is not None:
            self.scaler.load_state_dict(state)
