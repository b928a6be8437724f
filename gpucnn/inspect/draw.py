"""Arrays as pictures: tiles, heat maps, overlays and charts, and PNG files of them.

matplotlib is imported on first use; without it, MissingExtra is raised.  Pictures are uint8
(N, H, W, 3).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

import numpy as np

from gpucnn.arguments import printable
from gpucnn.errors import ArgumentError, ShapeError, missing_extra
from gpucnn.integers import ceil_div

File: TypeAlias = str | Path | BinaryIO
Theme: TypeAlias = Literal["light", "dark"]
Image: TypeAlias = Any  # numpy.ndarray: uint8 pictures, or maps

# paper, ink, faint ink, and two colours that colour-blind readers can distinguish on that paper
THEMES: dict[str, tuple[str, str, str, str, str]] = {
    "light": ("#ffffff", "#1b1d22", "#d5d8de", "#1f5fbf", "#c2570c"),
    "dark": ("#1c1f26", "#e7e9ee", "#3f4552", "#7db2ff", "#ffac66"),
}


def pictures(x: Any) -> Image:
    """Images (N, H, W, C) as uint8 (N, H, W, 3), each rescaled from its minimum and maximum.

    C is 3, or 1 for grey.  A constant image becomes mid-grey.  uint8 images keep their values.
    Raises ShapeError for other shapes.
    """
    x = np.asarray(x)
    if x.ndim != 4 or x.shape[3] not in (1, 3):
        raise ShapeError(f"pictures: expected (N, H, W, 3) or (N, H, W, 1), got {x.shape}")
    if x.dtype != np.uint8:
        low = x.min(axis=(1, 2, 3), keepdims=True)
        span = x.max(axis=(1, 2, 3), keepdims=True) - low
        flat = span == 0
        x = np.where(flat, 0.5, (x - low) / np.where(flat, 1, span))
        x = np.rint(x * 255).astype(np.uint8)
    return np.repeat(x, 3, axis=3) if x.shape[3] == 1 else x


def clip_outliers(x: Any) -> Image:
    """Clip each image of (N, H, W, C) to 2.5 standard deviations around its mean.

    For images from gradient ascent: without it, a few extreme pixels leave the rest grey.
    """
    x = np.asarray(x)
    mean = x.mean(axis=(1, 2, 3), keepdims=True)
    limit = 2.5 * x.std(axis=(1, 2, 3), keepdims=True)
    return x.clip(mean - limit, mean + limit)


def heatmap(maps: Any, symmetric: bool = False) -> Image:
    """Maps (N, H, W) as colours (N, H, W, 3), each rescaled from its minimum and maximum.

    With symmetric, 0 is white, negative values are blue and positive ones red, on one scale.
    """
    maps = np.asarray(maps, np.float64)
    if symmetric:
        largest = np.abs(maps).max(axis=(1, 2), keepdims=True)
        low, span = -largest, 2 * largest
    else:
        low = maps.min(axis=(1, 2), keepdims=True)
        span = maps.max(axis=(1, 2), keepdims=True) - low
    levels = np.where(span == 0, 0.5 if symmetric else 0, (maps - low) / np.where(span, span, 1))
    colours = _matplotlib().colormaps["RdBu_r" if symmetric else "inferno"](levels)
    return np.rint(colours[..., :3] * 255).astype(np.uint8)


def overlay(images: Any, maps: Any) -> Image:
    """Images (N, H, W, C) as pictures, dimmed where their maps (N, h, w) are low.

    Brightness is 20 % where a map is 0 and 100 % at its maximum.  Maps are resized to the images;
    negative values count as 0.
    """
    shown = pictures(images)
    maps = resize(np.asarray(maps, np.float64).clip(0, None), *shown.shape[1:3])
    largest = maps.max(axis=(1, 2), keepdims=True)
    brightness = 0.2 + 0.8 * maps / np.where(largest > 0, largest, 1)
    return np.rint(shown * brightness[..., None]).astype(np.uint8)


def resize(maps: Any, height: int, width: int) -> Image:
    """Resize maps (N, h, w) by bilinear interpolation between pixel centres; edges are repeated.

    Raises ShapeError unless maps is (N, h, w) without empty axes.
    """
    maps = np.asarray(maps)
    if maps.ndim != 3 or 0 in maps.shape:
        raise ShapeError(f"resize: expected maps (N, h, w), got shape {maps.shape}")
    for axis, size in ((1, height), (2, width)):
        source = maps.shape[axis]
        position = ((np.arange(size) + 0.5) * source / size - 0.5).clip(0, source - 1)
        first = position.astype(int)
        weight = (position - first).reshape((-1, 1) if axis == 1 else (-1,))
        second = np.minimum(first + 1, source - 1)
        maps = maps.take(first, axis) * (1 - weight) + maps.take(second, axis) * weight
    return maps


def tile(images: Image, columns: int | None = None, gap: int = 1) -> Image:
    """Arrange pictures (N, H, W, 3) in a grid: one RGBA picture (H', W', 4), with transparent gaps.

    columns None makes the grid about square.  Raises ArgumentError for no pictures.
    """
    n, h, w, _ = images.shape
    columns = min(n, columns or int(np.ceil(np.sqrt(n))))
    if columns < 1:
        raise ArgumentError("tile: expected at least one picture, got none")
    rows = ceil_div(n, columns)
    page = np.zeros((rows * (h + gap) - gap, columns * (w + gap) - gap, 4), np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (h + gap), i % columns * (w + gap)
        page[top : top + h, left : left + w, :3] = image
        page[top : top + h, left : left + w, 3] = 255
    return page


def write_png(path: File, image: Image, scale: int = 1) -> None:
    """Write an image (H, W, 3 or 4), uint8; each of its pixels becomes scale x scale pixels."""
    _matplotlib()
    from matplotlib.image import imsave

    enlarged = image.repeat(scale, axis=0).repeat(scale, axis=1)
    imsave(path, np.ascontiguousarray(enlarged), format="png")


def write_tiles(path: File, images: Image, columns: int | None = None) -> None:
    """Write pictures in a grid; small ones are enlarged to about 96 pixels."""
    write_png(path, tile(images, columns), max(1, 96 // max(images.shape[1:3])))


def write_maps(path: File, images: Any, maps: Any) -> None:
    """Write images in a row, each above its map."""
    shown = pictures(images)
    heatmaps = heatmap(resize(maps, *shown.shape[1:3]))
    write_tiles(path, np.concatenate([shown, heatmaps]), columns=len(shown))


def label(name: str) -> str:
    """A name from a file, as charts show it: printable, at most 24 characters."""
    name = printable(name).replace("\n", " ")
    return name if len(name) <= 24 else name[:23] + "…"


@contextmanager
def chart(
    path: File, theme: Theme, rows: int = 1, columns: int = 1, height: float = 3.0
) -> Iterator[tuple[Any, Any]]:
    """Yield (figure, axes (rows, columns)) to draw into, then write the figure as PNG.

    The figure is 4.4 inches wide and `height` inches high, so that its text is legible on a phone.
    Raises ArgumentError for an unknown theme.
    """
    if theme not in THEMES:
        raise ArgumentError(f"theme {theme!r} is unknown; expected {' or '.join(THEMES)}")
    paper, ink, faint, first, second = THEMES[theme]
    matplotlib = _matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style = {
        "font.size": 10,
        "figure.facecolor": paper,
        "axes.facecolor": paper,
        "axes.edgecolor": faint,
        "axes.labelcolor": ink,
        "axes.prop_cycle": matplotlib.cycler(color=[first, second]),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "grid.color": faint,
        "legend.frameon": False,
        "text.color": ink,
        "text.parse_math": False,  # a class may be called "$"
        "xtick.color": ink,
        "ytick.color": ink,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(4.4, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.subplots(rows, columns, squeeze=False)
        figure.savefig(path, dpi=180, format="png")


def colormap(theme: Theme) -> Any:
    """A colour map from the theme's paper at 0 to its first colour at 1."""
    _matplotlib()
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list(theme, [THEMES[theme][0], THEMES[theme][3]])


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise missing_extra("drawing", "matplotlib", "plot") from error
    return matplotlib
