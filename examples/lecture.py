"""The numbers of the lecture, computed by gpucnn.

    python examples/lecture.py                # print them
    python examples/lecture.py --out lecture  # and draw them as PNG files (needs matplotlib)

The lecture is E. Valla, "Introduction to Deep Learning. Convolutional Neural Networks", TalTech,
2022; its formula and its 8x8 grid are from C. Aggarwal, "Neural Networks and Deep Learning", 2018.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

import gpucnn
from gpucnn import ops
from gpucnn.arguments import exit_status, output_folder
from gpucnn.files import writing
from gpucnn.integers import ceil_div

Grid = np.ndarray[Any, np.dtype[Any]]


def grid(text: str) -> Grid:
    """A matrix from text: rows separated by slashes, of digits or of numbers with spaces."""
    rows = [row.split() if " " in row else row for row in text.split("/")]
    return np.array([[int(number) for number in row] for row in rows], dtype=np.float32)


# The letter M and a deformed M; 1 is ink
M = grid(
    "000000000/010000010/011000110/010101010/010010010/010000010/010000010/010000010/000000000"
)
DEFORMED_M = grid(
    "000000000/001000100/010101010/010101010/010010010/010000010/010000010/010000010/000000000"
)
# The strokes of an M
FILTERS = {
    "falling stroke": grid("100/010/001"),
    "rising stroke": grid("001/010/100"),
    "meeting point": grid("101/010/000"),
}
# The image of the slides on strides, padding and pooling.  Some slides have 7 in row 4, column 5;
# only 2 gives the pooling result that they print.
NUMBERS = grid(
    "63425017/30987544/70135032/24012842/30403210/42165081/02441568/05312030"
)  # fmt: skip


def images(*channels: Grid) -> gpucnn.Tensor:
    """One image (1, H, W, C) from a matrix (H, W) per channel."""
    return gpucnn.tensor(np.stack(channels, axis=-1)[None])


def filters(*matrices: Grid) -> gpucnn.Tensor:
    """Filters (OC, KH, KW, 1) from matrices (KH, KW)."""
    return gpucnn.tensor(np.stack(matrices)[..., None])


def convolve_by_hand(h: Grid, w: Grid) -> Grid:
    """The slide's formula, symbol by symbol, for h (L, B, d) and w (F, F, d, p).

    h'[i, j, p] = sum over r, s, k of w[r, s, k, p] * h[i + r - 1, j + s - 1, k]

    The slide counts from 1 and Python from 0, hence the - 1 in each index.
    """
    L, B, d = h.shape
    F, _, _, d_next = w.shape
    result = np.zeros((L - F + 1, B - F + 1, d_next), h.dtype)
    for i in range(1, L - F + 2):
        for j in range(1, B - F + 2):
            for p in range(1, d_next + 1):
                for r in range(1, F + 1):
                    for s in range(1, F + 1):
                        for k in range(1, d + 1):
                            result[i - 1, j - 1, p - 1] += (
                                w[r - 1, s - 1, k - 1, p - 1] * h[i + r - 2, j + s - 2, k - 1]
                            )
    return result


# --- the slides: each function returns {name: array} ---


def find_strokes(letter: Grid) -> dict[str, Grid]:
    """A 7x7 feature map for each filter: 9 - 3 + 1 = 7."""
    maps = ops.conv2d(images(letter), filters(*FILTERS.values())).numpy()[0]
    w = np.stack(list(FILTERS.values()), axis=-1)[:, :, None]  # (F, F, d, p), as the slide has it
    by_hand = convolve_by_hand(letter[..., None], w)
    assert np.array_equal(maps, by_hand), "the formula and gpucnn disagree"
    return {name: maps[..., p] for p, name in enumerate(FILTERS)}


def strides() -> dict[str, Grid]:
    """A 3x3 filter of ones sums its window; a larger stride skips positions."""
    ones = filters(np.ones((3, 3), np.float32))
    return {
        f"stride {stride}": ops.conv2d(images(NUMBERS), ones, stride=stride).numpy()[0, ..., 0]
        for stride in (1, 2)
    }


def padding() -> dict[str, Grid]:
    """Zero padding of the 8x8 grid, and 3x3 convolutions with "valid" and "same" padding."""
    ones = filters(np.ones((3, 3), np.float32))
    padded = ops.pad(images(NUMBERS), ((0, 0), (2, 2), (2, 2), (0, 0)))
    return {
        "padded by 2": padded.numpy()[0, ..., 0],
        "valid": ops.conv2d(images(NUMBERS), ones, padding="valid").numpy()[0, ..., 0],
        "same": ops.conv2d(images(NUMBERS), ones, padding="same").numpy()[0, ..., 0],
    }


def pooling() -> dict[str, Grid]:
    """3x3 max pooling with stride 2 of the upper left 7x7; windows overlap by one pixel."""
    corner = NUMBERS[:7, :7]
    pooled = ops.max_pool2d(images(corner), 3, stride=2).numpy()[0, ..., 0]
    return {"upper left 7x7": corner, "max pooling": pooled}


def colour_image() -> Grid:
    """An image of numbers 0 ... 255, (8, 8, 3): a red disc on a blue gradient."""
    row, column = np.mgrid[:8, :8]
    disc = (row - 3.5) ** 2 + (column - 3.5) ** 2 < 9
    red, green = np.where(disc, 255, 0), np.where(disc, 40, 0)
    blue = np.where(disc, 40, 36 * column)
    return np.stack([red, green, blue], axis=-1).astype(np.uint8)


def handwritten_digit() -> Grid:
    """The slide's handwritten digit, (28, 28), numbers 0 ... 255."""
    path = Path(__file__).with_name("data") / "lecture_digit.csv"
    return np.loadtxt(path, delimiter=",", dtype=np.uint8)


# --- printing and drawing ---


def show(name: str, matrix: Grid) -> None:
    """Print a matrix under its name and size."""
    width = len(str(int(matrix.max())))
    print(f"\n{name}, {matrix.shape[0]}x{matrix.shape[1]}:")
    for row in matrix:
        print("  " + " ".join(f"{int(number):{width}d}" for number in row))


def draw(panels: dict[str, Grid], columns: int) -> Any:
    """A matplotlib figure with a panel per matrix; small ones show their numbers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = ceil_div(len(panels), columns)
    figure = Figure(figsize=(3.2 * columns, 3.5 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, matrix) in zip(
        figure.subplots(rows, columns, squeeze=False).flat, panels.items(), strict=True
    ):
        of_pixels = matrix.dtype == np.uint8  # otherwise, larger numbers are darker
        image = axes.imshow(
            matrix, cmap="gray" if of_pixels else "Blues", vmin=0, vmax=255 if of_pixels else None
        )
        axes.set(title=name, xticks=[], yticks=[])
        if matrix.ndim == 2 and len(matrix) <= 12:
            brightness = image.to_rgba(matrix)[..., :3] @ (0.2126, 0.7152, 0.0722)
            for (i, j), number in np.ndenumerate(matrix):
                ink = "white" if brightness[i, j] < 0.55 else "black"
                axes.text(j, i, int(number), ha="center", va="center", fontsize=8, color=ink)
    return figure


def figures() -> dict[str, tuple[dict[str, Grid], int]]:
    """{file name: (panels, columns)} of every figure."""
    maps = {name: find_strokes(letter) for name, letter in LETTERS.items()}
    colours = colour_image()
    return {
        "filters": (FILTERS, 3),
        "letter_m": ({"the letter M": M, **maps["M"]}, 4),
        "deformed_m": ({"a deformed M": DEFORMED_M, **maps["deformed M"]}, 4),
        "strides": ({"8x8": NUMBERS, **strides()}, 3),
        "padding": ({"8x8": NUMBERS, **padding()}, 4),
        "pooling": (pooling(), 2),
        "colour_image": (
            {"8x8x3": colours}
            | {name: colours[..., c] for c, name in enumerate(("red", "green", "blue"))},
            4,
        ),
        "handwritten_digit": ({"28x28": handwritten_digit()}, 1),
    }


LETTERS = {"M": M, "deformed M": DEFORMED_M}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for PNG files")
    out = parser.parse_args(argv).out

    print("An image is a matrix of numbers from 0 to 255.  In colour it has a third axis:")
    colours = colour_image()
    for c, name in enumerate(("red", "green", "blue")):
        show(f"{name} of {' x '.join(map(str, colours.shape))}", colours[..., c])
    show("A handwritten digit", handwritten_digit())

    print("\nA filter slides over the image; its products with each window are summed:")
    for name, w in FILTERS.items():
        show(f"filter for the {name}", w)
    for name, letter in LETTERS.items():
        show(f"the letter {name}" if name == "M" else f"a {name}", letter)
        for stroke, feature_map in find_strokes(letter).items():
            show(f"{stroke} in the {name}", feature_map)
            best = np.argwhere(feature_map == feature_map.max()) + 1
            where = ", ".join(f"({i}, {j})" for i, j in best)
            print(f"  strongest: {int(feature_map.max())} of 3, at (row, column) {where}")
    print("\nAt least 2 of 3 in every map: the filters find the deformed M too.")

    print("\nStride, padding and pooling of one 8x8 image; the 3x3 filter is all ones:")
    show("image", NUMBERS)
    for part in (strides(), padding(), pooling()):
        for name, matrix in part.items():
            show(name, matrix)

    return 0 if out is None else exit_status(lambda: save_figures(out))


def save_figures(folder: Path) -> None:
    """Write every figure to `folder` as PNG; without matplotlib, print why not."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        print(f'no PNG files in {folder}: they need matplotlib: pip install "gpucnn[plot]"')
        return
    output_folder(folder)
    for name, (panels, columns) in figures().items():
        path = folder / f"{name}.png"
        with writing(path):
            draw(panels, columns).savefig(path, dpi=120)
        print(f"drawn: {path}")


if __name__ == "__main__":
    sys.exit(main())
