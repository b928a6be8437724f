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


def dirac(shape: tuple[int, ...], generator: np.random.Generator) -> Weights:
    """Filters (OC, KH, KW, C) that copy a channel: filter i is 1 at channel i of its centre pixel.

    Filters from C on are 0.  The centre is (KH // 2, KW // 2): with padding "same" and an odd size,
    the first min(OC, C) channels of the result are those of the images.
    Raises ArgumentError unless shape has four axes.
    Source: torch.nn.init.dirac_.
    """
    return dirac_first(zeros)(shape, generator)


def dirac_first(rest: Initializer) -> Initializer:
    """dirac for the first C filters (OC, KH, KW, C); `rest` initialises those from C on.

    Raises ArgumentError, when called, unless the shape has four axes.
    Source: Jordan 2024, arXiv 2404.00498, section 3.3.
    """

    def fill(shape: tuple[int, ...], generator: np.random.Generator) -> Weights:
        if len(shape) != 4:
            raise ArgumentError(f"dirac: expected filters (OC, KH, KW, C), got shape {shape}")
        oc, kh, kw, c = shape
        weights = np.array(rest(shape, generator), np.float32)
        weights[:c] = 0
        copied = np.arange(min(oc, c))
        weights[copied, kh // 2, kw // 2, copied] = 1
        return weights

    return fill


def whitening(images: Any, eps: float = 5e-4) -> Initializer:
    """Filters (2 KH KW C, KH, KW, C) that whiten the patches of `images`, and their negatives.

    images (N, H, W, C) are NumPy floats, normalised as in training.  Filter i is eigenvector i of
    the covariance of all patches of KH x KW pixels, by descending eigenvalue, divided by
    sqrt(eigenvalue + eps).  Without padding, the first KH KW C channels of the convolution of these
    images then have a covariance close to the identity, where eigenvalues are larger than eps.
    Fewer filters hold the first of these pairs.

    Raises ArgumentError for images or, when called, a shape that does not fit.
    Source: Jordan 2024, arXiv 2404.00498, section 3.2.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.dtype.kind != "f" or not len(images):
        raise ArgumentError(
            f"whitening: expected float images (N, H, W, C), got {images.dtype} {images.shape}\n"
            "  normalise them as in training: data.Normalize(mean, std)(images)"
        )

    def fill(shape: tuple[int, ...], generator: np.random.Generator) -> Weights:
        size = math.prod(shape[1:])
        if len(shape) != 4 or shape[3] != images.shape[3] or shape[0] % 2 or shape[0] > 2 * size:
            raise ArgumentError(
                f"whitening: filters {shape} do not fit images {images.shape}\n  expected (OC, KH, "
                f"KW, {images.shape[3]}), OC even and at most 2 * KH * KW * {images.shape[3]}"
            )
        values, vectors = np.linalg.eigh(_patch_covariance(images, shape[1], shape[2]))
        half = (vectors / np.sqrt(np.maximum(values, 0) + eps)).T[::-1][: shape[0] // 2]
        return np.concatenate([half, -half]).astype(np.float32).reshape(shape)

    return fill


def _patch_covariance(images: Any, height: int, width: int) -> Any:
    """The covariance of all patches of height x width pixels: float64, (K, K), K = KH * KW * C."""
    if height > images.shape[1] or width > images.shape[2]:
        raise ArgumentError(f"whitening: {height} x {width} is larger than images {images.shape}")
    size = height * width * images.shape[3]
    count, total, products = 0, np.zeros(size), np.zeros((size, size))
    step = max(1, (1 << 20) // math.prod(images.shape[1:]))
    for start in range(0, len(images), step):
        windows = np.lib.stride_tricks.sliding_window_view(
            images[start : start + step], (height, width), (1, 2)
        )
        patches = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, size).astype(np.float64)
        count += len(patches)
        total += patches.sum(axis=0)
        products += patches.T @ patches
    mean = total / count
    return products / count - np.outer(mean, mean)


def _uniform(bound: float, shape: tuple[int, ...], generator: np.random.Generator) -> Weights:
    return (2 * bound * generator.random(shape, dtype=np.float32) - bound).astype(np.float32)


def _fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """Fan-in and fan-out."""
    if len(shape) < 2 or 0 in shape:
        raise ArgumentError(f"init: expected two axes or more, none of size 0, got shape {shape}")
    return math.prod(shape[1:]), shape[0] * math.prod(shape[1:-1])
