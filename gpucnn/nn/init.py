"""Weight initialisers.  Each is called as `init(shape, generator)` and returns a float32 array.

Shapes are (OC, KH, KW, C) for filters and (OUT, IN) for linear layers.  The first axis counts
outputs: fan-in is the product of the other axes, and fan-out is OC * KH * KW, or OUT.  The
initialisers that need a fan raise ArgumentError for a shape with fewer than two axes or a zero.
"""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from gpucnn.errors import ArgumentError

Weights: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]
Initializer: TypeAlias = Callable[[tuple[int, ...], np.random.Generator], Weights]


def kaiming_normal(shape: tuple[int, ...], generator: np.random.Generator) -> Weights:
    """Gaussian with variance 2 / fan-in, for layers before a ReLU.

    Source: He et al. 2015, eq. 10.
    """
    return normal(math.sqrt(2 / _fans(shape)[0]))(shape, generator)


def kaiming_uniform(shape: tuple[int, ...], generator: np.random.Generator) -> Weights:
    """Uniform in ±sqrt(6 / fan-in), whose variance is 2 / fan-in, for layers before a ReLU.

    Source: He et al. 2015, eq. 10.
    """
    return _uniform(math.sqrt(6 / _fans(shape)[0]), shape, generator)


def xavier_normal(shape: tuple[int, ...], generator: np.random.Generator) -> Weights:
    """Gaussian with variance 2 / (fan-in + fan-out).  Source: Glorot and Bengio 2010, eq. 12."""
    return normal(math.sqrt(2 / sum(_fans(shape))))(shape, generator)


def xavier_uniform(shape: tuple[int, ...], generator: np.random.Generator) -> Weights:
    """Uniform in ±sqrt(6 / (fan-in + fan-out)), whose variance is 2 / (fan-in + fan-out).

    Source: Glorot and Bengio 2010, eq. 16.
    """
    return _uniform(math.sqrt(6 / sum(_fans(shape))), shape, generator)


def normal(std: float) -> Initializer:
    """Gaussian with mean 0 and the given standard deviation.

    Raises ArgumentError for a negative one.  AlexNet's weights start with normal(0.01).
    Source: Krizhevsky et al. 2012, section 5.
    """
    if not std >= 0:
        raise ArgumentError(f"normal: std must not be negative, got {std}")

    def draw(shape: tuple[int, ...], generator: np.random.Generator) -> Weights:
        weights = generator.standard_normal(shape, dtype=np.float32)
        weights *= np.float32(std)
        return weights

    return draw


def constant(value: float) -> Initializer:
    """The same value everywhere.  Most biases start at 0, some of AlexNet's at 1."""

    def fill(shape: tuple[int, ...], generator: np.random.Generator) -> Weights:
        return np.full(shape, value, dtype=np.float32)

    return fill


zeros = constant(0.0)
ones = constant(1.0)


def _uniform(bound: float, shape: tuple[int, ...], generator: np.random.Generator) -> Weights:
    return (2 * bound * generator.random(shape, dtype=np.float32) - bound).astype(np.float32)


def _fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """Fan-in and fan-out."""
    if len(shape) < 2 or 0 in shape:
        raise ArgumentError(f"init: expected two axes or more, none of size 0, got shape {shape}")
    return math.prod(shape[1:]), shape[0] * math.prod(shape[1:-1])
