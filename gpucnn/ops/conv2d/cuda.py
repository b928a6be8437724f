"""Convolution on a GPU: which kernel computes a geometry, and its launch.

Each kernel is explained in its own file: start with kernels/conv2d_plain.cu, then
conv2d_forward.cu and conv2d_grad_input.cu, which run on CUDA cores, and then the same with _tensor.
grad_weight.py has the gradient of the filters.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn import cuda
from gpucnn.cuda.tensor_plan import element_of
from gpucnn.device import Array, array_module, device_of
from gpucnn.integers import ceil_div
from gpucnn.ops._exact import narrowed, total
from gpucnn.ops._half import half_copy
from gpucnn.ops.conv2d import portable, tensor
from gpucnn.ops.conv2d.algorithms import get_conv_algorithm
from gpucnn.ops.conv2d.engine import Cache, Gradients, Saved
from gpucnn.ops.conv2d.grad_weight import grad_weight
from gpucnn.ops.conv2d.limits import loads as _loads
from gpucnn.ops.conv2d.limits import tiled as _tiled
from gpucnn.ops.geometry import Geometry
from gpucnn.ops.pool2d.cuda import max_backward, max_forward
from gpucnn.ops.pool2d.portable import SavedMax
from gpucnn.precision import is_half, uses_tf32

_FEW = 512  # kernels/conv2d_forward.cu: FEW_K
_MIN_CHANNELS = 8  # channels or filters of a group: with fewer, a tile's 64 columns are mostly idle
_BLOCKS = 512  # a few blocks for each multiprocessor of a large GPU
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
    dtype: np.dtype[Any] | None = None,
) -> tuple[Array, Saved | None]:
    """y and the state for backward, None if no gradient is needed.

    dtype is the half precision to compute in, under autocast; by default it is x's own dtype.  A
    copy of the weight in half precision is kept in `cache`.
    """
    dtype = dtype or x.dtype
    if not is_half(dtype) and dtype != np.float32:
        return portable.forward(x, weight, bias, g, needs, relu, pool)
    xp = array_module(x)
    x, weight = xp.ascontiguousarray(x), xp.ascontiguousarray(weight)
    bias = None if bias is None else xp.ascontiguousarray(bias)
    operands = Operands(weight, dtype, cache, tensor_element(x, dtype))
    y, image = convolve(x, operands, bias, g, relu)
    pooled = None
    if pool is not None:
        y, pooled = max_forward(y, pool, any(needs))
    if not any(needs):
        return y, None
    return y, CudaSaved(x, image, operands, g, y if relu else None, pooled)


def tensor_element(x: Array, dtype: np.dtype[Any]) -> str | None:
    """What tensor cores multiply for x: "half", "bfloat16" or "tf32"; None: only CUDA cores do."""
    device = device_of(x)
    return element_of(dtype, uses_tf32(device), cuda.card_of(device))


@dataclass(eq=False)
class Operands:
    """The filters (OC, KH, KW, C / groups) and the dtype that products are computed in."""

    weight: Array  # float32, or of `dtype`
    dtype: np.dtype[Any]
    cache: Cache | None  # of the weight
    element: str | None  # what tensor cores multiply

    @property
    def rounded(self) -> Array:
        """The weight in `dtype`, for tensor cores."""
        return half_copy(self.weight, self.dtype, self.cache)

    @property
    def wide(self) -> Array:
        """The weight in float32, for CUDA cores, which round it as they load it."""
        return self.weight if self.weight.dtype == np.float32 else self.weight.astype(np.float32)


@dataclass(eq=False)
class CudaSaved:
    """The state of a convolution on a GPU."""

    x: Array
    image: Array  # x as it was multiplied: perhaps rounded
    operands: Operands
    g: Geometry
    y: Array | None  # the result, if a ReLU was fused
    pooled: SavedMax | None

    def backward(
        self,
        dy: Array,
        needs: tuple[bool, ...],
        last_use: bool,
        mask: float | None = None,
        masked: bool = False,
    ) -> Gradients:
        """dx, dweight and dbias; autograd.Function explains `mask`, that of x, and `masked`."""
        y = None if masked else self.y
        if self.pooled is None:
            dy = portable.unfused(dy, y, None)
        else:  # one launch for the pooling and the ReLU before it
            dy = max_backward(dy, self.pooled, y, 1.0)
        dy = array_module(dy).ascontiguousarray(dy)
        dx = dweight = dbias = None
        weight = self.operands.weight
        if needs[0]:
            dx = grad_input(dy, self.operands, self.x, self.g, mask)
        if needs[1]:
            filters = dy.shape[3] // self.g.groups
            plain = _plain(self.g, dy.shape[3]) or filters < _MIN_CHANNELS
            dweight, dbias = grad_weight(self.image, dy, self.g, needs[2], plain, _MIN_SPLIT)
        elif needs[2]:
            dbias = total(dy, (0, 1, 2))
        dweight = None if dweight is None else narrowed(dweight, weight.dtype)
        return dx, dweight, None if dbias is None else narrowed(dbias, weight.dtype)


def convolve(
    x: Array, operands: Operands, bias: Array | None, g: Geometry, relu: bool
) -> tuple[Array, Array]:
    """y (N, OH, OW, OC) in the dtype of products, clipped at 0 with `relu`; and x as multiplied."""
    weight, oc = operands.weight, len(operands.weight)
    y = array_module(x).empty((g.n, g.oh, g.ow, oc), operands.dtype)
    if bias is not None and bias.dtype != np.float32:
        bias = bias.astype(np.float32)
    plain = _plain(g, oc)
    if not plain and operands.element is not None:
        chosen = tensor.forward_plan(g, oc, operands.element, cuda.card_of(device_of(x)))
        if chosen is not None:
            image, weight = narrowed(x, operands.dtype), operands.rounded
            if tensor.aligned(image, weight):
                tensor.convolve(chosen, operands.element, image, weight, bias, y, g, relu)
                return y, image
    weight = operands.wide
    if plain or oc // g.groups < _MIN_CHANNELS:
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
            defines=_types(x, y),
        )
        return y, x
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
        defines=_types(x, y),
    )
    return y, x


def grad_input(
    dy: Array,
    operands: Operands,
    x: Array,
    g: Geometry,
    mask: float | None = None,
    out: Array | None = None,
) -> Array:
    """dx (N, H, W, C) of x's dtype, for dy (N, OH, OW, OC) before ReLU and pooling.

    With `mask`, dx is multiplied by it where x is not 0, and by 0 where x is 0; without, x is not
    read.  `out` is written and returned instead of a new array.
    """
    oc = len(operands.weight)
    channels, filters = g.c // g.groups, oc // g.groups
    dx = array_module(dy).empty(x.shape, x.dtype) if out is None else out
    made, scale = (None, 1.0) if mask is None else (x, mask)
    plain = _plain(g, oc)
    if not plain and operands.element is not None:
        chosen = tensor.grad_input_plan(g, oc, operands.element, cuda.card_of(device_of(dy)))
        weight = operands.weight if chosen is None else operands.rounded
        if chosen is not None and tensor.aligned(dy, weight, x):
            tensor.grad_input(chosen, operands.element, dy, weight, made, dx, g, scale)
            return dx
    weight = operands.wide
    if plain or channels < _MIN_CHANNELS:
        cuda.launch_elementwise(
            "conv2d_grad_input_plain",
            dx.size,
            dy,  # (N, OH, OW, OC)
            weight,  # (OC, KH, KW, C / groups)
            made,  # (N, H, W, C) or None
            dx,  # (N, H, W, C)
            g,
            oc,
            scale,
            defines=_types(x, dy),
        )
        return dx
    # A phase is the pixels with the same row and column modulo the stride; this is the largest.
    pixels = g.n * ceil_div(g.h, g.stride_h) * ceil_div(g.w, g.stride_w)
    phases = g.groups * g.stride_h * g.stride_w
    loads = _loads(dy, weight, channels, filters)
    if loads == "vector" and x.data.ptr % 16:
        loads = "scalar"  # the mask is read 4 numbers at a time
    rows, columns = _tile(pixels, channels, phases) if loads == "vector" else (128, 64)
    cuda.launch(
        f"conv2d_grad_input_{rows}x{columns}_{loads}",
        (ceil_div(pixels, rows), ceil_div(channels, columns), phases),
        rows * columns // 64,
        dy,  # (N, OH, OW, OC)
        weight,  # (OC, KH, KW, channels)
        made,  # (N, H, W, C) or None
        dx,  # (N, H, W, C)
        g,
        channels,
        filters,
        scale,
        defines=_types(x, dy),
    )
    return dx


def _types(x: Array, y: Array) -> dict[str, cuda.Define] | None:
    """The types of the elements of x and y; None for float32, which the kernels' files assume."""
    if x.dtype == y.dtype == np.float32:
        return None
    return {"IMAGE": cuda.c_type(x.dtype), "ELEMENT": cuda.c_type(y.dtype)}


def _plain(g: Geometry, oc: int) -> bool:
    """Whether the plain kernels run: as set, or because the tiled ones cannot."""
    return get_conv_algorithm() == "plain" or not _tiled(g, oc)


def _tile(rows: int, columns: int, products: int) -> tuple[int, int]:
    """Rows and columns of a block's tile: the larger one if that leaves enough blocks."""
    blocks = ceil_div(rows, 128) * ceil_div(columns, 128) * products
    return (128, 128) if columns > 64 and blocks >= _BLOCKS // 4 else (128, 64)
