"""Convolution on a GPU: which kernel computes a geometry, and its launch.

Each kernel is explained in its own file: start with kernels/conv2d_plain.cu, then
conv2d_forward.cu, conv2d_grad_input.cu and conv2d_grad_weight.cu.
"""

from dataclasses import dataclass

import numpy as np

from gpucnn import cuda
from gpucnn.device import Array, array_module
from gpucnn.integers import ceil_div
from gpucnn.ops._exact import total
from gpucnn.ops._kernels import takes
from gpucnn.ops.conv2d import portable
from gpucnn.ops.conv2d.algorithms import get_conv_algorithm
from gpucnn.ops.conv2d.engine import Cache, Gradients, Saved
from gpucnn.ops.geometry import Geometry
from gpucnn.ops.pool2d.cuda import max_forward
from gpucnn.ops.pool2d.portable import SavedMax

_FEW = 512  # kernels/conv2d_forward.cu: FEW_K
_MIN_CHANNELS = 8  # channels or filters of a group: with fewer, a tile's 64 columns are mostly idle
_MAX_VECTOR_FLOATS = 2**32  # half of what 31-bit offsets in float4 reach: the rest is for padding
_BLOCKS = 512  # the target of split sums: a few blocks for each multiprocessor of a large GPU
_MIN_SPLIT = 256  # the fewest pixels that a split of grad_weight sums


def forward(
    x: Array,
    weight: Array,
    bias: Array | None,
    g: Geometry,
    needs: tuple[bool, ...],
    relu: bool = False,
    pool: Geometry | None = None,
    cache: Cache | None = None,
) -> tuple[Array, Saved | None]:
    """y and the state for backward, None if no gradient is needed.  Nothing is cached."""
    if not takes("conv2d", x):
        return portable.forward(x, weight, bias, g, needs, relu, pool)
    xp = array_module(x)
    x, weight = xp.ascontiguousarray(x), xp.ascontiguousarray(weight)
    bias = None if bias is None else xp.ascontiguousarray(bias)
    y = convolve(x, weight, bias, g, relu)
    pooled = None
    if pool is not None:
        y, pooled = max_forward(y, pool, any(needs))
    return y, _Saved(x, weight, g, y if relu else None, pooled) if any(needs) else None


@dataclass
class _Saved:
    x: Array
    weight: Array
    g: Geometry
    y: Array | None  # the result, if a ReLU was fused
    pooled: SavedMax | None

    def backward(self, dy: Array, needs: tuple[bool, ...], last_use: bool) -> Gradients:
        dy = portable.unfused(dy, self.y, self.pooled)
        dy = array_module(dy).ascontiguousarray(dy)
        dx = dweight = dbias = None
        if needs[0]:
            dx = grad_input(dy, self.weight, self.g)
        if needs[1]:
            dweight, dbias = grad_weight(self.x, dy, self.g, needs[2])
        elif needs[2]:
            dbias = total(dy, (0, 1, 2))
        return dx, dweight, dbias


def convolve(x: Array, weight: Array, bias: Array | None, g: Geometry, relu: bool) -> Array:
    """y (N, OH, OW, OC), clipped at 0 with `relu`."""
    oc = weight.shape[0]
    y = array_module(x).empty((g.n, g.oh, g.ow, oc), np.float32)
    if _plain(g, oc) or oc // g.groups < _MIN_CHANNELS:
        cuda.launch_elementwise(
            "conv2d_forward_plain",
            y.size,
            x,  # (N, H, W, C)
            weight,  # (OC, KH, KW, C / groups)
            bias,  # (OC,) or None
            y,  # (N, OH, OW, OC)
            g,
            oc,
            relu,
        )
        return y
    channels, filters = g.c // g.groups, oc // g.groups
    pixels = g.n * g.oh * g.ow
    loads = _loads(x, weight, channels)
    if (loads == "scalar" or channels < _MIN_CHANNELS) and g.kh * g.kw * channels <= _FEW:
        loads = "few"
    rows, columns = _tile(pixels, filters, g.groups) if loads == "vector" else (128, 64)
    cuda.launch(
        f"conv2d_forward_{rows}x{columns}_{loads}",
        (ceil_div(pixels, rows), ceil_div(filters, columns), g.groups),
        rows * columns // 64,
        x,  # (N, H, W, C)
        weight,  # (OC, KH, KW, channels)
        bias,  # (OC,) or None
        y,  # (N, OH, OW, OC)
        g,
        channels,
        filters,
        relu,
    )
    return y


def grad_input(dy: Array, weight: Array, g: Geometry) -> Array:
    """dx (N, H, W, C), for dy (N, OH, OW, OC) of the convolution before ReLU and pooling."""
    oc = weight.shape[0]
    channels, filters = g.c // g.groups, oc // g.groups
    dx = array_module(dy).empty((g.n, g.h, g.w, g.c), np.float32)
    if _plain(g, oc) or channels < _MIN_CHANNELS:
        cuda.launch_elementwise(
            "conv2d_grad_input_plain",
            dx.size,
            dy,  # (N, OH, OW, OC)
            weight,  # (OC, KH, KW, C / groups)
            dx,  # (N, H, W, C)
            g,
            oc,
        )
        return dx
    # A phase is the pixels with the same row and column modulo the stride; this is the largest.
    pixels = g.n * ceil_div(g.h, g.stride_h) * ceil_div(g.w, g.stride_w)
    phases = g.groups * g.stride_h * g.stride_w
    loads = _loads(dy, weight, channels, filters)
    rows, columns = _tile(pixels, channels, phases) if loads == "vector" else (128, 64)
    cuda.launch(
        f"conv2d_grad_input_{rows}x{columns}_{loads}",
        (ceil_div(pixels, rows), ceil_div(channels, columns), phases),
        rows * columns // 64,
        dy,  # (N, OH, OW, OC)
        weight,  # (OC, KH, KW, channels)
        dx,  # (N, H, W, C)
        g,
        channels,
        filters,
    )
    return dx


def grad_weight(x: Array, dy: Array, g: Geometry, bias: bool) -> tuple[Array, Array | None]:
    """dweight (OC, KH, KW, C / groups) and, with `bias`, dbias (OC,): views of one array."""
    xp, oc = array_module(x), dy.shape[3]
    channels, filters = g.c // g.groups, oc // g.groups
    depth = g.kh * g.kw * channels  # floats in a filter
    pixels = g.n * g.oh * g.ow
    size = oc * depth + oc * bias  # floats of dweight and dbias
    plain = _plain(g, oc) or filters < _MIN_CHANNELS
    tiles = ceil_div(depth, 64) * ceil_div(filters, 128) * g.groups
    splits = 1 if plain else max(1, min(_BLOCKS // tiles, pixels // _MIN_SPLIT))
    part = xp.empty((splits, size), np.float32)
    if plain:
        cuda.launch_elementwise(
            "conv2d_grad_weight_plain",
            oc * depth,
            x,  # (N, H, W, C)
            dy,  # (N, OH, OW, OC)
            part,  # (OC, KH, KW, C / groups)
            g,
            oc,
        )
    else:
        cuda.launch(
            f"conv2d_grad_weight_128x64_{_loads(x, dy, channels, filters)}",
            (ceil_div(depth, 64), ceil_div(filters, 128), g.groups * splits),
            128,
            x,  # (N, H, W, C)
            dy,  # (N, OH, OW, OC)
            part,  # (splits, size)
            g,
            channels,
            filters,
            splits,
            size,
        )
    if bias:
        cuda.launch(
            "column_sums",
            (ceil_div(oc, 32), splits),
            256,
            dy,  # (N * OH * OW, OC)
            part.reshape(-1)[oc * depth :],  # (splits, size), from dbias on
            pixels,
            oc,
            size,
        )
    summed = part
    if splits > 1:
        summed = xp.empty(size, np.float32)
        cuda.launch_elementwise(
            "sum_splits",
            size,
            part,  # (splits, size)
            summed,  # (size,)
            size,
            splits,
        )
    summed = summed.reshape(-1)
    dweight = summed[: oc * depth].reshape(oc, g.kh, g.kw, channels)
    return dweight, summed[oc * depth :] if bias else None


def _plain(g: Geometry, oc: int) -> bool:
    """Whether the plain kernels run: as set, or because the tiled ones cannot."""
    return get_conv_algorithm() == "plain" or not _tiled(g, oc)


def _tiled(g: Geometry, oc: int) -> bool:
    """Whether the geometry fits the 31-bit offsets and the tables of the tiled kernels."""
    limit = 2**31 - 128
    padded = (g.h + g.top + g.bottom) * (g.w + g.left + g.right)
    return (
        g.kh + g.kw <= 31
        and padded * g.c < limit
        and max(g.oh * g.ow, padded) * oc < limit
        and g.n * max(g.oh * g.ow, g.h * g.w) < limit
        and oc * g.kh * g.kw * (g.c // g.groups) < limit
        and g.groups * g.stride_h * g.stride_w <= 65535
    )


def _loads(a: Array, b: Array, *counts: int) -> str:
    """How a kernel reads a and b: "vector" (16 bytes a load) if possible, else "scalar"."""
    whole = all(count % 4 == 0 for count in counts)
    aligned = a.data.ptr % 16 == 0 and b.data.ptr % 16 == 0
    in_reach = max(a.size, b.size) <= _MAX_VECTOR_FLOATS
    return "vector" if whole and aligned and in_reach else "scalar"


def _tile(rows: int, columns: int, products: int) -> tuple[int, int]:
    """Rows and columns of a block's tile: the larger one if that leaves enough blocks."""
    blocks = ceil_div(rows, 128) * ceil_div(columns, 128) * products
    return (128, 128) if columns > 64 and blocks >= _BLOCKS // 4 else (128, 64)
