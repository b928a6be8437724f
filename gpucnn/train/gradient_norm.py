"""The callback that gives the loggers the norms of the gradients."""

from typing import Any

import numpy as np

from gpucnn.device import Array, working_on
from gpucnn.errors import ArgumentError
from gpucnn.train.loggers import Logger
from gpucnn.train.trainer import Callback, Trainer


class GradientNorm(Callback):
    """Give the loggers the Euclidean norm of the gradients, as "grad_norm".

    by_layer    also that of each layer: "grad_norm/0" for the parameters 0.weight and 0.bias

    It is that of the latest step, of gradients as the optimizer uses them: with precision "fp16"
    divided by the loss scale.  It is computed, on the device, only when a logger records a step.  A
    step whose gradients are not finite is up to the Trainer's on_nan, which also names the layer.

    Raises ArgumentError if no logger of the Trainer records steps.
    """

    def __init__(self, by_layer: bool = False) -> None:
        self.by_layer = by_layer

    def on_start(self, trainer: Trainer, epochs: int) -> None:
        if not any(isinstance(log, Logger) and log.every for log in trainer.callbacks):
            raise ArgumentError(
                "GradientNorm: no logger records steps\n"
                "  add one, such as train.JSONLines(path, every=50)"
            )

    def values(self, trainer: Trainer) -> dict[str, Any]:
        squares: dict[str, list[Any]] = {}
        device = trainer.optimizer.parameters[0].device
        with working_on(device):
            for name, parameter in trainer.model.named_parameters():
                if parameter.grad is not None:
                    layer = name.rpartition(".")[0] or name
                    squares.setdefault(layer, []).append(_sum_of_squares(parameter.grad))
            factor = _unscaled_by(trainer)
            everything = [x for of_layer in squares.values() for x in of_layer]
            norms = {"grad_norm": np.sqrt(sum(everything)) * factor}
            if self.by_layer:
                for name, of_layer in squares.items():
                    norms[f"grad_norm/{name}"] = np.sqrt(sum(of_layer)) * factor
        return norms if everything else {}


def _sum_of_squares(gradient: Array) -> Any:
    """() float64, without a float64 copy of the gradient."""
    return (gradient * gradient).sum(dtype=np.float64)


def _unscaled_by(trainer: Trainer) -> Any:
    """What the optimizer multiplies the gradients by; 0 in a step that is left out."""
    scaler = trainer.scaler
    if scaler is None or scaler._checked is trainer.optimizer:  # divided already, in place
        return 1.0
    return scaler._factor(1).astype(np.float64)
