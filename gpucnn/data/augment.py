"""Transforms of a whole batch of images at once.

Each is called as `transform(images, generator)`: images (N, H, W, C), a numpy.random.Generator from
which all its chance comes.  None changes its input.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import as_strided

from gpucnn.device import Array
from gpucnn.errors import ArgumentError, ShapeError

Transform: TypeAlias = Callable[[Array, np.random.Generator], Array]


class Compose:
    """Several transforms, one after the other."""

    def __init__(self, *transforms: Transform) -> None:
        self.transforms = transforms

    def __call__(self, images: Array, generator: np.random.Generator) -> Array:
        for transform in self.transforms:
            images = transform(images, generator)
        return images

    def __repr__(self) -> str:
        return f"Compose({', '.join(map(repr, self.transforms))})"


@dataclass(frozen=True)
class RandomCrop:
    """A window of size x size pixels at a random place of each image, padded beforehand.

    padding is in pixels, on all four sides; mode says with what: "reflect" (the edge pixel is not
    repeated), "edge" or "constant" (zeros).  Every place is equally likely.

    Raises ArgumentError for sizes or a mode that cannot be, ShapeError if the window is larger than
    the padded image or a reflection as large as the image.
    """

    size: int
    padding: int = 0
    mode: Literal["reflect", "edge", "constant"] = "reflect"

    def __post_init__(self) -> None:
        if self.size < 1 or self.padding < 0:
            raise ArgumentError(
                f"RandomCrop: expected size >= 1 and padding >= 0, got {self.size}, {self.padding}"
            )
        if self.mode not in ("reflect", "edge", "constant"):
            raise ArgumentError(
                f"RandomCrop: mode {self.mode!r} is unknown; expected reflect, edge or constant"
            )

    def __call__(self, images: Array, generator: np.random.Generator) -> Array:
        n, _, _, c = _shape("RandomCrop", images)
        p, size = self.padding, self.size
        places_h, places_w = self.places(images.shape)
        padded = np.ascontiguousarray(
            np.pad(images, ((0, 0), (p, p), (p, p), (0, 0)), mode=self.mode)
        )
        # (image, top, left) -> the window that starts there, as rows of size * C values: a view
        s_n, s_h, s_w, s_c = padded.strides
        windows = as_strided(
            padded, (n, places_h, places_w, size, size * c), (s_n, s_h, s_w, s_h, s_c)
        )
        top, left = self.draw(images.shape, generator)
        return windows[np.arange(n), top, left].reshape(n, size, size, c)

    def places(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """How many places there are for the window's top, and for its left."""
        h, w = shape[1:3]
        places = h + 2 * self.padding - self.size + 1, w + 2 * self.padding - self.size + 1
        if min(places) < 1 or (self.mode == "reflect" and self.padding >= min(h, w)):
            raise ShapeError(
                f"RandomCrop: {self} does not fit images {tuple(shape)}\n"
                "  a window must fit the padded image, and a reflection be smaller than the image"
            )
        return places

    def draw(self, shape: tuple[int, ...], generator: np.random.Generator) -> tuple[Array, Array]:
        """The tops and lefts of one batch."""
        places_h, places_w = self.places(shape)
        top = generator.integers(places_h, size=shape[0])
        return top, generator.integers(places_w, size=shape[0])


@dataclass(frozen=True)
class RandomFlip:
    """Left and right exchanged in each image with the given probability."""

    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ArgumentError(f"RandomFlip: probability {self.probability} is not in 0 to 1")

    def __call__(self, images: Array, generator: np.random.Generator) -> Array:
        n = _shape("RandomFlip", images)[0]
        chosen = np.flatnonzero(self.draw(n, generator))
        flipped = images.copy()
        flipped[chosen] = images[chosen, :, ::-1]
        return flipped

    def draw(self, n: int, generator: np.random.Generator) -> Array:
        """Which of n images are flipped."""
        return generator.random(n) < self.probability


class Normalize:
    """uint8 images to float32: (image / 255 - mean) / std, channel by channel.

    mean and std are of values in 0 to 1, one for each channel, as `channel_statistics` gives them.
    Raises ArgumentError for a standard deviation that is not positive or lengths that differ,
    ShapeError for images with another number of channels.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)
        if len(self.mean) != len(self.std) or not all(value > 0 for value in self.std):
            raise ArgumentError(
                "Normalize: expected as many means as standard deviations, and those above 0, "
                f"got {self.mean} and {self.std}"
            )
        self.scale = (1 / (255 * np.array(self.std))).astype(np.float32)
        self.shift = (-np.array(self.mean) / np.array(self.std)).astype(np.float32)

    def __call__(self, images: Array, generator: np.random.Generator | None = None) -> Array:
        n, h, w, c = self.check(images)
        # Whole rows of pixels share one scale, repeated: NumPy's loops are slow over 3 channels
        out = np.multiply(images.reshape(n, h, w * c), np.tile(self.scale, w), dtype=np.float32)
        out += np.tile(self.shift, w)
        return out.reshape(n, h, w, c)

    def check(self, images: Array) -> tuple[int, int, int, int]:
        """The shape of images that have as many channels as mean and std."""
        n, h, w, c = _shape("Normalize", images)
        if c != len(self.mean):
            raise ShapeError(
                f"Normalize: images have {c} channels, mean and std {len(self.mean)}\n"
                f"  images {tuple(images.shape)}; use channel_statistics of these images"
            )
        return n, h, w, c

    def __repr__(self) -> str:
        mean, std = (tuple(round(value, 4) for value in values) for values in (self.mean, self.std))
        return f"Normalize(mean={mean}, std={std})"


def channel_statistics(images: Array) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all of images, uint8 (N, H, W, C).

    They are of values in 0 to 1, as Normalize takes them; a channel of one single value gets the
    standard deviation 1, which leaves it at zero.  Raises ShapeError without a single image.
    """
    n, h, w, c = _shape("channel_statistics", images)
    if n * h * w == 0:
        raise ShapeError(f"channel_statistics: no pixels in images {tuple(images.shape)}")
    counts = np.zeros((c, 256), np.int64)  # exact, however many images there are
    chunk = max(1, (1 << 20) // (h * w))
    for start in range(0, n, chunk):
        pixels = images[start : start + chunk].reshape(-1, c)
        for channel in range(c):
            counts[channel] += np.bincount(pixels[:, channel], minlength=256)
    values = np.arange(256) / 255
    mean = counts @ values / (n * h * w)
    std = np.sqrt((counts * (values - mean[:, None]) ** 2).sum(axis=1) / (n * h * w))
    return tuple(mean.tolist()), tuple(np.where(std > 0, std, 1.0).tolist())


def _shape(what: str, images: Array) -> tuple[int, int, int, int]:
    if images.ndim != 4:
        raise ShapeError(f"{what}: expected images (N, H, W, C), got shape {tuple(images.shape)}")
    n, h, w, c = images.shape
    return n, h, w, c
