"""Colour noise along the directions in which the pixels of a data set vary."""

from dataclasses import dataclass

import numpy as np

from gpucnn.device import Array
from gpucnn.errors import ArgumentError, ShapeError


def color_components(images: Array) -> Array:
    """The principal components of the pixels of images, uint8 (N, H, W, C): float32 (C, C).

    Row i is the i-th direction, a unit vector, times the variance along it, largest first.
    Pixels count as values in 0 to 1.  Raises ShapeError without two pixels.
    """
    if images.ndim != 4 or images.size < 2 * images.shape[-1]:
        raise ShapeError(
            f"color_components: expected images (N, H, W, C) with pixels, got {images.shape}"
        )
    c = images.shape[-1]
    count, total, products = 0, np.zeros(c), np.zeros((c, c))
    for image in images:  # one at a time: float64 takes eight times the memory
        pixels = image.reshape(-1, c) / 255
        count += len(pixels)
        total += pixels.sum(axis=0)
        products += pixels.T @ pixels
    mean = total / count
    variances, directions = np.linalg.eigh(products / count - np.outer(mean, mean))
    return np.ascontiguousarray((directions * variances).T[::-1], dtype=np.float32)


@dataclass(frozen=True, eq=False)
class ColorNoise:
    """Each image in a slightly other light: one random colour is added to all of its pixels.

    The colour is the sum of `components`, as color_components gives them, each times a Gaussian
    number with deviation `std`.  Takes values 0 to 255 and gives float32 ones of that scale, which
    may lie a little outside: it goes before Normalize.  Raises ShapeError for images with another
    number of channels, ArgumentError for a negative std.
    Source: Krizhevsky et al. 2012, section 4.1, with pixels counted in 0 to 1, on which the amount
    of noise depends.
    """

    components: Array
    std: float = 0.1

    def __post_init__(self) -> None:
        if not self.std >= 0:
            raise ArgumentError(f"ColorNoise: std must not be negative, got {self.std}")

    def __call__(self, images: Array, generator: np.random.Generator) -> Array:
        c = len(self.components)
        if images.ndim != 4 or images.shape[-1] != c:
            raise ShapeError(
                f"ColorNoise: images {tuple(images.shape)} do not have the {c} channels "
                "of its components"
            )
        amounts = generator.standard_normal((len(images), c), dtype=np.float32)
        colors = 255 * self.std * amounts @ self.components
        return images.astype(np.float32) + colors[:, None, None]
