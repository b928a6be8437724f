"""Convolution on a GPU: which kernel takes a geometry, and its launch.

How the kernels work is told where they are: kernels/conv2d_plain.cu first, then conv2d_forward.cu,
conv2d_grad_input.cu and conv2d_grad_weight.cu.
"""

import numpy as np

from gpucnn import cuda
from gpucnn.device import Array, array_module
from gpucnn.integers import ceil_div
from gpucnn.ops.geometry import Geometry

_THREADS = 256  # of a block whose threads own one number each
_FEW = 512  # kernels/conv2d_forward.cu: FEW_K
_LEAST = 8  # channels or filters per group: with fewer, a tile's 64 columns are nearly empty
_QUADS = 2**32  # floats that 31-bit offsets in quads reach, with as much again for the padding
_BLOCKS = 512  # a few for each multiprocessor of a large GPU: what splitting a sum aims at
_SPLIT = 256  # pixels that a split of the grad-weight's sum has at least


def forward(x: Array, w: Array, b: Array | None, v: Geometry, relu: bool, plain: bool) -> Array:
    """y (N, OH, OW, OC), clipped at 0 if `relu`.

    The plain kernel makes it if `plain`, or where the tiled ones do not apply.
    """
    oc = w.shape[0]
    y = array_module(x).empty((v.n, v.oh, v.ow, oc), np.float32)
    if plain or not _tiled(v, oc) or oc // v.groups < _LEAST:
        cuda.launch(
            "conv2d_forward_plain",
            ceil_div(y.size, _THREADS),
            _THREADS,
            x,  # (N, H, W, C)
            w,  # (OC, KH, KW, C / groups)
            b,  # (OC,) or None
            y,  # (N, OH, OW, OC)
            v,
            oc,
            relu,
        )
        return y
    channels, filters = v.c // v.groups, oc // v.groups
    pixels = v.n * v.oh * v.ow
    loads = _loads(x, w, channels)
    if (loads == "scalar" or channels < _LEAST) and v.kh * v.kw * channels <= _FEW:
        loads = "few"
    rows, columns = _tile(pixels, filters, v.groups) if loads == "vector" else (128, 64)
    cuda.launch(
        f"conv2d_forward_{rows}x{columns}_{loads}",
        (ceil_div(pixels, rows), ceil_div(filters, columns), v.groups),
        rows * columns // 64,
        x,  # (N, H, W, C)
        w,  # (OC, KH, KW, channels)
        b,  # (OC,) or None
        y,  # (N, OH, OW, OC)
        v,
        channels,
        filters,
        relu,
    )
    return y


def grad_input(dy: Array, w: Array, v: Geometry, plain: bool) -> Array:
    """dx (N, H, W, C), for the gradient dy of what the convolution gave before any clipping."""
    oc = w.shape[0]
    channels, filters = v.c // v.groups, oc // v.groups
    dx = array_module(dy).empty((v.n, v.h, v.w, v.c), np.float32)
    if plain or not _tiled(v, oc) or channels < _LEAST:
        cuda.launch(
            "conv2d_grad_input_plain",
            ceil_div(dx.size, _THREADS),
            _THREADS,
            dy,  # (N, OH, OW, OC)
            w,  # (OC, KH, KW, C / groups)
            dx,  # (N, H, W, C)
            v,
            oc,
        )
        return dx
    # Pixels of the largest phase: those whose row and column leave the same remainder.
    pixels = v.n * ceil_div(v.h, v.stride_h) * ceil_div(v.w, v.stride_w)
    phases = v.groups * v.stride_h * v.stride_w
    loads = _loads(dy, w, channels, filters)
    rows, columns = _tile(pixels, channels, phases) if loads == "vector" else (128, 64)
    cuda.launch(
        f"conv2d_grad_input_{rows}x{columns}_{loads}",
        (ceil_div(pixels, rows), ceil_div(channels, columns), phases),
        rows * columns // 64,
        dy,  # (N, OH, OW, OC)
        w,  # (OC, KH, KW, channels)
        dx,  # (N, H, W, C)
        v,
        channels,
        filters,
    )
    return dx


def grad_weight(
    x: Array, dy: Array, oc: int, v: Geometry, bias: bool, plain: bool
) -> tuple[Array, Array | None]:
    """dw (OC, KH, KW, C / groups) and, if `bias`, db (OC,): two parts of one array."""
    xp = array_module(x)
    channels, filters = v.c // v.groups, oc // v.groups
    depth = v.kh * v.kw * channels  # floats in a filter
    pixels = v.n * v.oh * v.ow
    size = oc * depth + oc * bias  # floats of dw and db
    plain = plain or not _tiled(v, oc) or filters < _LEAST
    tiles = ceil_div(depth, 64) * ceil_div(filters, 128) * v.groups
    splits = 1 if plain else max(1, min(_BLOCKS // tiles, pixels // _SPLIT))
    part = xp.empty((splits, size), np.float32)
    if plain:
        cuda.launch(
            "conv2d_grad_weight_plain",
            ceil_div(oc * depth, _THREADS),
            _THREADS,
            x,  # (N, H, W, C)
            dy,  # (N, OH, OW, OC)
            part,  # (OC, KH, KW, C / groups)
            v,
            oc,
        )
    else:
        cuda.launch(
            f"conv2d_grad_weight_128x64_{_loads(x, dy, channels, filters)}",
            (ceil_div(depth, 64), ceil_div(filters, 128), v.groups * splits),
            128,
            x,  # (N, H, W, C)
            dy,  # (N, OH, OW, OC)
            part,  # (splits, size)
            v,
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
            part.reshape(-1)[oc * depth :],  # (splits, size) from db on
            pixels,
            oc,
            size,
        )
    total = part
    if splits > 1:
        total = xp.empty(size, np.float32)
        cuda.launch(
            "sum_splits",
            ceil_div(size, _THREADS),
            _THREADS,
            part,  # (splits, size)
            total,  # (size,)
            size,
            splits,
        )
    total = total.reshape(-1)
    dw = total[: oc * depth].reshape(oc, v.kh, v.kw, channels)
    return dw, total[oc * depth :] if bias else None


def _tiled(v: Geometry, oc: int) -> bool:
    """Whether the tiled kernels' 31-bit offsets and tables take this geometry."""
    limit = 2**31 - 128
    padded = (v.h + v.top + v.bottom) * (v.w + v.left + v.right)
    return (
        v.kh + v.kw <= 31
        and padded * v.c < limit
        and max(v.oh * v.ow, padded) * oc < limit
        and v.n * max(v.oh * v.ow, v.h * v.w) < limit
        and oc * v.kh * v.kw * (v.c // v.groups) < limit
        and v.groups * v.stride_h * v.stride_w <= 65535
    )


def _loads(a: Array, b: Array, *counts: int) -> str:
    """How a kernel reads a and b: 16 bytes at a time where counts, addresses and sizes allow it."""
    whole = all(count % 4 == 0 for count in counts)
    aligned = a.data.ptr % 16 == 0 and b.data.ptr % 16 == 0
    near = max(a.size, b.size) <= _QUADS
    return "vector" if whole and aligned and near else "scalar"


def _tile(rows: int, columns: int, products: int) -> tuple[int, int]:
    """The rows and columns of a block: the larger tile if it leaves enough blocks."""
    blocks = ceil_div(rows, 128) * ceil_div(columns, 128) * products
    return (128, 128) if columns > 64 and blocks >= _BLOCKS // 4 else (128, 64)
