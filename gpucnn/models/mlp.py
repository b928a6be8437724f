"""Fully connected networks, such as the lecture's 4-6-1 and 4-6-6-6-6-3."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from gpucnn import nn
from gpucnn.errors import ArgumentError

_ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}


def mlp(
    sizes: Sequence[int], activation: str = "relu", generator: np.random.Generator | None = None
) -> nn.Sequential:
    """Linear layers of `sizes` units: mlp([4, 6, 1]) has 4 inputs, 6 hidden units, 1 output.

    (N, ...) with sizes[0] values per example to (N, sizes[-1]).  `activation`, "relu", "tanh" or
    "sigmoid", follows every layer but the last.  He initialisation with ReLU, Glorot's with the
    others; biases start at zero.

    Raises ArgumentError for fewer than two sizes or another activation.
    """
    if len(sizes) < 2:
        raise ArgumentError(f"mlp: expected two sizes or more, such as [4, 6, 1], got {sizes}")
    if activation not in _ACTIVATIONS:
        raise ArgumentError(
            f"mlp: activation {activation!r} is unknown; expected one of {', '.join(_ACTIVATIONS)}"
        )
    weight_init = nn.init.kaiming_normal if activation == "relu" else nn.init.xavier_uniform
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(sizes):
        linear = nn.Linear(inputs, outputs, weight_init=weight_init, generator=generator)
        layers += [linear, _ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])
