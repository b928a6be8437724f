"""Transforms of a whole batch of images at once, under torchvision's names.

A transform is called as `transform(images, generator)`, or as `transform(images)` if it takes one
argument.  images is a whole batch (N, H, W, C); all randomness comes from generator, a
numpy.random.Generator.  No transform modifies its input.

Integer images have the scale 0 to 255, and Normalize divides them by 255.  Float images have any
scale, and every transform takes them as they are.  Crops and flips keep the dtype.

Where processes divide a batch (DataLoader.part), a PerImageTransform transforms their parts.  Any
other transform, such as a function, transforms the whole batch in each process.
"""

import inspect
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import as_strided

from gpucnn.device import Array
from gpucnn.errors import ArgumentError, DtypeError, ShapeError, kind

Transform: TypeAlias = Callable[[Array, np.random.Generator], Array] | Callable[[Array], Array]


def takes_generator(who: str, transform: Any) -> bool:
    """Whether `transform` is called with a generator: transform(images, generator).

    It is if it needs two arguments, takes any number, or calls the second one generator.
    Raises ArgumentError, on behalf of `who`, unless it can be called with one argument or two.
    """
    try:
        signature = inspect.signature(transform)
    except ValueError:  # a function in C, such as numpy.sqrt
        return False
    except TypeError:  # not callable
        raise _uncallable(who, repr(transform)) from None
    fits = [_binds(signature, count) for count in (1, 2)]
    if any(fits):
        second = list(signature.parameters.values())[:2]
        wanted = any(p.kind is p.VAR_POSITIONAL or p.name == "generator" for p in second)
        return fits[1] and (wanted or not fits[0])
    name = getattr(transform, "__name__", type(transform).__name__)
    raise _uncallable(who, f"{name}{signature}")


def _binds(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def _uncallable(who: str, what: str) -> ArgumentError:
    return ArgumentError(
        f"{who}: a transform must be callable as transform(images, generator) or "
        f"transform(images), got {what}"
    )


def apply(transform: Transform, images: Array, generator: np.random.Generator) -> Array:
    """Call the transform, with the generator if it takes one."""
    call: Any = transform
    return call(images, generator) if takes_generator("apply", transform) else call(images)


class PerImageTransform:
    """A transform whose result for an image depends on that image and on random numbers only.

    Subclasses implement transform_part; calling the transform is transform_part with all rows.
    """

    def __call__(self, images: Array, generator: np.random.Generator) -> Array:
        n = _shape(type(self).__name__, images)[0]
        return self.transform_part(images, generator, np.arange(n), n)

    def transform_part(
        self, images: Array, generator: np.random.Generator, rows: Array, total: int
    ) -> Array:
        """Transform images (n, H, W, C), which are batch[rows] of a batch of `total` images.

        rows is int64 (n,), ascending.  The result must be what the whole batch gives, indexed by
        rows: draw the random numbers of all `total` images, then use those of `rows`.
        """
        raise NotImplementedError


class Compose:
    """Apply a list of transforms in order.

    Raises ArgumentError unless transforms is a list or tuple of callables that take one argument,
    images, or two, images and generator.
    """

    def __init__(self, transforms: Sequence[Transform]) -> None:
        if not isinstance(transforms, list | tuple) or not all(map(callable, transforms)):
            raise ArgumentError(
                f"Compose: expected a list of transforms, got {kind(transforms)}\n"
                "  write Compose([first, second])"
            )
        for transform in transforms:
            takes_generator("Compose", transform)  # or raise
        self.transforms = tuple(transforms)

    def __call__(self, images: Array, generator: np.random.Generator) -> Array:
        for transform in self.transforms:
            images = apply(transform, images, generator)
        return images

    def __repr__(self) -> str:
        return f"Compose([{', '.join(map(repr, self.transforms))}])"


@dataclass(frozen=True)
class RandomCrop(PerImageTransform):
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

    def transform_part(
        self, images: Array, generator: np.random.Generator, rows: Array, total: int
    ) -> Array:
        n, h, w, c = _shape("RandomCrop", images)
        p, size = self.padding, self.size
        windows_down, windows_across = self.offsets(images.shape)
        padded = np.ascontiguousarray(
            np.pad(images, ((0, 0), (p, p), (p, p), (0, 0)), mode=self.padding_mode)
        )
        # windows[image, top, left] is a view of one window: size rows of size * C values
        s_n, s_h, s_w, s_c = padded.strides
        shape = (n, windows_down, windows_across, size, size * c)
        windows = as_strided(padded, shape, (s_n, s_h, s_w, s_h, s_c))
        top, left = self.draw((total, h, w, c), generator)
        return windows[np.arange(n), top[rows], left[rows]].reshape(n, size, size, c)

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
class RandomHorizontalFlip(PerImageTransform):
    """Mirror each image left to right with probability p.

    Raises ArgumentError unless 0 <= p <= 1.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ArgumentError(f"RandomHorizontalFlip: expected p in 0 to 1, got {self.p}")

    def transform_part(
        self, images: Array, generator: np.random.Generator, rows: Array, total: int
    ) -> Array:
        return _flipped("RandomHorizontalFlip", images, self.draw(total, generator)[rows])

    def draw(self, n: int, generator: np.random.Generator) -> Array:
        """Draw which of n images to flip: bool (n,)."""
        return generator.random(n) < self.p


class Place(NamedTuple):
    """Where a batch is in a training: what an AlternatingFlip depends on."""

    seed: int
    epoch: int
    chosen: Array  # int64 (N,): the indices of its images in the data set
    total: int  # images in the data set


@dataclass(frozen=True)
class AlternatingFlip(PerImageTransform):
    """Mirror each image left to right in every other epoch; a random half starts mirrored.

    So two epochs in a row show both sides of every image, which random flips do for half of them.
    The half is drawn from the DataLoader's seed; a resumed run goes on with it.  Only a DataLoader
    knows epoch and images: use it as its transform, or in a Compose.  Elsewhere a call raises
    ArgumentError.

    Source: Jordan 2024, section 3.6 (arXiv 2404.00498).
    """

    def transform_part(
        self, images: Array, generator: np.random.Generator, rows: Array, total: int
    ) -> Array:
        raise ArgumentError(
            "AlternatingFlip: the epoch is unknown here; it works as the transform of a "
            "DataLoader, or in a Compose that is\n  elsewhere use RandomHorizontalFlip"
        )

    def mirrored(self, place: Place) -> Array:
        """Which images of the batch are mirrored: bool (N,)."""
        return _starts_mirrored(place.seed, place.total)[place.chosen] ^ (place.epoch % 2 == 1)


@lru_cache(maxsize=4)
def _starts_mirrored(seed: int, total: int) -> Array:
    """A coin for each image of a data set: bool (total,)."""
    # A key of one number: those of an epoch's order and of its batches have more
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(2,))))
    return generator.random(total) < 0.5


@dataclass(frozen=True)
class _Mirror(PerImageTransform):
    """Mirror those images of a batch for which `mirrored`, bool (N,), is true."""

    mirrored: Array

    def transform_part(
        self, images: Array, generator: np.random.Generator, rows: Array, total: int
    ) -> Array:
        return _flipped("AlternatingFlip", images, self.mirrored[rows])


def _flipped(what: str, images: Array, which: Array) -> Array:
    """A copy of images in which those of `which`, bool (N,), are mirrored left to right."""
    _shape(what, images)
    chosen = np.flatnonzero(which)
    flipped = images.copy()
    flipped[chosen] = images[chosen, :, ::-1]
    return flipped


def placed(transform: Transform, place: Place) -> Transform:
    """`transform` for the batch at `place`: with what its AlternatingFlips do there."""
    if isinstance(transform, AlternatingFlip):
        return _Mirror(transform.mirrored(place))
    if type(transform) is Compose:
        steps = [placed(step, place) for step in transform.transforms]
        same = all(map(operator.is_, steps, transform.transforms))
        return transform if same else Compose(steps)
    return transform


class Normalize(PerImageTransform):
    """Convert images to float32 and normalise each channel: (image - mean) / std.

    Integers are divided by 255 first, so their mean and std are on the scale 0 to 1; floats are
    taken as they are.  mean and std have one value per channel; `channel_statistics` computes them.

    Raises ArgumentError if their lengths differ or a standard deviation is not positive, ShapeError
    if the images have a different number of channels.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)
        if len(self.mean) != len(self.std) or not all(value > 0 for value in self.std):
            raise ArgumentError(
                "Normalize: expected mean and std of the same length, and std above 0, "
                f"got {self.mean} and {self.std}"
            )
        self.scale = (1 / (255 * np.array(self.std))).astype(np.float32)  # of integers
        self.shift = (-np.array(self.mean) / np.array(self.std)).astype(np.float32)

    def __call__(self, images: Array, generator: np.random.Generator | None = None) -> Array:
        n, h, w, c = self.check(images)
        scale = self.scale
        if images.dtype.kind == "f":
            scale = (1 / np.array(self.std)).astype(np.float32)
        # Repeat scale and shift over a row of pixels: NumPy's inner loop is slow over 3 channels.
        out = np.multiply(images.reshape(n, h, w * c), np.tile(scale, w), dtype=np.float32)
        out += np.tile(self.shift, w)
        return out.reshape(n, h, w, c)

    def transform_part(
        self, images: Array, generator: np.random.Generator, rows: Array, total: int
    ) -> Array:
        return self(images)

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
    """Mean and standard deviation of each channel over all images (N, H, W, C), for Normalize.

    Those of uint8 images are on the scale 0 to 1, those of float images on their own.  A constant
    channel gets the standard deviation 1, so that it normalises to zero.

    Raises DtypeError unless images is an array of uint8 or floats, ShapeError if there are no
    pixels.
    """
    check_pixels("channel_statistics", images)
    n, h, w, _ = _shape("channel_statistics", images)
    if n * h * w == 0:
        raise ShapeError(f"channel_statistics: no pixels in images {tuple(images.shape)}")
    statistics = _statistics_of_bytes if images.dtype == np.uint8 else _statistics_of_floats
    mean, std = statistics(images, max(1, (1 << 20) // (h * w)))
    return tuple(mean.tolist()), tuple(np.where(std > 0, std, 1.0).tolist())


def _statistics_of_bytes(images: Array, chunk: int) -> tuple[Array, Array]:
    n, h, w, c = images.shape
    counts = np.zeros((c, 256), np.int64)  # exact for any number of images
    for start in range(0, n, chunk):
        pixels = images[start : start + chunk].reshape(-1, c)
        for channel in range(c):
            counts[channel] += np.bincount(pixels[:, channel], minlength=256)
    values = np.arange(256) / 255
    mean = counts @ values / (n * h * w)
    std = np.sqrt((counts * (values - mean[:, None]) ** 2).sum(axis=1) / (n * h * w))
    return mean, std


def _statistics_of_floats(images: Array, chunk: int) -> tuple[Array, Array]:
    n, h, w, c = images.shape
    chunks = [images[start : start + chunk].reshape(-1, c) for start in range(0, n, chunk)]
    mean = sum(pixels.sum(axis=0, dtype=np.float64) for pixels in chunks) / (n * h * w)
    squares = sum(((pixels - mean) ** 2).sum(axis=0) for pixels in chunks)
    return np.asarray(mean), np.sqrt(np.asarray(squares) / (n * h * w))


def check_pixels(what: str, images: Array) -> None:
    """Raise DtypeError, on behalf of `what`, unless images is an array of uint8 or floats."""
    dtype = getattr(images, "dtype", None)
    if dtype != np.uint8 and getattr(dtype, "kind", None) != "f":
        raise DtypeError(
            f"{what}: expected an array of uint8 or float images, got {kind(images)}\n"
            "  pass the images before normalisation, such as dataset.images"
        )


def _shape(what: str, images: Array) -> tuple[int, int, int, int]:
    if images.ndim != 4:
        raise ShapeError(f"{what}: expected images (N, H, W, C), got shape {tuple(images.shape)}")
    n, h, w, c = images.shape
    return n, h, w, c
