"""Resizing of images: nearest neighbour and bilinear."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn import cuda
from gpucnn.autograd import Function
from gpucnn.device import Array, array_module, by_device
from gpucnn.errors import ArgumentError, ShapeError
from gpucnn.integers import ceil_div
from gpucnn.ops._exact import narrowed, widened
from gpucnn.ops._kernels import Divisor, defines, takes, vector_width
from gpucnn.ops.elementwise import float_tensor
from gpucnn.ops.geometry import Size, pair
from gpucnn.tensor import Tensor

_MODES = ("nearest", "bilinear")
_THREADS = 256
_GRID_ROWS = 65535  # CUDA's limit; the kernels loop over further images
_LONGEST = 2**22  # pixels of a side: floats still tell them apart


def interpolate(
    x: Any,
    size: Size | None = None,
    scale_factor: float | tuple[float, float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
) -> Tensor:
    """Resize images: (N, H, W, C) to (N, OH, OW, C).

    Give either size, (OH, OW) in pixels, or scale_factor, (vertical, horizontal): then
    OH = floor(H * scale_factor).  An int or a number serves for both.  Output row i reads x at

        "nearest"                        row floor(i * s)
        "bilinear"                       max((i + 0.5) * s - 0.5, 0)
        "bilinear" with align_corners    i * (H - 1) / (OH - 1)

    with s = 1 / scale_factor, or H / OH if size is given, or 1 if OH is H; columns likewise.
    Between two pixels "bilinear" weights both by their distance, beyond the last pixel it repeats
    that; an infinity with weight 0 gives NaN.  Reducing an image skips pixels: average it first.
    Half precision is computed in float32.  The gradient of a pixel is summed in a fixed order.

    Raises ArgumentError unless exactly one of size and scale_factor is given and both numbers of it
    are positive, for an unknown mode, or for align_corners with "nearest"; ShapeError unless x is
    images of at least one pixel, or if the result would have none; DtypeError unless x is
    floating-point.
    """
    t = float_tensor("interpolate", x)
    check_settings("interpolate", size, scale_factor, mode, align_corners)
    if t.ndim != 4 or t.shape[1] * t.shape[2] == 0:
        raise ShapeError(f"interpolate: expected images (N, H, W, C), got shape {t.shape}")
    image = t.shape[1:3]
    if size is not None:
        outputs: tuple[int, ...] = pair("interpolate", "size", size, 1)
        scales = [inputs / o for inputs, o in zip(image, outputs, strict=True)]
    else:
        factors = _factors(scale_factor)
        outputs = tuple(int(n * factor) for n, factor in zip(image, factors, strict=True))
        scales = [1 / factor for factor in factors]
        if min(outputs) < 1:
            raise ShapeError(
                f"interpolate: scale_factor {scale_factor} leaves {outputs[0]} x {outputs[1]} "
                f"pixels of {image[0]} x {image[1]}\n  x {t.shape}"
            )
    if align_corners:
        scales = [
            (inputs - 1) / (o - 1) if o > 1 else 0.0
            for inputs, o in zip(image, outputs, strict=True)
        ]
    else:
        scales = [1.0 if o == n else s for s, n, o in zip(scales, image, outputs, strict=True)]
    kind = 2 if align_corners else _MODES.index(mode)
    (n, h, w, c), (oh, ow) = t.shape, outputs
    return _Interpolate(_Resize(n, h, w, c, oh, ow, kind), (scales[0], scales[1]))(t)


def check_settings(
    op: str,
    size: Size | None,
    scale_factor: float | tuple[float, float] | None,
    mode: str,
    align_corners: bool | None,
) -> None:
    """Raise ArgumentError as `interpolate` does; messages begin with `op`."""
    if mode not in _MODES:
        raise ArgumentError(f"{op}: mode {mode!r} is unknown; expected {' or '.join(_MODES)}")
    if (size is None) == (scale_factor is None):
        raise ArgumentError(
            f"{op}: expected either size or scale_factor, got size={size!r} and "
            f"scale_factor={scale_factor!r}"
        )
    if align_corners is not None and mode == "nearest":
        raise ArgumentError(f'{op}: align_corners is for mode="bilinear", got mode="nearest"')
    if size is not None:
        pair(op, "size", size, 1)
        return
    factors = _factors(scale_factor)
    if len(factors) != 2 or not all(
        isinstance(f, int | float) and 0 < f < math.inf for f in factors
    ):
        raise ArgumentError(
            f"{op}: scale_factor must be a positive number or a pair of them, got {scale_factor!r}"
        )


def _factors(scale_factor: Any) -> tuple[float, ...]:
    return tuple(scale_factor) if isinstance(scale_factor, tuple | list) else (scale_factor,) * 2


@dataclass(frozen=True)
class _Resize:
    """struct Resize in kernels/interpolate.cu: sizes in pixels."""

    n: int
    h: int
    w: int
    c: int
    oh: int
    ow: int
    mode: int  # 0 nearest, 1 bilinear, 2 bilinear with align_corners


class _Interpolate(Function):
    name = "interpolate"

    def __init__(self, resize: _Resize, scales: tuple[float, float]) -> None:
        self.resize, self.scales = resize, scales

    def forward(self, x: Array) -> Array:
        return _forward(x, self.resize, self.scales)

    def backward(self, dy: Array) -> Array:
        return _backward(dy, self.resize, self.scales)


# --- any array module: one axis at a time ---


def _forward_array(x: Array, g: _Resize, scales: tuple[float, float]) -> Array:
    y = widened(x)
    for axis, (size, outputs, scale) in _axes(g, scales):
        y = _resized(y, axis, *_taps(size, outputs, scale, g.mode))
    return narrowed(y, x.dtype)


def _backward_array(dy: Array, g: _Resize, scales: tuple[float, float]) -> Array:
    dx = widened(dy)
    for axis, (size, outputs, scale) in _axes(g, scales)[::-1]:
        dx = _gathered(dx, axis, size, *_taps(size, outputs, scale, g.mode))
    return narrowed(dx, dy.dtype)


def _axes(g: _Resize, scales: tuple[float, float]) -> list[tuple[int, tuple[int, int, float]]]:
    return [(2, (g.w, g.ow, scales[1])), (1, (g.h, g.oh, scales[0]))]


def _taps(size: int, outputs: int, scale: float, mode: int) -> tuple[Any, Any, Any]:
    """first, second and share: output i is x[first] * (1 - share) + x[second] * share.

    For nearest, the share is None.  PyTorch computes the rows of "nearest" in float32, and so do
    both devices: in float64, rounding would choose another pixel at times.
    """
    at = np.arange(outputs)
    if mode == 0:
        rows = np.float32(scale) * at.astype(np.float32)
        return np.minimum(rows.astype(np.int64), size - 1), None, None
    s = at * scale if mode == 2 else np.maximum((at + 0.5) * scale - 0.5, 0)
    first = np.minimum(s.astype(np.int64), size - 1)
    return first, np.minimum(first + 1, size - 1), s - first


def _resized(x: Array, axis: int, first: Any, second: Any, share: Any) -> Array:
    xp = array_module(x)
    y = xp.take(x, xp.asarray(first), axis=axis)
    if share is not None:
        y *= _along(axis, xp.asarray((1 - share).astype(x.dtype)))
        y += xp.take(x, xp.asarray(second), axis=axis) * _along(
            axis, xp.asarray(share.astype(x.dtype))
        )
    return y


def _gathered(dy: Array, axis: int, size: int, first: Any, second: Any, share: Any) -> Array:
    """The adjoint of _resized: each pixel adds its outputs' dy, in rounds of one output each."""
    xp = array_module(dy)
    outputs = np.arange(len(first))
    pixels, weights = first, None
    if share is not None:
        pixels, outputs = np.concatenate((first, second)), np.concatenate((outputs, outputs))
        weights = np.concatenate((1 - share, share)).astype(dy.dtype)
    order = np.lexsort((outputs, pixels))
    pixels, outputs = pixels[order], outputs[order]
    starts = np.searchsorted(pixels, pixels)  # of each pixel's outputs
    turns = np.arange(len(pixels)) - starts
    dx = xp.zeros((*dy.shape[:axis], size, *dy.shape[axis + 1 :]), dy.dtype)
    at: tuple[Any, ...] = (slice(None),) * axis
    for turn in range(int(turns.max()) + 1):
        now = turns == turn
        part = xp.take(dy, xp.asarray(outputs[now]), axis=axis)
        if weights is not None:
            part *= _along(axis, xp.asarray(weights[order][now]))
        dx[(*at, xp.asarray(pixels[now]))] += part  # no pixel twice
    return dx


def _along(axis: int, numbers: Array) -> Array:
    """One number for each row (axis 1) or column (axis 2) of (N, H, W, C)."""
    return numbers.reshape(-1, 1, 1) if axis == 1 else numbers.reshape(-1, 1)


# --- CUDA ---


def _launches(x: Array, g: _Resize) -> bool:
    """Whether the kernels support x: its dtype, and offsets that fit."""
    return (
        takes(x)
        and max(g.h * g.w, g.oh * g.ow) * g.c < 2**31
        and max(g.h, g.w, g.oh, g.ow) <= _LONGEST
    )


def _forward_cuda(x: Array, g: _Resize, scales: tuple[float, float]) -> Array:
    if not _launches(x, g):
        return _forward_array(x, g, scales)
    xp = array_module(x)
    x, y = xp.ascontiguousarray(x), xp.empty((g.n, g.oh, g.ow, g.c), x.dtype)
    groups = g.c // vector_width(g.c, x)
    cuda.launch(
        "interpolate_forward",
        (ceil_div(g.oh * g.ow * groups, _THREADS), min(g.n, _GRID_ROWS)),
        _THREADS,
        x,  # (N, H, W, C)
        y,  # (N, OH, OW, C)
        g,
        *scales,
        Divisor.of(groups),
        Divisor.of(g.ow),
        defines=defines(x.dtype),
    )
    return y


def _backward_cuda(dy: Array, g: _Resize, scales: tuple[float, float]) -> Array:
    if not _launches(dy, g):
        return _backward_array(dy, g, scales)
    xp = array_module(dy)
    dy, dx = xp.ascontiguousarray(dy), xp.empty((g.n, g.h, g.w, g.c), dy.dtype)
    groups = g.c // vector_width(g.c, dy)
    cuda.launch(
        "interpolate_backward",
        (ceil_div(g.h * g.w * groups, _THREADS), min(g.n, _GRID_ROWS)),
        _THREADS,
        dy,  # (N, OH, OW, C)
        dx,  # (N, H, W, C)
        g,
        *scales,
        Divisor.of(groups),
        Divisor.of(g.w),
        defines=defines(dy.dtype),
    )
    return dx


_forward: Any = by_device(cpu=_forward_array, cuda=_forward_cuda)
_backward: Any = by_device(cpu=_backward_array, cuda=_backward_cuda)
