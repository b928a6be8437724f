"""A network in numbers, layer by layer: output shapes, parameters, multiply-adds, memory."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn.autograd import no_grad
from gpucnn.device import CPU, Device, to_device
from gpucnn.nn.hooks import observe
from gpucnn.nn.module import Module
from gpucnn.tensor import Tensor


@dataclass(frozen=True)
class LayerSummary:
    """One call of one layer, on one image."""

    name: str  # dotted, as in the state dict
    layer: str  # its repr
    output_shape: tuple[int, ...]  # without the batch axis
    parameters: int  # running statistics included
    multiply_adds: int  # of the forward pass
    activation_bytes: int  # of the output


@dataclass(frozen=True)
class Summary:
    """All layers, in the order of their calls.  Printing it gives a table.

    parameters counts running statistics and frozen parameters too, trainable counts neither.
    """

    model: str
    input_shape: tuple[int, ...]
    layers: tuple[LayerSummary, ...]
    parameters: int
    trainable: int

    @property
    def multiply_adds(self) -> int:
        return sum(layer.multiply_adds for layer in self.layers)

    @property
    def activation_bytes(self) -> int:
        return sum(layer.activation_bytes for layer in self.layers)

    def __str__(self) -> str:
        header = ("name", "layer", "output", "parameters", "multiply-adds", "activations")
        rows = [
            (
                layer.name,
                layer.layer,
                " x ".join(map(str, layer.output_shape)),
                f"{layer.parameters:,}",
                f"{layer.multiply_adds:,}",
                _bytes(layer.activation_bytes),
            )
            for layer in self.layers
        ]
        total = ("", "total", "", f"{self.parameters:,}", f"{self.multiply_adds:,}")
        rows.append((*total, _bytes(self.activation_bytes)))
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if i < 3 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in (header, *rows)
        ]
        rule = "-" * max(map(len, lines))
        title = f"{self.model}, input {' x '.join(map(str, self.input_shape))}, for one image"
        not_trained = self.parameters - self.trainable
        notes = [f"{not_trained:,} of the parameters are not trained"] if not_trained else []
        return "\n".join([title, lines[0], rule, *lines[1:-1], rule, lines[-1], *notes])


def summary(model: Module, input_shape: tuple[int, ...]) -> Summary:
    """Run `model` on one zero image of `input_shape` (H, W, C) and record each call of a layer.

    A layer is a module without children.  The model runs in evaluation mode, without recording
    gradients; its mode, running statistics and random generators are unchanged afterwards.
    """
    names = {id(module): name for name, module in model.named_modules()}
    layers: list[LayerSummary] = []

    def note(module: Module, inputs: tuple[Any, ...], output: Any) -> None:
        if id(module) not in names or any(True for _ in module.named_children()):
            return
        layers.append(
            LayerSummary(
                names[id(module)],
                f"{type(module).__name__}({module.extra_repr()})",
                output.shape[1:],
                sum(array.size for array in module.state_dict().values()),
                module.multiply_adds(inputs, output),
                output.data.nbytes,
            )
        )

    state = list(model.state_dict().values())
    device, dtype = device_and_dtype(model)
    with model.evaluating(), observe(note), no_grad():
        model(Tensor(to_device(np.zeros((1, *input_shape), dtype), device)))
    return Summary(
        type(model).__name__,
        tuple(input_shape),
        tuple(layers),
        sum(array.size for array in state),
        sum(parameter.size for parameter in model.parameters() if parameter.requires_grad),
    )


def device_and_dtype(model: Module) -> tuple[Device, Any]:
    """Device and dtype that the model's input needs: its parameters', or CPU and float32."""
    for parameter in model.parameters():
        return parameter.device, parameter.dtype
    return CPU, np.float32


def _bytes(count: int) -> str:
    return f"{count / 1024:,.1f} KiB" if count < 1 << 20 else f"{count / (1 << 20):,.1f} MiB"
