"""A synthetic data set of ten classes of shapes, generated from a seed, to replace real data."""

from collections.abc import Callable

import numpy as np

from gpucnn.data.dataset import Dataset
from gpucnn.device import Array
from gpucnn.errors import ArgumentError

_SIZE = 32  # pixels
_CLUTTER = 3  # bars in the background of each image
_DARK_SHAPES = 0.2  # fraction of images; without them, brightness alone reveals too much
_CHUNK = 1000  # images drawn at once, to bound the memory


def Synthetic(train: bool = True, n: int | None = None, seed: int = 0) -> Dataset:
    """Images of shapes, uint8 (N, 32, 32, 3): n of them, or 8,000 for training, 2,000 for testing.

    Position, size, rotation, colours, background, clutter and noise are random; one shape in five
    is darker than its background.  A linear model of the pixels classifies about half of them
    correctly.  AlexNet exceeds 95 % in about 250 steps of 128 images, trained by SGD with a
    one-cycle schedule up to 0.01 (0.05 is too high for so few steps).  The training and test sets
    use separate random streams of `seed`; the same seed gives the same images.  The classes are
    balanced to within one image, and shuffled.

    Raises ArgumentError for n < 1 or a negative seed.
    """
    n = (8_000 if train else 2_000) if n is None else n
    if n < 1 or seed < 0:
        raise ArgumentError(f"Synthetic: expected n >= 1 and seed >= 0, got n={n}, seed={seed}")
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(int(train),)))
    labels = generator.permutation(np.arange(n) % len(_SHAPES))
    images = np.concatenate([_draw(labels[i : i + _CHUNK], generator) for i in range(0, n, _CHUNK)])
    return Dataset(images, labels, tuple(_SHAPES), f"synthetic {'train' if train else 'test'}")


# Each shape is a signed distance function, negative inside; the unit is the shape's radius.


def _disc(u: Array, v: Array) -> Array:
    return np.hypot(u, v) - 0.9


def _ring(u: Array, v: Array) -> Array:
    return np.abs(np.hypot(u, v) - 0.75) - 0.2


def _bar(u: Array, v: Array) -> Array:
    return np.maximum(np.abs(u) - 1.1, np.abs(v) - 0.3)


def _triangle(u: Array, v: Array) -> Array:
    return np.maximum(np.abs(u) * 0.866 + v * 0.5, -v) - 0.55


def _cross(u: Array, v: Array) -> Array:
    u, v = np.abs(u), np.abs(v)
    return np.maximum(np.maximum(u, v) - 1, np.minimum(u, v) - 0.27)


def _crescent(u: Array, v: Array) -> Array:
    return np.maximum(np.hypot(u, v) - 1, 0.8 - np.hypot(u - 0.5, v))


def _star(u: Array, v: Array) -> Array:
    """Five points: folded into a sector of a tenth of a turn, where the edge is one line."""
    tenth = np.pi / 5
    angle = np.abs((np.arctan2(u, v) + tenth) % (2 * tenth) - tenth)
    r = np.hypot(u, v)
    x, y = r * np.sin(angle), r * np.cos(angle)
    return 0.951 * x + 0.309 * (y - 1.1)  # a regular star: the line from a point to a notch


def _stripes(u: Array, v: Array) -> Array:
    return np.maximum(_disc(u, v), np.sin(7.5 * u) / 7.5)


def _checker(u: Array, v: Array) -> Array:
    return np.maximum(_disc(u, v), np.sin(6 * u) * np.sin(6 * v) / 6)


def _dots(u: Array, v: Array) -> Array:
    u, v = np.abs(u) - 0.5, np.abs(v) - 0.5
    return np.hypot(u, v) - 0.27


_SHAPES: dict[str, Callable[[Array, Array], Array]] = {
    "disc": _disc,
    "ring": _ring,
    "bar": _bar,
    "triangle": _triangle,
    "cross": _cross,
    "crescent": _crescent,
    "star": _star,
    "stripes": _stripes,
    "checker": _checker,
    "dots": _dots,
}


def _draw(labels: Array, generator: np.random.Generator) -> Array:
    """One image for each label, uint8 (n, 32, 32, 3)."""
    n = len(labels)

    def uniform(low: float, high: float, *shape: int) -> Array:
        return generator.uniform(low, high, (n, *shape)).astype(np.float32)

    axis = np.arange(_SIZE, dtype=np.float32)
    y, x = axis[None, :, None], axis[None, None, :]
    background, foreground = _colours(generator, n)
    canvas = _shade(background, uniform(-30, 30, 3), uniform(-30, 30, 3))
    for _ in range(_CLUTTER):
        u, v = _rotate(x, y, uniform(0, 32), uniform(0, 32), uniform(0, 2 * np.pi))
        distance = np.maximum(np.abs(u) - uniform(2, 9)[:, None, None], np.abs(v) - 0.7)
        colour = background + uniform(-60, 60, 3)
        _paint(canvas, distance, np.broadcast_to(colour[:, None, None], canvas.shape))

    radius = uniform(9, 12)
    u, v = _rotate(x, y, uniform(10.5, 21.5), uniform(10.5, 21.5), uniform(-0.35, 0.35))
    u, v = u / radius[:, None, None], v / radius[:, None, None]
    distance = np.empty((n, _SIZE, _SIZE), np.float32)
    for label, shape in enumerate(_SHAPES.values()):
        chosen = labels == label
        distance[chosen] = shape(u[chosen], v[chosen])
    distance *= radius[:, None, None]
    _paint(canvas, distance, _shade(foreground, uniform(-25, 25, 3), uniform(-25, 25, 3)))

    canvas += generator.standard_normal(canvas.shape, np.float32) * uniform(4, 14, 1, 1, 1)
    return canvas.clip(0, 255).astype(np.uint8)


def _colours(generator: np.random.Generator, n: int) -> tuple[Array, Array]:
    """Colours (n, 3) of background and shape: dark and bright, or reversed for one in five."""
    dark, bright = generator.uniform(5, 95, (n, 3)), generator.uniform(150, 250, (n, 3))
    swapped = generator.random((n, 1)) < _DARK_SHAPES
    background, shape = np.where(swapped, bright, dark), np.where(swapped, dark, bright)
    return background.astype(np.float32), shape.astype(np.float32)


def _shade(colour: Array, across: Array, down: Array) -> Array:
    """Linear gradients (n, 32, 32, 3) around `colour`, by `across` and `down` at the edges."""
    ramp = np.linspace(-1, 1, _SIZE, dtype=np.float32)[:, None]
    rows = colour[:, None, None, :] + (down[:, None, :] * ramp)[:, :, None, :]
    return np.asarray(rows + (across[:, None, :] * ramp)[:, None, :, :])


def _rotate(x: Array, y: Array, left: Array, top: Array, angle: Array) -> tuple[Array, Array]:
    """The pixels' coordinates (n, 32, 32), relative to (left, top) and rotated by `angle`."""
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    dx, dy = x - left[:, None, None], y - top[:, None, None]
    return cos * dx + sin * dy, cos * dy - sin * dx


def _paint(canvas: Array, distance: Array, colour: Array) -> None:
    """Blend `colour` into `canvas` where distance, in pixels, is negative, with a smooth edge."""
    alpha = (0.5 - distance).clip(0, 1)[..., None]
    canvas += alpha * (colour - canvas)
