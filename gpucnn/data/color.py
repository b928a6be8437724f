"""Colour noise along the principal components of a data set's pixels."""

from dataclasses import dataclass

import numpy as np

from gpucnn.data.augment import PerImageTransform, check_pixels
from gpucnn.device import Array
from gpucnn.errors import ArgumentError, ShapeError


def color_components(images: Array) -> Array:
    """Principal components of the pixels of images (N, H, W, C), as float32 (C, C).

    Row i is the i-th eigenvector of the pixels' covariance times its eigenvalue, largest first.
    uint8 pixels are scaled to 0 to 1, floats stay on their scale.  Raises DtypeError unless images
    is an array of uint8 or floats, ShapeError if there are fewer than two pixels.
    """
    check_pixels("color_components", images)
    if images.ndim != 4 or images.size < 2 * images.shape[-1]:
        raise ShapeError(
            f"color_components: expected images (N, H, W, C) of 2 pixels or more, "
            f"got {images.shape}"
        )
    c = images.shape[-1]
    count, total, products = 0, np.zeros(c), np.zeros((c, c))
    for image in images:  # one at a time: float64 takes 8 times the memory of uint8
        pixels = image.reshape(-1, c) / (255 if images.dtype == np.uint8 else 1.0)
        count += len(pixels)
        total += pixels.sum(axis=0)
        products += pixels.T @ pixels
    mean = total / count
    variances, directions = np.linalg.eigh(products / count - np.outer(mean, mean))
    return np.ascontiguousarray((directions * variances).T[::-1], dtype=np.float32)


@dataclass(frozen=True, eq=False)
class ColorNoise(PerImageTransform):
    """Vary the lighting of each image: add one random colour to all of its pixels.

    The colour is a sum of the rows of `components` (C, C), which color_components computes, each
    multiplied by a Gaussian with mean 0 and standard deviation `std`.  The result is float32: of
    integers on the scale 0 to 1, which it may slightly exceed, of floats on their own.  Put this
    transform before Normalize.

    Raises ShapeError if the images have a different number of channels, ArgumentError if std is
    negative.
    Source: Krizhevsky et al. 2012, section 4.1.  The amount of noise depends on the pixels' scale,
    which is 0 to 1 here.
    """

    components: Array
    std: float = 0.1

    def __post_init__(self) -> None:
        if not self.std >= 0:
            raise ArgumentError(f"ColorNoise: expected std >= 0, got {self.std}")

    def transform_part(
        self, images: Array, generator: np.random.Generator, rows: Array, total: int
    ) -> Array:
        c = len(self.components)
        if images.ndim != 4 or images.shape[-1] != c:
            raise ShapeError(
                f"ColorNoise: expected images (N, H, W, {c}) for {c} x {c} components, "
                f"got {tuple(images.shape)}\n  compute color_components of these images"
            )
        amounts = generator.standard_normal((total, c), dtype=np.float32)
        colors = self.std * amounts @ self.components  # of all rows: for the same bits
        pixels = images.astype(np.float32)
        if images.dtype.kind != "f":
            pixels /= 255
        pixels += colors[rows, None, None]
        return pixels
