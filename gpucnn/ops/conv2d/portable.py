"""Convolution with any array module: windows as rows by as_strided (im2col), then matmul.

It serves float64 and float16 on a GPU, and empty images or no filters on NumPy.
"""

from dataclasses import dataclass

from gpucnn.device import Array, array_module
from gpucnn.ops._exact import total
from gpucnn.ops.conv2d.engine import Cache, Gradients, Saved
from gpucnn.ops.geometry import Geometry
from gpucnn.ops.pool2d.op import max_forward
from gpucnn.ops.pool2d.portable import SavedMax
from gpucnn.ops.relu import _relu, _relu_backward


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
    columns = _columns(x, g)
    y = columns @ _filters(weight, g).transpose(0, 2, 1)
    y = y.transpose(1, 0, 2).reshape(g.n, g.oh, g.ow, weight.shape[0])
    y = y if bias is None else y + bias
    pooled = None
    if pool is not None:
        y, pooled = max_forward(y, pool, any(needs))
    y = _relu(y) if relu else y  # commutes with max pooling, after which fewer elements are left
    saved = SavedPortable(x, weight, g, y if relu else None, pooled) if any(needs) else None
    return y, saved


@dataclass
class SavedPortable:
    x: Array
    weight: Array
    g: Geometry
    y: Array | None  # the result, if a ReLU was fused
    pooled: SavedMax | None

    def backward(self, dy: Array, needs: tuple[bool, ...], last_use: bool) -> Gradients:
        dy = unfused(dy, self.y, self.pooled)
        g, groups, weight = self.g, self.g.groups, self.weight
        dy_g = dy.reshape(g.n * g.oh * g.ow, groups, len(weight) // groups).transpose(1, 0, 2)
        dx = dweight = dbias = None
        if needs[0]:
            dx = _overlap_add(dy_g @ _filters(weight, g), g)
        if needs[1]:
            dweight = (dy_g.transpose(0, 2, 1) @ _columns(self.x, g)).reshape(weight.shape)
        if needs[2]:
            dbias = total(dy, (0, 1, 2))
        return dx, dweight, dbias


def unfused(dy: Array, y: Array | None, pooled: SavedMax | None) -> Array:
    """The gradient of the convolution itself, from that of the fused result.

    y is the fused result if a ReLU was fused; pooled is what the fused max pooling saved.
    """
    dy = dy if y is None else _relu_backward(dy, y)
    return dy if pooled is None else pooled.backward(dy)


def _filters(weight: Array, g: Geometry) -> Array:
    """The filters as (groups, OC / groups, KH * KW * C / groups)."""
    weight = array_module(weight).ascontiguousarray(weight)  # NumPy 2.0 passes only these to BLAS
    return weight.reshape(g.groups, weight.shape[0] // g.groups, g.kh * g.kw * (g.c // g.groups))


def _columns(x: Array, g: Geometry) -> Array:
    """Every window of x as one row: (groups, N * OH * OW, KH * KW * C / groups)."""
    xp = array_module(x)
    if g.padded:
        padded = xp.zeros((g.n, g.h + g.top + g.bottom, g.w + g.left + g.right, g.c), x.dtype)
        padded[:, g.top : g.top + g.h, g.left : g.left + g.w] = x
        x = padded
    sn, sh, sw, sc = x.strides
    depth = g.c // g.groups
    windows = xp.lib.stride_tricks.as_strided(
        x,
        (g.groups, g.n, g.oh, g.ow, g.kh, g.kw, depth),
        (
            depth * sc,
            sn,
            sh * g.stride_h,
            sw * g.stride_w,
            sh * g.dilation_h,
            sw * g.dilation_w,
            sc,
        ),
    )
    return windows.reshape(g.groups, g.n * g.oh * g.ow, g.kh * g.kw * depth)


def _overlap_add(dcolumns: Array, g: Geometry) -> Array:
    """The adjoint of _columns: add each row back to the window that it came from."""
    xp = array_module(dcolumns)
    depth = g.c // g.groups
    d = dcolumns.reshape(g.groups, g.n, g.oh, g.ow, g.kh, g.kw, depth)
    d = d.transpose(4, 5, 1, 2, 3, 0, 6)  # (KH, KW, N, OH, OW, groups, C / groups)
    padded = xp.zeros(
        (g.n, g.h + g.top + g.bottom, g.w + g.left + g.right, g.groups, depth), dcolumns.dtype
    )
    for r in range(g.kh):
        rows = slice(r * g.dilation_h, r * g.dilation_h + (g.oh - 1) * g.stride_h + 1, g.stride_h)
        for s in range(g.kw):
            left = s * g.dilation_w
            columns = slice(left, left + (g.ow - 1) * g.stride_w + 1, g.stride_w)
            padded[:, rows, columns] += d[r, s]
    dx = padded[:, g.top : g.top + g.h, g.left : g.left + g.w].reshape(g.n, g.h, g.w, g.c)
    return xp.ascontiguousarray(dx)
