"""Dropout: in training, forget a random part of the activations."""

from typing import Any

import numpy as np

from gpucnn.autograd import Function
from gpucnn.device import Array, array_module, by_device
from gpucnn.errors import ArgumentError
from gpucnn.random import default_generator
from gpucnn.tensor import Tensor


def dropout(
    x: Tensor, p: float, training: bool = True, generator: np.random.Generator | None = None
) -> Tensor:
    """Set each element to 0 with probability p, and divide the others by 1 - p.

    The mean stays what it was, so that nothing is left to do when training is False: x itself
    comes back.  Random numbers come from generator, or from the one that `gpucnn.manual_seed`
    seeds; they are 16-bit, so that p counts in steps of 1 / 65536.

    Raises ArgumentError unless 0 <= p < 1.
    Source: Srivastava et al. 2014 ("inverted" form).
    """
    if not 0 <= p < 1:
        raise ArgumentError(f"dropout: expected 0 <= p < 1, got {p!r}")
    if not training or p == 0:
        return x
    return _Dropout(p, default_generator() if generator is None else generator)(x)


class _Dropout(Function):
    name = "dropout"

    def __init__(self, p: float, generator: np.random.Generator) -> None:
        self.threshold = round(p * 65536)
        self.generator = generator

    def forward(self, x: Array) -> Array:
        draws = np.frombuffer(self.generator.bytes(2 * x.size), np.uint16).reshape(x.shape)
        keep = array_module(x).asarray(draws >= self.threshold)
        self.scale = 65536 / (65536 - self.threshold)
        self.saved = (keep,)
        return _masked(x, keep, self.scale)

    def backward(self, dy: Array) -> Array:
        assert self.saved is not None
        return _masked(dy, *self.saved, self.scale)


# --- any array module ---


def _masked_array(x: Array, keep: Array, scale: float) -> Array:
    y = x * x.dtype.type(scale)
    y *= keep
    return y


_masked: Any = by_device(cpu=_masked_array, cuda=_masked_array)
