"""Where weights start.  Each initialiser is called as `init(shape, generator)`.

Shapes are (OC, KH, KW, C) for filters and (OUT, IN) for dense layers: the first axis counts
outputs, so fan-in is the product of the others, and fan-out is the first times KH * KW.
"""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from gpucnn.errors import ArgumentError

Weights: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]
Initializer: TypeAlias = Callable[[tuple[int, ...], np.random.Generator], Weights]


def kaiming_normal(shape: tuple[int, ...], generator: np.random.Generator) -> Weights:
    """Gaussian with variance 2 / fan-in, for layers before a ReLU.  Source: He et al. 2015."""
    return normal(math.sqrt(2 / _fans(shape)[0]))(shape, generator)


def xavier_uniform(shape: tuple[int, ...], generator: np.random.Generator) -> Weights:
    """Uniform with variance 2 / (fan-in + fan-out).  Source: Glorot and Bengio 2010, eq. 16."""
    bound = math.sqrt(6 / sum(_fans(shape)))
    return (2 * bound * generator.random(shape, dtype=np.float32) - bound).astype(np.float32)


def normal(std: float) -> Initializer:
    """Gaussian with mean 0 and the given standard deviation.

    AlexNet's own is normal(0.01) (Krizhevsky et al. 2012, section 5).
    """
    if not std >= 0:
        raise ArgumentError(f"normal: std must not be negative, got {std}")

    def draw(shape: tuple[int, ...], generator: np.random.Generator) -> Weights:
        weights = generator.standard_normal(shape, dtype=np.float32)
        weights *= np.float32(std)
        return weights

    return draw


def constant(value: float) -> Initializer:
    """The same value everywhere: 0 for most biases, 1 for some of AlexNet's."""

    def fill(shape: tuple[int, ...], generator: np.random.Generator) -> Weights:
        return np.full(shape, value, dtype=np.float32)

    return fill


zeros = constant(0.0)
ones = constant(1.0)


def _fans(shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) < 2 or 0 in shape:
        raise ArgumentError(f"init: fan-in needs a weight of two axes or more, got shape {shape}")
    return math.prod(shape[1:]), shape[0] * math.prod(shape[1:-1])
