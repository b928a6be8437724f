"""Transforms of a whole batch of images at once, under torchvision's names.

A transform is called as `transform(images, generator)`.  images is (N, H, W, C); all randomness
comes from generator, a numpy.random.Generator.  No transform modifies its input.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import as_strided

from gpucnn.device import Array
from gpucnn.errors import ArgumentError, ShapeError, kind

Transform: TypeAlias = Callable[[Array, np.random.Generator], Array]


class Compose:
    """Apply a list of transforms in order.

    Raises ArgumentError unless transforms is a list or tuple of callables.
    """

    def __init__(self, transforms: Sequence[Transform]) -> None:
        if not isinstance(transforms, list | tuple) or not all(map(callable, transforms)):
            raise ArgumentError(
                f"Compose: expected a list of transforms, got {kind(transforms)}\n"
                "  write Compose([first, second])"
            )
        self.transforms = tuple(transforms)

    def __call__(self, images: Array, generator: np.random.Generator) -> Array:
        for transform in self.transforms:
            images = transform(images, generator)
        return images

    def __repr__(self) -> str:
        return f"Compose([{', '.join(map(repr, self.transforms))}])"


@dataclass(frozen=True)
class RandomCrop:
    """Pad each image, then cut a window of size x size pixels at a random offset.

    padding is in pixels and applies to all four sides.  padding_mode is "reflect" (without
    repeating the edge pixel), "edge" or "constant" (zeros).  All offsets are equally likely.

    Raises ArgumentError for an invalid size, padding or padding_mode; ShapeError if the window is
    larger than the padded image, or if padding_mode is "reflect" and padding is not smaller than
    the image.
    """

    size: int
    padding: int = 0
    padding_mode: Literal["reflect", "edge", "constant"] = "reflect"

    def __post_init__(self) -> None:
        if self.size < 1 or self.padding < 0:
            raise ArgumentError(
                f"RandomCrop: expected size >= 1 and padding >= 0, got {self.size}, {self.padding}"
            )
        if self.padding_mode not in ("reflect", "edge", "constant"):
            raise ArgumentError(
                f"RandomCrop: expected padding_mode reflect, edge or constant, "
                f"got {self.padding_mode!r}"
            )

    def __call__(self, images: Array, generator: np.random.Generator) -> Array:
        n, _, _, c = _shape("RandomCrop", images)
        p, size = self.padding, self.size
        rows, columns = self.offsets(images.shape)
        padded = np.ascontiguousarray(
            np.pad(images, ((0, 0), (p, p), (p, p), (0, 0)), mode=self.padding_mode)
        )
        # windows[image, top, left] is a view of one window: size rows of size * C values
        s_n, s_h, s_w, s_c = padded.strides
        windows = as_strided(padded, (n, rows, columns, size, size * c), (s_n, s_h, s_w, s_h, s_c))
        top, left = self.draw(images.shape, generator)
        return windows[np.arange(n), top, left].reshape(n, size, size, c)

    def offsets(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """The number of vertical and of horizontal offsets in images of `shape` (N, H, W, C)."""
        h, w = shape[1:3]
        counts = h + 2 * self.padding - self.size + 1, w + 2 * self.padding - self.size + 1
        if min(counts) < 1 or (self.padding_mode == "reflect" and self.padding >= min(h, w)):
            raise ShapeError(
                f"RandomCrop: {self} does not fit images {tuple(shape)}\n"
                "  the window must fit in the padded image; reflect needs padding < H and W"
            )
        return counts

    def draw(self, shape: tuple[int, ...], generator: np.random.Generator) -> tuple[Array, Array]:
        """Draw the top and left offsets, each (N,), for images of `shape` (N, H, W, C)."""
        rows, columns = self.offsets(shape)
        top = generator.integers(rows, size=shape[0])
        return top, generator.integers(columns, size=shape[0])


@dataclass(frozen=True)
class RandomHorizontalFlip:
    """Mirror each image left to right with probability p.

    Raises ArgumentError unless 0 <= p <= 1.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ArgumentError(f"RandomHorizontalFlip: expected p in 0 to 1, got {self.p}")

    def __call__(self, images: Array, generator: np.random.Generator) -> Array:
        n = _shape("RandomHorizontalFlip", images)[0]
        chosen = np.flatnonzero(self.draw(n, generator))
        flipped = images.copy()
        flipped[chosen] = images[chosen, :, ::-1]
        return flipped

    def draw(self, n: int, generator: np.random.Generator) -> Array:
        """Draw which of n images to flip: bool (n,)."""
        return generator.random(n) < self.p


class Normalize:
    """Convert uint8 images to float32 and normalise each channel: (image / 255 - mean) / std.

    mean and std have one value per channel, on the scale 0 to 1; `channel_statistics` computes
    them.  Raises ArgumentError if their lengths differ or a standard deviation is not positive,
    ShapeError if the images have a different number of channels.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)
        if len(self.mean) != len(self.std) or not all(value > 0 for value in self.std):
            raise ArgumentError(
                "Normalize: expected mean and std of the same length, and std above 0, "
                f"got {self.mean} and {self.std}"
            )
        self.scale = (1 / (255 * np.array(self.std))).astype(np.float32)
        self.shift = (-np.array(self.mean) / np.array(self.std)).astype(np.float32)

    def __call__(self, images: Array, generator: np.random.Generator | None = None) -> Array:
        n, h, w, c = self.check(images)
        # Repeat scale and shift over a row of pixels: NumPy's inner loop is slow over 3 channels.
        out = np.multiply(images.reshape(n, h, w * c), np.tile(self.scale, w), dtype=np.float32)
        out += np.tile(self.shift, w)
        return out.reshape(n, h, w, c)

    def check(self, images: Array) -> tuple[int, int, int, int]:
        """The shape (N, H, W, C) of images; ShapeError unless C is the length of mean and std."""
        n, h, w, c = _shape("Normalize", images)
        if c != len(self.mean):
            raise ShapeError(
                f"Normalize: images have {c} channels, mean and std expect {len(self.mean)}\n"
                f"  images {tuple(images.shape)}; compute channel_statistics of these images"
            )
        return n, h, w, c

    def __repr__(self) -> str:
        mean, std = (tuple(round(value, 4) for value in values) for values in (self.mean, self.std))
        return f"Normalize(mean={mean}, std={std})"


def channel_statistics(images: Array) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all images, uint8 (N, H, W, C).

    Both are on the scale 0 to 1, as Normalize expects.  A constant channel gets the standard
    deviation 1, so that it normalises to zero.  Raises ShapeError if there are no pixels.
    """
    n, h, w, c = _shape("channel_statistics", images)
    if n * h * w == 0:
        raise ShapeError(f"channel_statistics: no pixels in images {tuple(images.shape)}")
    counts = np.zeros((c, 256), np.int64)  # exact for any number of images
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
