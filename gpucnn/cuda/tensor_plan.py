"""Which tile computes a product on tensor cores, and in how many splits.

    plan(Product(128, 4096, 9216), "half", card)    128 rows, 4096 columns, 9216 of K

All kernels on tensor cores (kernels/*_tensor.cu) are compiled by `defines` from the same tiles.
The plan compares a handful of tiles and numbers of splits by the model of roofline.py; nothing is
measured, so that a card always gives the same plan.
"""

import functools
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gpucnn.cuda import roofline
from gpucnn.cuda.card import Card
from gpucnn.cuda.declarations import Define
from gpucnn.integers import ceil_div

LINE = 64  # bytes of K in a k-tile
BYTES = {"half": 2, "bfloat16": 2, "tf32": 4}  # of an element
PATHS = {"half": "fp16", "bfloat16": "bf16", "tf32": "tf32"}  # the names of their peaks


@dataclass(frozen=True)
class Tile:
    """The rows and columns of a block, and of a warp; kernels/tensor_tile.cuh."""

    m: int
    n: int
    warp_m: int
    warp_n: int
    resident: int  # blocks whose registers fit on a multiprocessor

    @property
    def threads(self) -> int:
        return self.m * self.n // (self.warp_m * self.warp_n) * 32

    def shared(self, stages: int) -> int:
        """Bytes of dynamic shared memory: the stages, or the buffers of the epilogue."""
        return max(
            stages * (self.m + self.n) * LINE, self.threads // 32 * 16 * (self.warp_n + 8) * 4
        )

    def blocks(self, stages: int, card: Card, table: int = 0) -> int:
        """Blocks that fit on a multiprocessor of `card`, with `table` more bytes for each."""
        return roofline.resident(card, self.threads, self.shared(stages) + table, self.resident)

    @property
    def passed(self) -> int:
        """Bytes that a block moves through shared memory for a k-tile.

        A k-tile is stored once; each warp loads its rows and columns.
        """
        warps = self.threads // 32
        return (self.m + self.n + warps * (self.warp_m + self.warp_n)) * LINE

    def __str__(self) -> str:
        return f"{self.m}x{self.n}"


TILES = (
    Tile(128, 128, 64, 64, 2),
    Tile(128, 64, 64, 32, 3),
    Tile(64, 192, 64, 48, 2),
    Tile(64, 64, 32, 32, 4),
)

# On sm_75 copies travel through registers.  With a pointer for each, and the sums of the largest
# tile, these kernels would need more than a thread has.
CONV_FILES_75 = ("conv2d_forward_tensor.cu", "conv2d_grad_input_tensor.cu")
CONV_TILES_75 = TILES[1:]

# The kernels on tensor cores, and the sets of defines besides element, result and tile.
PRODUCTS: dict[str, tuple[Mapping[str, Define], ...]] = {
    "conv2d_forward_tensor.cu": ({},),
    "conv2d_grad_input_tensor.cu": ({},),
    "conv2d_grad_weight_tensor.cu": ({},),
    "gemm_tensor.cu": ({"FORM": "NT"}, {"FORM": "NN"}, {"FORM": "TN"}),
}


@dataclass(frozen=True)
class Product:
    """`count` products (rows x depth) * (depth x columns).

    a, b, result: bytes of the two factors and the result as they lie in memory; 0 for those of
    matrices of elements.
    """

    rows: int
    columns: int
    depth: int
    count: int = 1  # of groups, or of phases of a strided gradient
    taps: int = 1  # parts of depth, each padded to whole k-tiles
    splittable: bool = True
    table: int = 0  # bytes of shared memory that a block needs besides its stages, at most
    a: int = 0
    b: int = 0
    result: int = 0
    # The factor that is read again by each further row of the grid: a if those are columns of tiles
    again: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Plan:
    tile: Tile
    stages: int
    splits: int
    why: str

    @property
    def shared(self) -> int:
        return self.tile.shared(self.stages)

    def defines(self, element: str) -> dict[str, Define]:
        """The defines of the tile; a kernel's types and other choices are its own."""
        return tile_defines(self.tile, self.stages, element)

    def explain(self) -> str:
        """The choice and its reason, in one line."""
        return self.why


def element_of(dtype: np.dtype[Any], tf32: bool, card: Card) -> str | None:
    """The tensor cores' name for numbers of `dtype`; None if the card's cannot multiply them.

    tf32: float32 may be multiplied in TF32.
    """
    if dtype == np.float16:
        return "half" if card.sm >= 75 else None
    if card.sm < 80:
        return None
    if dtype.name == "bfloat16":
        return "bfloat16"
    return "tf32" if dtype == np.float32 and tf32 else None


@functools.cache
def plan(product: Product, element: str, card: Card, tiles: tuple[Tile, ...] = TILES) -> Plan:
    """The tile and splits with the least predicted time; element is "half", "bfloat16" or "tf32".

    Where that is the time of device memory, which many share, the one with the least sum of all
    times wins; then the fewest splits, and the first of `tiles`.
    """
    candidates: list[tuple[float, float, int, int, Tile, int, str]] = []
    for tile in tiles:
        stages = _stages(tile, card, product.table)
        for splits in _splits(_k_tiles(product, element)) if product.splittable else (1,):
            seconds, rest, bound = _time(product, element, tile, stages, splits, card)
            order = len(candidates)
            candidates.append((seconds, rest, splits, order, tile, stages, bound))
    seconds, _, splits, _, tile, stages, bound = min(candidates, key=lambda c: c[:4])
    grid, held = _grid(product, tile), tile.blocks(stages, card, product.table)
    why = (
        f"{element} {product.rows}x{product.columns}x{product.depth}"
        f"{f' times {product.count}' if product.count > 1 else ''} on {card}: tiles of {tile}, "
        f"{stages} stages, {grid} blocks"
        f"{f' in {splits} splits' if splits > 1 else ''}, "
        f"{held} on each of {card.multiprocessors} multiprocessors; "
        f"predicted {seconds * 1e6:.1f} us, {bound}"
    )
    return Plan(tile, stages, splits, why)


def _stages(tile: Tile, card: Card, table: int = 0) -> int:
    """The most stages, up to 4, with which as many blocks fit as with 2."""
    most = tile.blocks(2, card, table)
    if card.sm < 80:  # without asynchronous copies a third stage waits for nothing
        return 2
    return max(stages for stages in (2, 3, 4) if tile.blocks(stages, card, table) == most)


def _splits(k_tiles: int) -> list[int]:
    """Numbers of splits to consider: each has at least 4 k-tiles."""
    return [s for s in (*range(1, 33), 48, 64) if s == 1 or s * 4 <= k_tiles]


def _grid(product: Product, tile: Tile) -> int:
    return ceil_div(product.rows, tile.m) * ceil_div(product.columns, tile.n) * product.count


def _k_tiles(product: Product, element: str) -> int:
    line = LINE // BYTES[element]
    return product.taps * ceil_div(ceil_div(product.depth, product.taps), line)


def load_of(
    product: Product, element: str, tile: Tile, stages: int, splits: int, card: Card
) -> roofline.Load:
    """What the launch asks of `card`.  Not known here: biases, masks, tables of taps."""
    size = BYTES[element]
    depth = ceil_div(_k_tiles(product, element), splits)  # k-tiles of a split
    tiling = roofline.Tiling(
        product.rows,
        product.columns,
        product.depth,
        product.count,
        tile.m,
        tile.n,
        splits,
        depth * (LINE // size),
    )
    a = product.a or product.count * product.rows * product.depth * size
    b = product.b or product.count * product.columns * product.depth * size
    result = product.result or product.count * product.rows * product.columns * size
    sums = 2 * 4 * tiling.blocks * tile.m * tile.n if splits > 1 else 0  # written and read
    of_a = product.again == "a"
    return roofline.Load(
        a + b + result + sums,
        tiling.read(size, size) + result + sums,
        PATHS[element],
        tiling.issued,
        blocks=tiling.blocks,
        threads=tile.threads,
        resident=tile.blocks(stages, card, product.table),
        shared=tiling.blocks * depth * tile.passed,
        meets=splits > 1,
        factors=a + b,
        again=a if of_a else b,
        rows=tiling.columns if of_a else tiling.rows,
        in_rows=tiling.rows * tiling.columns,
    )


def _time(
    product: Product, element: str, tile: Tile, stages: int, splits: int, card: Card
) -> tuple[float, float, str]:
    """Seconds, the sum of all times, and what bounds them."""
    load, chip = load_of(product, element, tile, stages, splits, card), roofline.chip_of(card)
    time = roofline.time_of(load, chip)
    return time.seconds, sum(roofline.times_of(load, chip).values()), time.bound


# --- every kernel that a plan can choose ---


def tile_defines(tile: Tile, stages: int, element: str) -> dict[str, Define]:
    return {
        "ELEMENT": element,
        "TILE_M": tile.m,
        "TILE_N": tile.n,
        "WARP_M": tile.warp_m,
        "WARP_N": tile.warp_n,
        "BLOCKS": tile.resident,
        "STAGES": stages,
    }


@dataclass(frozen=True)
class Specialisation:
    """One way to compile a kernel on tensor cores."""

    file: str
    element: str
    tile: Tile
    stages: int
    defines: tuple[tuple[str, Define], ...]

    @property
    def title(self) -> str:
        rest = " ".join(str(value) for _, value in self.defines[7:])
        return f"{self.file.removesuffix('.cu')} {rest} {self.element} {self.tile}".replace(
            "  ", " "
        )

    @property
    def options(self) -> tuple[str, ...]:
        return tuple(f"-D{name}={value}" for name, value in self.defines)

    @property
    def shared_bytes(self) -> int:
        return self.tile.shared(self.stages)

    def exists_on(self, architecture: int) -> bool:
        """sm_75 has float16 only, two stages, and convolutions with smaller tiles."""
        if architecture >= 80:
            return self.stages > 2
        tiles = CONV_TILES_75 if self.file in CONV_FILES_75 else TILES
        return self.stages == 2 and self.element == "half" and self.tile in tiles


def specialisations(files: tuple[str, ...] = ()) -> Iterator[Specialisation]:
    """Every kernel on tensor cores of `files` (default: all), with float32 results."""
    for file in files or tuple(PRODUCTS):
        for extra, element, tile, stages in itertools.product(PRODUCTS[file], BYTES, TILES, (4, 2)):
            if stages == 2 and element != "half":
                continue
            defines = {**tile_defines(tile, stages, element), **extra}
            yield Specialisation(file, element, tile, stages, tuple(defines.items()))
