"""The gradient of a convolution's filters and bias on a GPU, in one launch.

Of kernels/conv2d_grad_weight*.cu, all but the plain one split the sum over the pixels between
blocks.
"""

from dataclasses import dataclass

import numpy as np

from gpucnn import cuda
from gpucnn.cuda.tensor_plan import BYTES, Plan, Product, element_of, plan
from gpucnn.device import Array, array_module, device_of
from gpucnn.integers import ceil_div
from gpucnn.ops.conv2d.limits import loads
from gpucnn.ops.geometry import Geometry
from gpucnn.precision import uses_tf32

FAMILY = 4  # kernels/split_sum.cuh: parts that one block adds
_BLOCKS = 512  # the target of split sums: a few blocks for each multiprocessor of a large GPU
_BIAS_FILTERS = 32  # kernels/bias_sum.cuh: filters of a block that sums dy
_PLAIN_THREADS = 256  # of a block of the plain kernel
_THREADS = 128  # of a block of the tiled ones on CUDA cores
_NARROW = 32  # K of a tile of kernels/conv2d_grad_weight_narrow.cu
_ROW = 1 << 16  # what a row of x adds to a place in Walk
_MOST_CHUNKS = 2**30  # half of what 31-bit offsets reach: the rest is for padding
_CHUNK = 16  # bytes that the tensor-core kernel copies at a time


def grad_weight(
    x: Array, dy: Array, g: Geometry, bias: bool, plain: bool, min_split: int
) -> tuple[Array, Array | None]:
    """dweight (OC, KH, KW, C / groups) and, with `bias`, dbias (OC,): float32 views of one array.

    x and dy are float32, float16 or bfloat16, and of the same dtype; or x is float32 and dy is not:
    x is then rounded to dy's dtype.  `plain` selects the plain kernel; a split on CUDA cores sums
    at least `min_split` pixels.
    """
    if plain:
        return _on_plain(x, dy, g, bias)
    element = tensor_element(x, dy, g)
    if element is None:
        return on_cuda_cores(x, dy, g, bias, min_split)
    chosen = tensor_plan(g, dy.shape[3], element, cuda.card_of(device_of(x)))
    return on_tensor_cores(x, dy, g, bias, element, chosen)


def tensor_element(x: Array, dy: Array, g: Geometry) -> str | None:
    """What tensor cores multiply here: "half", "bfloat16" or "tf32"; None if they cannot."""
    if x.dtype != dy.dtype:
        return None
    device = device_of(x)
    chunk = _CHUNK // x.dtype.itemsize
    whole = g.c // g.groups % chunk == 0 and dy.shape[3] // g.groups % chunk == 0
    aligned = x.data.ptr % _CHUNK == 0 and dy.data.ptr % _CHUNK == 0
    if not (whole and aligned and Walk.reaches(g, dy.shape[3], chunk)):
        return None
    return element_of(x.dtype, uses_tf32(device), cuda.card_of(device))


def tensor_plan(g: Geometry, oc: int, element: str, card: cuda.Card) -> Plan:
    """The tile and the splits: OC / groups filters of K numbers, summed over the pixels."""
    depth, pixels = g.kh * g.kw * g.c // g.groups, g.n * g.oh * g.ow
    size = BYTES[element]
    product = Product(
        rows=oc // g.groups,
        columns=depth,
        depth=max(pixels, 1),
        count=g.groups,
        a=pixels * oc * size,  # dy
        b=g.n * g.h * g.w * g.c * size,  # x
        result=oc * depth * 4,
        again="b",
    )
    return plan(product, element, card)


# --- launches ---


def _on_plain(x: Array, dy: Array, g: Geometry, bias: bool) -> tuple[Array, Array | None]:
    whole, dweight, dbias = _results(x, dy, g, bias)
    cuda.launch(
        "conv2d_grad_weight_plain",
        ceil_div(whole.size, _PLAIN_THREADS),
        _PLAIN_THREADS,
        x,  # (N, H, W, C)
        dy,  # (N, OH, OW, OC)
        dweight,  # (OC, KH, KW, C / groups)
        dbias,  # (OC,) or None
        g,
        dy.shape[3],
        defines=_types(x, dy),
    )
    return dweight, dbias


def on_cuda_cores(
    x: Array, dy: Array, g: Geometry, bias: bool, min_split: int
) -> tuple[Array, Array | None]:
    """A tiled kernel: as grad_weight, for any numbers of channels and filters."""
    channels, filters = g.c // g.groups, dy.shape[3] // g.groups
    if g.kh * g.kw * channels > _NARROW and loads(x, dy, channels, filters) == "vector":
        kernel, rows, columns = "128x64", 128, 64
    else:
        kernel, rows, columns = f"32x64_{loads(dy, dy, filters)}", 64, 32
    _, dweight, dbias = _results(x, dy, g, bias)
    split = _Split.of(g, dy.shape[3], bias, rows, columns)
    splits = max(1, min(_BLOCKS // split.tiles, g.n * g.oh * g.ow // min_split))
    workspace, arrived = split.memory(x, splits)
    cuda.launch(
        f"conv2d_grad_weight_{kernel}",
        split.grid(splits),
        _THREADS,
        x,  # (N, H, W, C)
        dy,  # (N, OH, OW, OC)
        dweight,  # (OC, KH, KW, channels)
        dbias,  # (OC,) or None
        workspace,
        arrived,
        g,
        channels,
        filters,
        splits,
        defines=_types(x, dy),
    )
    return dweight, dbias


def on_tensor_cores(
    x: Array, dy: Array, g: Geometry, bias: bool, element: str, chosen: Plan
) -> tuple[Array, Array | None]:
    """The tensor-core kernel with the tile and splits of `chosen`: as grad_weight.

    element: "half", "bfloat16" or "tf32"; channels and filters of a group are multiples of 16
    bytes, and x and dy aligned to 16 bytes.
    """
    tile, chunk = chosen.tile, _CHUNK // x.dtype.itemsize
    _, dweight, dbias = _results(x, dy, g, bias)
    split = _Split.of(g, dy.shape[3], bias, tile.m, tile.n)
    workspace, arrived = split.memory(x, chosen.splits)
    cuda.launch(
        "conv2d_grad_weight_tensor",
        split.grid(chosen.splits),
        tile.threads,
        x,  # (N, H, W, C)
        dy,  # (N, OH, OW, OC)
        dweight,  # (OC, KH, KW, channels)
        dbias,  # (OC,) or None
        workspace,
        arrived,
        g,
        Walk.of(g, dy.shape[3], 4 * chunk, chunk, tile.threads // 8),
        g.c // g.groups,
        dy.shape[3] // g.groups,
        chosen.splits,
        shared=chosen.shared,
        defines=chosen.defines(element),
    )
    return dweight, dbias


@dataclass(frozen=True)
class Walk:
    """How a pixel's place in x advances by a k-tile: kernels/conv2d_grad_weight_tensor.cu."""

    place: int
    chunks: int
    column_end: int
    column_place: int
    column_chunks: int
    row_end: int
    row_chunks: int
    last_place: int
    dy_chunks: int
    dy_pass: int

    @staticmethod
    def of(g: Geometry, oc: int, pixels: int, chunk: int, lines: int) -> "Walk":
        """`pixels` of a k-tile; `chunk` numbers in 16 bytes; `lines` copied at once."""
        images, rest = divmod(pixels, g.oh * g.ow)
        rows, columns = rest // g.ow * g.stride_h, rest % g.ow * g.stride_w
        deep = g.c // chunk  # chunks of a pixel
        column_end, row_end = g.ow * g.stride_w, g.oh * g.stride_h
        return Walk(
            place=rows * _ROW + columns,
            chunks=((images * g.h + rows) * g.w + columns) * deep,
            column_end=column_end,
            column_place=g.stride_h * _ROW - column_end,
            column_chunks=(g.stride_h * g.w - column_end) * deep,
            row_end=row_end * _ROW,
            row_chunks=(g.h - row_end) * g.w * deep,
            last_place=(g.h - 1) * _ROW + g.w - 1,
            dy_chunks=pixels * oc // chunk,
            dy_pass=lines * oc // chunk,
        )

    @staticmethod
    def reaches(g: Geometry, oc: int, chunk: int) -> bool:
        """Whether rows and columns, padding included, have 15 bits, and chunks 31."""
        if g.n * max(g.h * g.w * g.c, g.oh * g.ow * oc) > _MOST_CHUNKS * chunk:
            return False
        rows = max(g.oh * g.stride_h, g.h) + max(g.top, g.kh * g.dilation_h)
        columns = max(g.ow * g.stride_w, g.w) + max(g.left, g.kw * g.dilation_w)
        return max(rows, columns) < _ROW // 2


@dataclass(frozen=True)
class _Split:
    """The tiles of a split sum, those of dweight and then those of dbias, and their memory."""

    k_tiles: int
    filter_tiles: int
    groups: int
    size: int  # floats of a tile
    bias_columns: int  # of blocks
    bias_tiles: int

    @staticmethod
    def of(g: Geometry, oc: int, bias: bool, rows: int, columns: int) -> "_Split":
        depth = g.kh * g.kw * g.c // g.groups
        return _Split(
            ceil_div(depth, columns),
            ceil_div(oc // g.groups, rows),
            g.groups,
            rows * columns,
            rows // _BIAS_FILTERS * bias,
            (oc // _BIAS_FILTERS + g.groups) * bias,
        )

    @property
    def tiles(self) -> int:
        return self.k_tiles * self.filter_tiles * self.groups

    def grid(self, splits: int) -> tuple[int, int, int]:
        return self.k_tiles + self.bias_columns, self.filter_tiles, self.groups * splits

    def memory(self, x: Array, splits: int) -> tuple[Array | None, Array | None]:
        """The workspace and the counters; None with one split."""
        if splits == 1:
            return None, None
        families, left = 0, splits
        while left > 1:
            left = ceil_div(left, FAMILY)
            families += left
        floats = splits * (self.tiles * self.size + self.bias_tiles * _BIAS_FILTERS)
        workspace = array_module(x).empty(floats, np.float32)
        return workspace, cuda.counters(device_of(x), (self.tiles + self.bias_tiles) * families)


def _results(x: Array, dy: Array, g: Geometry, bias: bool) -> tuple[Array, Array, Array | None]:
    """One array, and the parts of it: dweight and dbias."""
    oc, channels = dy.shape[3], g.c // g.groups
    depth = g.kh * g.kw * channels
    whole = array_module(x).empty(oc * depth + oc * bias, np.float32)
    dweight = whole[: oc * depth].reshape(oc, g.kh, g.kw, channels)
    return whole, dweight, whole[oc * depth :] if bias else None


def _types(x: Array, dy: Array) -> dict[str, cuda.Define]:
    return {"IMAGE": cuda.c_type(x.dtype), "ELEMENT": cuda.c_type(dy.dtype)}
