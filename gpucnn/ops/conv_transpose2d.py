"""Transposed convolution: the gradient of conv2d's images as a forward pass.

It has no engine of its own.  A convolution with the same filters leads from the result's shape to
x's, and its three products change places:

    y         its gradient for the images, where x is the gradient of its result
    dx        its result, where dy is the images
    dweight   its gradient for the filters, where dy is the images and x the gradient
"""

import dataclasses
import math
from typing import Any

import numpy as np

from gpucnn.autograd import Function
from gpucnn.device import Array, array_module, by_device
from gpucnn.errors import ArgumentError, ShapeError
from gpucnn.integers import is_int
from gpucnn.ops._checks import check_bias_and_dtypes
from gpucnn.ops._exact import narrowed, sum_rows, wide, widened
from gpucnn.ops._half import rounded
from gpucnn.ops.conv2d import cpu, cuda, portable
from gpucnn.ops.conv2d.engine import Cache, Gradients, Saved
from gpucnn.ops.conv2d.fusion import Epilogue
from gpucnn.ops.conv2d.im2col import SavedIm2col
from gpucnn.ops.elementwise import as_tensor
from gpucnn.ops.geometry import Geometry, Padding, Size, pair
from gpucnn.precision import is_half
from gpucnn.tensor import Tensor

_NONE = (False, False, False)


def conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Tensor:
    """Add up C filters, each at every pixel of x and multiplied by it: the adjoint of conv2d.

    x is (N, H, W, C), weight (C, KH, KW, OC / groups), bias (OC,); the result is (N, OH, OW, OC)
    with OH = (H - 1) * stride - top - bottom + (KH - 1) * dilation + output_padding + 1.  Sizes are
    in pixels.  Pixel (i, j) of x adds to rows i * stride - top + r * dilation for r in 0..KH-1;
    columns likewise.  padding cuts off the edges of the result: an int, (vertical, horizontal) or
    ((top, bottom), (left, right)).  output_padding leaves rows and columns at bottom and right
    that stride would skip.  With groups, channel c contributes to the outputs of group
    c // (C / groups) only.

    A conv2d with the same filters, stride, padding and dilation maps the result's shape to x's, and
    this is the gradient of its images.  On the CPU it runs on im2col, and only dx on Winograd.
    Under autocast the operands are rounded to half precision, sums and bias are float32, and the
    result has half precision, as for conv2d.

    Raises ShapeError if channels, groups or bias do not fit or nothing is left of the result;
    ArgumentError unless output_padding is smaller than stride or dilation, and for padding "same"
    and "valid"; DtypeError if dtypes differ.
    Source: Zeiler et al. 2010, section 3.
    """
    x, weight = as_tensor(x), as_tensor(weight)
    g = _geometry(x, weight, stride, padding, output_padding, groups, dilation)
    dtype = check_bias_and_dtypes("conv_transpose2d", x, weight, bias, g.c)
    cache = weight.cache() if weight.is_leaf else None
    return _ConvTranspose2d(g, cache, dtype)(x, weight, bias)


def _geometry(
    x: Tensor,
    weight: Tensor,
    stride: Size,
    padding: Padding,
    output_padding: Size,
    groups: int,
    dilation: Size,
) -> Geometry:
    """The geometry of the convolution from the result's shape to x's."""
    op = "conv_transpose2d"
    if x.ndim != 4:
        raise ShapeError(f"{op}: expected images (N, H, W, C), got shape {x.shape}")
    if weight.ndim != 4:
        raise ShapeError(
            f"{op}: expected weight (C, KH, KW, OC / groups), got shape {weight.shape}"
        )
    c, kh, kw, depth = weight.shape
    if not is_int(groups) or groups < 1 or c % groups:
        raise ShapeError(f"{op}: {groups} groups do not divide the {c} filters of {weight.shape}")
    if x.shape[3] != c:
        raise ShapeError(
            f"{op}: x has {x.shape[3]} channels, weight expects {c}\n"
            f"  x {x.shape}, weight {weight.shape}; build the layer with in_channels={x.shape[3]}"
        )
    if isinstance(padding, str):
        raise ArgumentError(
            f"{op}: padding {padding!r} has no meaning here; expected an int, "
            "(vertical, horizontal) or ((top, bottom), (left, right))"
        )
    sides = Geometry.of(op, (1, 1, 1, 1), 1, 1, padding)
    steps, holes = pair(op, "stride", stride, 1), pair(op, "dilation", dilation, 1)
    extra = pair(op, "output_padding", output_padding, 0)
    if any(e >= max(s, d) for e, s, d in zip(extra, steps, holes, strict=True)):
        raise ArgumentError(
            f"{op}: output_padding {output_padding} must be smaller than stride {stride} or "
            f"dilation {dilation}"
        )
    cut = sides.top + sides.bottom, sides.left + sides.right
    oh, ow = (
        (n - 1) * s - c + (k - 1) * d + e + 1
        for n, s, c, k, d, e in zip(x.shape[1:3], steps, cut, (kh, kw), holes, extra, strict=True)
    )
    if min(oh, ow, *x.shape[1:3]) < 1:
        raise ShapeError(
            f"{op}: x {x.shape} with a window of {kh} x {kw}, stride {stride}, "
            f"padding {padding} leaves {oh} x {ow} pixels"
        )
    both = (sides.top, sides.bottom), (sides.left, sides.right)
    images = x.shape[0], oh, ow, depth * groups
    g = Geometry.of(op, images, (kh, kw), steps, both, holes, groups)
    # With output_padding beyond the stride, further windows fit, which x has no pixels for.
    return dataclasses.replace(g, oh=x.shape[1], ow=x.shape[2])


class _ConvTranspose2d(Function):
    name = "conv_transpose2d"

    def __init__(self, geometry: Geometry, cache: Cache | None, dtype: np.dtype[Any] | None):
        self.geometry, self.cache, self.dtype = geometry, cache, dtype

    def forward(self, x: Array, weight: Array, bias: Array | None) -> Array:
        dtype = self.dtype or x.dtype
        y, self.saved = _forward(x, weight, bias, self.geometry, dtype, self.cache)
        return y

    def backward(self, dy: Array) -> Gradients:
        dtypes = (None if a is None else a.dtype for a in self.inputs)  # type: ignore[union-attr]
        found = self.saved.backward(dy, self.needs)
        dx, dweight, dbias = (
            None if gradient is None else narrowed(gradient, dtype)
            for gradient, dtype in zip(found, dtypes, strict=True)
        )
        return dx, dweight, dbias


# --- NumPy, and any array module for float64 ---


def _forward_array(
    x: Array,
    weight: Array,
    bias: Array | None,
    g: Geometry,
    dtype: np.dtype[Any],
    cache: Cache | None,
) -> tuple[Array, "_Saved"]:
    """y in `dtype`, and the state for backward.  Half precision is computed in float32."""
    xp = array_module(x)
    x, weight = (
        rounded(a, dtype) if is_half(dtype) else xp.ascontiguousarray(a) for a in (x, weight)
    )
    (y, _, _) = _products(x, weight, g, x).backward(x, (True, False, False), False)
    if bias is not None:
        y += widened(bias)
    return narrowed(y, dtype), _Saved(x, weight, g)


@dataclasses.dataclass(eq=False)
class _Saved:
    """What was multiplied: rounded, if in half precision."""

    x: Array
    weight: Array
    g: Geometry

    def backward(self, dy: Array, needs: tuple[bool, ...]) -> Gradients:
        x, weight, g = self.x, self.weight, self.g
        half, dy = dy.dtype, array_module(dy).ascontiguousarray(widened(dy))
        dx = dweight = dbias = None
        if needs[0]:
            convolve = cpu.forward if isinstance(dy, np.ndarray) else portable.forward
            dx = convolve(dy, weight, None, g, _NONE)[0]
            dx = rounded(dx, half) if is_half(half) else dx
        if needs[1]:
            dweight = _products(dy, weight, g, x).backward(x, (False, True, False), False)[1]
        if needs[2]:
            rows = dy.reshape(math.prod(dy.shape[:3]), dy.shape[3])
            dbias = sum_rows(rows) if isinstance(dy, np.ndarray) else rows.sum(axis=0)
        return dx, dweight, dbias


def _products(images: Array, weight: Array, g: Geometry, gradient: Array) -> Saved:
    """The convolution's gradients.  For that of its images, `images` is not read."""
    if isinstance(images, np.ndarray) and weight.size and images.size and gradient.size:
        return SavedIm2col(images, weight, g, Epilogue(g, len(weight), weight.dtype, False, None))
    return portable.SavedPortable(images, weight, g, None, None)


# --- CUDA ---


def _forward_cuda(
    x: Array,
    weight: Array,
    bias: Array | None,
    g: Geometry,
    dtype: np.dtype[Any],
    cache: Cache | None,
) -> tuple[Array, "_Saved | _SavedCuda"]:
    if not is_half(dtype) and dtype != np.float32:
        return _forward_array(x, weight, bias, g, dtype, cache)
    xp = array_module(x)
    x, weight = xp.ascontiguousarray(narrowed(x, dtype)), xp.ascontiguousarray(weight)
    operands = cuda.Operands(weight, dtype, cache, cuda.tensor_element(x, dtype))
    sums = dtype if bias is None else np.float32  # the bias is added before rounding
    y = xp.empty((g.n, g.h, g.w, g.c), sums)
    cuda.grad_input(x, operands, y, g, out=y)
    if bias is not None:
        y += widened(bias)
    return narrowed(y, dtype), _SavedCuda(x, operands, g)


@dataclasses.dataclass(eq=False)
class _SavedCuda:
    x: Array  # as it was multiplied
    operands: cuda.Operands
    g: Geometry

    def backward(self, dy: Array, needs: tuple[bool, ...]) -> Gradients:
        dy = array_module(dy).ascontiguousarray(dy)
        dx = dweight = dbias = None
        if needs[0]:
            dx = cuda.convolve(dy, self.operands, None, self.g, False)[0]
        if needs[1]:
            products = cuda.CudaSaved(dy, dy, self.operands, self.g, None, None)
            dweight = products.backward(self.x, (False, True, False), False)[1]
        if needs[2]:
            dbias = dy.sum(axis=(0, 1, 2), dtype=wide(dy.dtype))
        return dx, dweight, dbias


_forward: Any = by_device(cpu=_forward_array, cuda=_forward_cuda)
