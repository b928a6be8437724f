"""Two-dimensional convolution: what a filter sees, and the three gradients of it.

The result is what deep learning calls a convolution (a cross-correlation: filters are not
flipped).  On the CPU the work is done by one of the engines beside this file.
"""

from typing import Any

import numpy as np

from gpucnn.autograd import Function
from gpucnn.device import Array, array_module, by_device
from gpucnn.errors import ArgumentError, DtypeError, ShapeError
from gpucnn.integers import ceil_div
from gpucnn.ops._exact import total
from gpucnn.ops._kernels import takes
from gpucnn.ops.conv2d import cuda as _conv2d_cuda
from gpucnn.ops.conv2d import im2col as _im2col
from gpucnn.ops.conv2d import space_to_batch as _lattice
from gpucnn.ops.conv2d.fusion import Epilogue
from gpucnn.ops.geometry import Geometry, Padding, Size
from gpucnn.ops.pool2d.op import _max_backward, _max_forward, max_window
from gpucnn.ops.relu import _relu, _relu_backward
from gpucnn.tensor import Tensor

Pool = tuple[Size, Size | None, Padding, bool]  # window, stride, padding, ceil
Gradients = tuple[Array | None, Array | None, Array | None]


def conv2d(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    relu: bool = False,
    pool: Pool | None = None,
) -> Tensor:
    """Slide OC filters over images: y[n, i, j, o] = b[o] + sum of window (i, j) times w[o].

    x is (N, H, W, C), w is (OC, KH, KW, C / groups), b is (OC,); the result is (N, OH, OW, OC)
    with OH = (H + top + bottom - (KH - 1) * dilation - 1) // stride + 1.  Sizes are in pixels.
    padding adds zeros: an int, (vertical, horizontal), ((top, bottom), (left, right)), "valid" or
    "same".  With groups, filter o sees the channels of group o // (OC / groups) alone.
    relu clips the result at 0, as ops.relu would.  pool are the arguments of ops.max_pool2d after
    its first, (window, stride, padding, ceil), and does what that would do next.  On the CPU both
    are done while a part of the result is still in the cache, so that what is pooled never lies in
    memory as a whole; on a GPU the convolution's kernel clips, and the pool's own follows.

    On the CPU most layers are computed by Winograd's algorithm, where one extreme pixel costs its
    whole tile digits, and one that is not finite makes it NaN: set_conv_algorithm gives the bound.

    Raises ShapeError if channels, groups or filters do not fit, DtypeError if dtypes differ.
    """
    window = _geometry(x, w, b, stride, padding, dilation, groups)
    shape = (window.n, window.oh, window.ow, w.shape[0])
    return _Conv2d(window, relu, None if pool is None else max_window(shape, *pool))(x, w, b)


def _geometry(
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    stride: Size,
    padding: Padding,
    dilation: Size,
    groups: int,
) -> Geometry:
    if w.ndim != 4:
        raise ShapeError(f"conv2d: expected filters (OC, KH, KW, C / groups), got shape {w.shape}")
    oc, kh, kw, depth = w.shape
    window = Geometry.of("conv2d", x.shape, (kh, kw), stride, padding, dilation, groups)
    if not isinstance(groups, int) or groups < 1 or window.c % groups or oc % groups:
        raise ShapeError(
            f"conv2d: {groups} groups do not divide {window.c} channels and {oc} filters\n"
            f"  x {x.shape}, w {w.shape}"
        )
    if depth != window.c // groups:
        raise ShapeError(
            f"conv2d: x has {window.c} channels, w expects {depth * groups}\n"
            f"  x {x.shape}, w {w.shape}, groups {groups}; "
            f"build the layer with in_channels={window.c}"
        )
    if b is not None and b.shape != (oc,):
        raise ShapeError(f"conv2d: expected a bias of shape ({oc},), got {b.shape}")
    if x.dtype != w.dtype or (b is not None and b.dtype != x.dtype) or x.dtype.kind != "f":
        raise DtypeError(
            f"conv2d: x is {x.dtype}, w is {w.dtype}, b is {None if b is None else b.dtype}\n"
            "  expected one floating-point dtype for all; convert with .astype"
        )
    return window


class _Conv2d(Function):
    """Convolution, and what is done with its result before it leaves."""

    name = "conv2d"

    def __init__(self, window: Geometry, relu: bool, pool: Geometry | None) -> None:
        self.geometry, self.relu, self.pool = window, relu, pool

    def forward(self, x: Array, w: Array, b: Array | None) -> Array:
        y, self.saved = _forward(x, w, b, self.geometry, self.needs, self.relu, self.pool)
        return y

    def backward(self, dy: Array) -> Gradients:
        assert self.saved is not None
        given: Gradients = _backward(dy, self.saved, self.geometry, self.needs, self.last_use)
        return given


# --- any array module: im2col by strides and matmul ---


def _forward_array(
    x: Array,
    w: Array,
    b: Array | None,
    window: Geometry,
    needs: tuple[bool, ...],
    relu: bool = False,
    pool: Geometry | None = None,
) -> tuple[Array, tuple[Any, ...]]:
    """The result, and what backward needs."""
    columns = _columns(x, window)  # (groups, N * OH * OW, KH * KW * C / groups)
    y = columns @ _filters(w, window).transpose(0, 2, 1)
    y = y.transpose(1, 0, 2).reshape(window.n, window.oh, window.ow, w.shape[0])
    y = y if b is None else y + b
    y, finished = _finish(y, relu, pool, any(needs))
    return y, (x, w, finished)


def _finish(
    y: Array, relu: bool, pool: Geometry | None, keep: bool
) -> tuple[Array, tuple[Any, ...]]:
    """The convolution's result clipped and pooled, and what the way back needs."""
    y, pooled = (y, ()) if pool is None else _max_forward(y, pool, keep)
    y = _relu(y) if relu else y  # after the pooling, which it would not change, there is less of it
    return y, (y if relu else None, pool, pooled)


def _unfinish(dy: Array, finished: tuple[Any, ...]) -> Array:
    """The gradient of the convolution's result, from that of what _finish made of it."""
    y, pool, pooled = finished
    dy = dy if y is None else _relu_backward(dy, y)
    return dy if pool is None else _max_backward(dy, pooled, pool)


def _backward_array(
    dy: Array,
    kept: tuple[Any, ...],
    window: Geometry,
    needs: tuple[bool, ...],
    last_use: bool = False,
) -> Gradients:
    """dx, dw and db, as far as needed."""
    x, w, finished = kept
    dy = _unfinish(dy, finished)
    v, groups = window, window.groups
    dy_g = dy.reshape(v.n * v.oh * v.ow, groups, w.shape[0] // groups).transpose(1, 0, 2)
    dx = dw = db = None
    if needs[0]:
        dcolumns = dy_g @ _filters(w, v)  # (groups, N * OH * OW, KH * KW * C / groups)
        dx = _overlap_add(dcolumns, v)
    if needs[1]:
        dw_g = dy_g.transpose(0, 2, 1) @ _columns(x, v)
        dw = dw_g.reshape(w.shape)
    if needs[2]:
        db = total(dy, (0, 1, 2))
    return dx, dw, db


def _filters(w: Array, window: Geometry) -> Array:
    """The filters as (groups, OC / groups, KH * KW * C / groups)."""
    w = array_module(w).ascontiguousarray(w)  # NumPy 2.0 keeps other arrays from BLAS
    return w.reshape(window.groups, w.shape[0] // window.groups, w[0].size)


def _columns(x: Array, window: Geometry) -> Array:
    """Every window of x as one row: (groups, N * OH * OW, KH * KW * C / groups)."""
    v, xp = window, array_module(x)
    if v.padded:
        padded = xp.zeros((v.n, v.h + v.top + v.bottom, v.w + v.left + v.right, v.c), x.dtype)
        padded[:, v.top : v.top + v.h, v.left : v.left + v.w] = x
        x = padded
    sn, sh, sw, sc = x.strides
    depth = v.c // v.groups
    windows = xp.lib.stride_tricks.as_strided(
        x,
        (v.groups, v.n, v.oh, v.ow, v.kh, v.kw, depth),
        (
            depth * sc,
            sn,
            sh * v.stride_h,
            sw * v.stride_w,
            sh * v.dilation_h,
            sw * v.dilation_w,
            sc,
        ),
    )
    return windows.reshape(v.groups, v.n * v.oh * v.ow, v.kh * v.kw * depth)


def _overlap_add(dcolumns: Array, window: Geometry) -> Array:
    """The adjoint of _columns: each row added back to the window that it came from."""
    v, xp = window, array_module(dcolumns)
    depth = v.c // v.groups
    d = dcolumns.reshape(v.groups, v.n, v.oh, v.ow, v.kh, v.kw, depth)
    d = d.transpose(4, 5, 1, 2, 3, 0, 6)  # (KH, KW, N, OH, OW, groups, C / groups)
    padded = xp.zeros(
        (v.n, v.h + v.top + v.bottom, v.w + v.left + v.right, v.groups, depth), dcolumns.dtype
    )
    for r in range(v.kh):
        rows = slice(r * v.dilation_h, r * v.dilation_h + (v.oh - 1) * v.stride_h + 1, v.stride_h)
        for s in range(v.kw):
            left = s * v.dilation_w
            columns = slice(left, left + (v.ow - 1) * v.stride_w + 1, v.stride_w)
            padded[:, rows, columns] += d[r, s]
    dx = padded[:, v.top : v.top + v.h, v.left : v.left + v.w].reshape(v.n, v.h, v.w, v.c)
    return xp.ascontiguousarray(dx)


# --- NumPy ---


def set_conv_algorithm(name: str) -> None:
    """How conv2d computes, for this process.

    "auto"      the fastest for the shape: the rule is in `conv_algorithm`
    "winograd"  Winograd wherever it applies, however small the image or few the channels
    "im2col"    one matrix product over windows copied out of the image
    "exact"     the same, under the name of what it is good for: its float32 error is that of the
                plain sum: 5e-7 of the largest value over 384 channels, Winograd's 5e-6
    "plain"     on a GPU the kernel to read first, one thread for each number, in place of the
                tiled ones, which every other name means there; on the CPU the same as "im2col"

    Winograd's error is a share of the largest value in a tile, not of the result, and nothing is
    checked: ask for "exact" where values are orders of magnitude apart.  It stays below

        s * sum over the channels of (largest |x| in the tile) * (sum of the filter's |w|)

    in float32 with s = 6.5e-6 for tiles of 4 x 4 results, which see 6 x 6 pixels, and for filters
    of 5 x 5, s = 7.2e-7 for tiles of 2 x 2 with filters of 3 x 3.  That is 3 a 2**-24: a = 36 or 4
    is the most by which the transforms magnify a pixel on its way to a result, and each of three
    steps (of the image, over the channels, of the results) rounds once; of random extremes the
    worst reached a third of it.  An infinite pixel or a NaN makes NaN of every result of the tiles
    that see it: up to 64 for each filter of 3 x 3, where the plain sum has 9.

    Raises ArgumentError for another name.
    """
    global _algorithm
    if name not in _ALGORITHMS:
        raise ArgumentError(
            f"set_conv_algorithm: {name!r} is unknown\n  expected {', '.join(_ALGORITHMS)}"
        )
    _algorithm = name


def get_conv_algorithm() -> str:
    """The name that `set_conv_algorithm` was last given; "auto" before."""
    return _algorithm


def conv_algorithm(window: Geometry, filters: int, training: bool = True) -> int:
    """What "auto" does: the tile m of Winograd's F(m x m, r x r), or 0 for im2col.

    Winograd needs stride 1 and square filters: of 3 x 3 it can make tiles of 4 x 4 or 2 x 2
    pixels, of 5 x 5 tiles of 2 x 2.  It takes (m + r - 1)**2 multiplications a tile, the plain
    sum r * r a pixel.  Dilation d makes d * d images of every d-th pixel, which are tiled each.
    The tile with the fewest for this image is taken, the larger one on a tie; and im2col unless
    that saves a third, or if fewer than 16 channels or filters in a group make the transforms
    cost more than the products.  Without gradients to follow, 1.5 times the multiplications of the
    filters' transform are added to those of the tiles: one small image alone does not make up for
    reading what the transform makes of the filters, even where it was kept from the last call.
    """
    v = window
    tile, cost = _best_tile(v)
    if tile == 0 or v.c < 16 * v.groups or filters < 16 * v.groups:
        return 0
    extra = 0 if training else 1.5 * (tile + v.kh - 1) ** 2 * v.kh * v.kw
    return tile if 3 * (v.n * cost + extra) <= 2 * v.n * v.oh * v.ow * v.kh * v.kw else 0


_ALGORITHMS = ("auto", "winograd", "im2col", "exact", "plain")
_algorithm = "auto"
_TILES = {3: (4, 2), 5: (2,)}  # by filter size


def _best_tile(v: Geometry) -> tuple[int, int]:
    """Winograd's cheapest tile for this geometry, 0 for none, and its multiplications."""
    best, least = 0, 0
    for m in _TILES.get(v.kh, ()) if v.stride_h == v.stride_w == 1 and v.kh == v.kw else ():
        down, across = ceil_div(v.oh, m * v.dilation_h), ceil_div(v.ow, m * v.dilation_w)
        cost = down * v.dilation_h * across * v.dilation_w * (m + v.kh - 1) ** 2
        if best == 0 or cost < least:
            best, least = m, cost
    return best, least


def _tile(v: Geometry, filters: int, training: bool) -> int:
    if _algorithm == "auto":
        return conv_algorithm(v, filters, training)
    return _best_tile(v)[0] if _algorithm == "winograd" else 0


def _forward_numpy(
    x: Array,
    w: Array,
    b: Array | None,
    window: Geometry,
    needs: tuple[bool, ...],
    relu: bool = False,
    pool: Geometry | None = None,
) -> tuple[Array, tuple[Any, ...]]:
    x, w = np.ascontiguousarray(x), np.ascontiguousarray(w)
    keep = any(needs)
    if x.size == 0:
        return _forward_array(x, w, b, window, needs, relu, pool)
    epilogue = Epilogue(window, w.shape[0], x.dtype, relu, pool)
    m = _tile(window, w.shape[0], keep)
    if m == 0:
        _im2col.forward(x, w, b, window, epilogue, keep)
        return epilogue.y, (epilogue, m, x, w)
    return epilogue.y, (
        epilogue,
        m,
        w.shape,
        *_lattice.forward(x, w, b, window, m, epilogue, keep),
    )


def _backward_numpy(
    dy: Array,
    kept: tuple[Any, ...],
    window: Geometry,
    needs: tuple[bool, ...],
    last_use: bool = False,
) -> Gradients:
    if not isinstance(kept[0], Epilogue):
        return _backward_array(dy, kept, window, needs)
    epilogue, m, *of_engine = kept
    dy = np.ascontiguousarray(dy)
    if m == 0:
        x, w = of_engine
        return _im2col.backward(dy, x, w, window, needs, epilogue)
    w_shape, *arrays = of_engine
    return _lattice.backward(dy, arrays, w_shape, window, m, needs, last_use, epilogue)


# --- CUDA ---


def _forward_cuda(
    x: Array,
    w: Array,
    b: Array | None,
    window: Geometry,
    needs: tuple[bool, ...],
    relu: bool = False,
    pool: Geometry | None = None,
) -> tuple[Array, tuple[Any, ...]]:
    if not takes("conv2d", x):
        return _forward_array(x, w, b, window, needs, relu, pool)
    xp = array_module(x)
    x, w, b = (None if a is None else xp.ascontiguousarray(a) for a in (x, w, b))
    y = _conv2d_cuda.forward(x, w, b, window, relu, _algorithm == "plain")
    pooled: tuple[Any, ...] = ()
    if pool is not None:
        y, pooled = _max_forward(y, pool, any(needs))
    return y, (x, w, (y if relu else None, pool, pooled))


def _backward_cuda(
    dy: Array,
    kept: tuple[Any, ...],
    window: Geometry,
    needs: tuple[bool, ...],
    last_use: bool = False,
) -> Gradients:
    if not takes("conv2d", dy):
        return _backward_array(dy, kept, window, needs)
    x, w, finished = kept
    dy = _unfinish(dy, finished)
    plain = _algorithm == "plain"
    dy = array_module(dy).ascontiguousarray(dy)
    dx = dw = db = None
    if needs[0]:
        dx = _conv2d_cuda.grad_input(dy, w, window, plain)
    if needs[1]:
        dw, db = _conv2d_cuda.grad_weight(x, dy, w.shape[0], window, needs[2], plain)
    elif needs[2]:
        db = total(dy, (0, 1, 2))
    return dx, dw, db


_forward: Any = by_device(cpu=_forward_numpy, cuda=_forward_cuda)
_backward: Any = by_device(cpu=_backward_numpy, cuda=_backward_cuda)
