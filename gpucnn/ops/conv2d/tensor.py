"""Convolution on tensor cores: what they can compute, the choice of a tile, and the launches.

kernels/conv2d_forward_tensor.cu and conv2d_grad_input_tensor.cu explain the kernels; grad_weight.py
has those of the gradient of the filters.
"""

import functools

from gpucnn import cuda
from gpucnn.cuda.card import Card
from gpucnn.cuda.tensor_plan import BYTES, CONV_TILES_75, TILES, Plan, Product, Tile, plan
from gpucnn.device import Array
from gpucnn.integers import ceil_div
from gpucnn.ops.conv2d.limits import tiled
from gpucnn.ops.geometry import Geometry

_MOST_STAGES = 4
_CHUNK = 16  # bytes that a thread copies at once
_MIN_COLUMNS = 8  # filters or channels of a group: with fewer, a tile's 64 columns are mostly idle


@functools.cache
def forward_plan(g: Geometry, oc: int, element: str, card: Card) -> Plan | None:
    """The tile that computes y on `card`, or None: tensor cores cannot, CUDA cores do.

    element is "half", "bfloat16" or "tf32".  The same arguments always give the same plan, and
    `plan.explain()` its reason in a line.
    """
    channels, filters = g.c // g.groups, oc // g.groups
    if not _fits(g, oc, element, channels) or filters < _MIN_COLUMNS:
        return None
    taps, size = g.kh * g.kw, BYTES[element]
    product = Product(
        rows=g.n * g.oh * g.ow,
        columns=filters,
        depth=taps * channels,
        count=g.groups,
        taps=taps,
        splittable=False,
        table=_table(g, _MOST_STAGES),
        a=g.n * g.h * g.w * g.c * size,
        b=oc * taps * channels * size,
        result=g.n * g.oh * g.ow * oc * size,
    )
    return plan(product, element, card, _tiles(card))


@functools.cache
def grad_input_plan(g: Geometry, oc: int, element: str, card: Card) -> Plan | None:
    """The tile that computes dx, or None; as forward_plan."""
    channels, filters = g.c // g.groups, oc // g.groups
    if not _fits(g, oc, element, channels, filters) or channels < _MIN_COLUMNS:
        return None
    phases = g.stride_h * g.stride_w
    taps, size = ceil_div(g.kh * g.kw, phases), BYTES[element]  # of a phase, on average
    product = Product(
        rows=_largest_phase(g),
        columns=channels,
        depth=taps * filters,
        count=g.groups * phases,
        taps=taps,
        splittable=False,
        table=_table(g, _MOST_STAGES) + 4 * max(tile.m for tile in _tiles(card)),
        a=g.n * g.oh * g.ow * oc * size,
        b=oc * g.kh * g.kw * channels * size,
        result=g.n * g.h * g.w * g.c * size,
    )
    return plan(product, element, card, _tiles(card))


def _tiles(card: Card) -> tuple[Tile, ...]:
    return TILES if card.sm >= 80 else CONV_TILES_75


def _fits(g: Geometry, oc: int, element: str, *contiguous: int) -> bool:
    """Whether `contiguous` numbers are whole copies, and byte offsets fit in 31 bits."""
    size = BYTES[element]
    padded = (g.h + g.top + g.bottom) * (g.w + g.left + g.right)
    return (
        all(count * size % _CHUNK == 0 for count in contiguous)
        and tiled(g, oc)
        and max(padded * max(g.c, oc), oc * g.kh * g.kw * (g.c // g.groups)) * size < 2**31
    )


def _largest_phase(g: Geometry) -> int:
    """The number of pixels with the same row and the same column modulo the stride."""
    return g.n * ceil_div(g.h, g.stride_h) * ceil_div(g.w, g.stride_w)


def _table(g: Geometry, stages: int) -> int:
    """Bytes of the table of taps: kernels/conv2d_tensor.cuh."""
    return 16 * (g.kh * g.kw + stages + 1)


def aligned(*arrays: Array) -> bool:
    """Whether the kernels can copy from these arrays."""
    return all(array.data.ptr % _CHUNK == 0 for array in arrays)


def convolve(
    chosen: Plan,
    element: str,
    x: Array,
    weight: Array,
    bias: Array | None,
    y: Array,
    g: Geometry,
    relu: bool,
) -> None:
    """Set y (N, OH, OW, OC) to the convolution, clipped at 0 with `relu`.

    x and weight are numbers of `element`, aligned to 16 bytes; bias is float32; y of x's dtype.
    """
    channels, filters = g.c // g.groups, len(weight) // g.groups
    tile = chosen.tile
    cuda.launch(
        "conv2d_forward_tensor",
        (ceil_div(g.n * g.oh * g.ow, tile.m), ceil_div(filters, tile.n), g.groups),
        tile.threads,
        x,  # (N, H, W, C)
        weight,  # (OC, KH, KW, channels)
        bias,  # (OC,) or None
        y,  # (N, OH, OW, OC)
        g,
        channels,
        filters,
        relu,
        shared=chosen.shared + _table(g, chosen.stages),
        defines=chosen.defines(element) | {"RESULT": cuda.c_type(y.dtype)},
    )


def grad_input(
    chosen: Plan,
    element: str,
    dy: Array,
    weight: Array,
    mask: Array | None,
    dx: Array,
    g: Geometry,
    mask_scale: float,
) -> None:
    """Set dx (N, H, W, C); with `mask`, of dx's shape and dtype, times mask_scale * (mask != 0).

    dy and weight are numbers of `element`, aligned to 16 bytes; dx may be float32.
    """
    channels, filters = g.c // g.groups, len(weight) // g.groups
    tile, phases = chosen.tile, g.groups * g.stride_h * g.stride_w
    cuda.launch(
        "conv2d_grad_input_tensor",
        (ceil_div(_largest_phase(g), tile.m), ceil_div(channels, tile.n), phases),
        tile.threads,
        dy,  # (N, OH, OW, OC)
        weight,  # (OC, KH, KW, channels)
        mask,  # (N, H, W, C) or None
        dx,  # (N, H, W, C)
        g,
        channels,
        filters,
        mask_scale,
        shared=chosen.shared + 4 * tile.m + _table(g, chosen.stages),  # an int for each row
        defines=chosen.defines(element) | {"RESULT": cuda.c_type(dx.dtype)},
    )
