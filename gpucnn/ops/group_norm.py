"""Group and layer normalisation: mean 0 and variance 1 within each example, then rescaled.

Both see x as (images, pixels, channels), in which each group of adjacent channels of an image is
normalised over its pixels.  For layer_norm a row is an image of one pixel with one group.
"""

import math
from typing import Any

import numpy as np

from gpucnn import cuda
from gpucnn.autograd import Function
from gpucnn.cpu import empty, parallel, spans
from gpucnn.device import Array, array_module, by_device
from gpucnn.errors import ArgumentError, DtypeError, ShapeError
from gpucnn.integers import ceil_div, is_int
from gpucnn.ops._exact import narrowed, widened
from gpucnn.ops._kernels import Divisor, defines, takes, vector_width
from gpucnn.ops.batch_norm.cuda import Tiles
from gpucnn.ops.batch_norm.op import contiguous, parameter
from gpucnn.ops.elementwise import float_tensor
from gpucnn.precision import is_half
from gpucnn.tensor import Tensor

_BLOCK = 1 << 16  # elements of the images that one task normalises on the CPU
_THREADS = 256
_WARP = 32
_REACH = 2**31  # offsets inside a group, and rows, have 31 bits


def layer_norm(
    x: Any,
    normalized_shape: int | tuple[int, ...],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise over the last axes: y = (x - mean) / sqrt(var + eps) * weight + bias.

    x is (..., *normalized_shape), weight and bias normalized_shape, or None for 1 and 0; y has x's
    shape and dtype.  mean and var are those of each example over the last axes; var divides by
    their number of elements.  Half precision is computed in float32, with float32 statistics, also
    under autocast; only y and the gradients are rounded.  On a GPU, mean and variance are as
    accurate as a float32 sum, however large the mean.

    Raises ShapeError if shapes do not fit; DtypeError unless all are floating-point, of one dtype
    or with x in half precision and weight and bias float32.
    Source: Ba et al. 2016, equation 3.
    """
    t = float_tensor("layer_norm", x)
    several = isinstance(normalized_shape, tuple | list)
    given: tuple[int, ...] = tuple(normalized_shape) if several else (normalized_shape,)  # type: ignore[arg-type, assignment]
    if not given or t.shape[-len(given) :] != given:
        raise ShapeError(
            f"layer_norm: expected x (..., {', '.join(map(str, given)) or 'at least one axis'}), "
            f"got shape {t.shape}\n  normalized_shape is the sizes of the last axes"
        )
    _check("layer_norm", t, given, weight, bias)
    images = math.prod(t.shape[: -len(given)])
    function = _GroupNorm("layer_norm", (images, 1, math.prod(given)), 1, eps)
    function.normalized_axes = len(given)
    return function(t, weight, bias)


def group_norm(
    x: Any,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise each image's groups of channels: y = (x - mean) / sqrt(var + eps) * weight + bias.

    x is (N, ..., C), usually (N, H, W, C); weight and bias are (C,), or None for 1 and 0; y has x's
    shape and dtype.  A group is C / num_groups adjacent channels.  mean and var are those of each
    group over all its pixels; var divides by the number of values.  Dtypes and accuracy as for
    `layer_norm`.

    Raises ArgumentError unless num_groups is an int of at least 1; ShapeError if shapes do not fit;
    DtypeError unless all are floating-point, of one dtype or with x in half precision and weight
    and bias float32.
    Source: Wu and He 2018, section 3.1.
    """
    t = float_tensor("group_norm", x)
    if not is_int(num_groups) or num_groups < 1:
        raise ArgumentError(f"group_norm: num_groups must be a positive int, got {num_groups!r}")
    if t.ndim < 2:
        raise ShapeError(f"group_norm: expected x (N, ..., C), got shape {t.shape}")
    if t.shape[-1] % num_groups:
        raise ShapeError(
            f"group_norm: {num_groups} groups do not divide the {t.shape[-1]} channels of x "
            f"{t.shape}"
        )
    _check("group_norm", t, t.shape[-1:], weight, bias)
    shape = t.shape[0], math.prod(t.shape[1:-1]), t.shape[-1]
    return _GroupNorm("group_norm", shape, num_groups, eps)(t, weight, bias)


def _check(
    op: str, x: Tensor, shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None
) -> None:
    """Raise ShapeError or DtypeError unless weight and bias fit x."""
    for name, value in (("weight", weight), ("bias", bias)):
        if value is None:
            continue
        if value.shape != shape:
            raise ShapeError(
                f"{op}: expected {name} of shape {shape}, got {value.shape}\n  x {x.shape}"
            )
        if x.dtype != value.dtype and not (is_half(x.dtype) and value.dtype == np.float32):
            raise DtypeError(
                f"{op}: x is {x.dtype}, {name} is {value.dtype}\n"
                "  expected one dtype for all; convert with .astype"
            )


class _GroupNorm(Function):
    normalized_axes = 0  # of layer_norm

    def __init__(self, name: str, shape: tuple[int, int, int], groups: int, eps: float) -> None:
        self.name, self.shape, self.groups, self.eps = name, shape, groups, eps

    def forward(self, x: Array, weight: Array | None, bias: Array | None) -> Array:
        values = contiguous(x).reshape(self.shape)
        y, mean, scale = _forward(values, _flat(weight), _flat(bias), self.groups, self.eps)
        self.saved = (x, weight, mean, scale)
        return narrowed(y.reshape(x.shape), x.dtype)

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        x, weight, mean, scale = self.saved
        values, gradient = (contiguous(a).reshape(self.shape) for a in (x, dy))
        needs = self.needs[0], self.needs[1] or self.needs[2]
        statistics = mean, scale, self.groups
        dx, sums = _backward(gradient, values, _flat(weight), *statistics, needs)
        found: tuple[Any, Any] = (None, None) if sums is None else (sums[1], sums[0])
        dweight, dbias = (
            narrowed(total.reshape(given.shape), given.dtype)
            if needed and isinstance(given, Tensor)
            else None
            for total, given, needed in zip(found, self.inputs[1:], self.needs[1:], strict=True)
        )
        return None if dx is None else narrowed(dx.reshape(x.shape), dy.dtype), dweight, dbias


def _flat(x: Array | None) -> Array | None:
    """A parameter in one axis, in the dtype to compute in."""
    return None if x is None else parameter(x).reshape(-1)


# --- any array module ---


def _forward_array(
    x: Array, weight: Array | None, bias: Array | None, groups: int, eps: float
) -> tuple[Array, Array, Array]:
    """y, and mean and 1 / sqrt(var + eps) of each group (images, groups), for x as in _GroupNorm.

    The mean is corrected by the mean deviation that is left, and so is the variance: Chan, Golub
    and LeVeque 1983, section 3.
    """
    xp, run = array_module(x), x.shape[2] // groups
    mean = _means(x, groups)
    y = x - _per_channel(mean, run)
    left = _means(y, groups)
    y -= _per_channel(left, run)
    scale = 1 / xp.sqrt(_means(y * y, groups) + x.dtype.type(eps))
    y *= _per_channel(scale, run)
    if weight is not None:
        y *= weight
    if bias is not None:
        y += bias
    return y, mean + left, scale


def _backward_array(
    dy: Array,
    x: Array,
    weight: Array | None,
    mean: Array,
    scale: Array,
    groups: int,
    needs: tuple[bool, bool],
) -> tuple[Array | None, Array | None]:
    """dx and, with needs[1], dbias and dweight: (2, channels)."""
    xp, run, dx, sums = array_module(x), x.shape[2] // groups, None, None
    rows = x.shape[0] * x.shape[1], x.shape[2]
    normal = (x - _per_channel(mean, run)) * _per_channel(scale, run)
    if needs[1]:
        sums = xp.stack([a.reshape(rows).sum(axis=0) for a in (dy, dy * normal)])
    if needs[0]:
        dx = dy.copy() if weight is None else dy * weight
        slope = _means(dx * normal, groups)
        dx -= _per_channel(_means(dx, groups), run)
        normal *= _per_channel(slope, run)
        dx -= normal
        dx *= _per_channel(scale, run)
    return dx, sums


def _means(x: Array, groups: int) -> Array:
    """The mean of each group: (images, groups)."""
    images, pixels, channels = x.shape
    count = max(pixels * (channels // groups), 1)
    by_channel = x.sum(axis=1).reshape(images, groups, channels // groups)
    return by_channel.sum(axis=2) / x.dtype.type(count)


def _per_channel(statistic: Array, run: int) -> Array:
    """One number a group (images, groups), for each of its channels: (images, 1, channels)."""
    return array_module(statistic).repeat(statistic, run, axis=1)[:, None]


# --- NumPy, in blocks of images ---


def _spans(shape: tuple[int, ...]) -> list[slice]:
    images, pixels, channels = shape
    return list(spans(images, max(1, _BLOCK // max(pixels * channels, 1))))


def _forward_numpy(
    x: Array, weight: Array | None, bias: Array | None, groups: int, eps: float
) -> tuple[Array, Array, Array]:
    y = empty(x.shape, x.dtype)
    mean, scale = (np.empty((len(x), groups), x.dtype) for _ in range(2))

    def normalize(block: slice) -> None:
        y[block], mean[block], scale[block] = _forward_array(x[block], weight, bias, groups, eps)

    parallel(normalize, _spans(x.shape))
    return y, mean, scale


def _backward_numpy(
    dy: Array,
    x: Array,
    weight: Array | None,
    mean: Array,
    scale: Array,
    groups: int,
    needs: tuple[bool, bool],
) -> tuple[Array | None, Array | None]:
    blocks = _spans(x.shape)
    dx = empty(x.shape, x.dtype) if needs[0] else None
    parts = np.zeros((len(blocks), 2, x.shape[2]), x.dtype)

    def differentiate(i: int) -> None:
        b = blocks[i]
        found, sums = _backward_array(dy[b], x[b], weight, mean[b], scale[b], groups, needs)
        if dx is not None:
            dx[b] = found
        if sums is not None:
            parts[i] = sums

    parallel(differentiate, range(len(blocks)))
    return dx, parts.sum(axis=0) if needs[1] else None


# --- CUDA ---


def _launches(x: Array) -> bool:
    """Whether the kernels support x: its dtype, its size, and offsets that fit."""
    images, pixels, channels = x.shape
    return takes(x) and x.size > 0 and pixels * channels < _REACH and images * pixels < _REACH


def _block(x: Array, groups: int, *arrays: Array | None) -> tuple[int, int]:
    """The parts of a group's channels in a pixel, and the threads of a block."""
    run = x.shape[2] // groups
    parts = run // vector_width(run, x, *arrays)
    return parts, min(_THREADS, ceil_div(x.shape[1] * parts, _WARP) * _WARP)


def _forward_cuda(
    x: Array, weight: Array | None, bias: Array | None, groups: int, eps: float
) -> tuple[Array, Array, Array]:
    images, pixels, channels = x.shape
    if not _launches(x):
        return _forward_array(widened(x), weight, bias, groups, eps)
    xp = array_module(x)
    y = xp.empty(x.shape, x.dtype)
    mean, scale = (xp.empty((images, groups), np.float32) for _ in range(2))
    parts, threads = _block(x, groups, weight, bias)
    cuda.launch(
        "group_norm_forward",
        images * groups,
        threads,
        x,  # (images, pixels, channels)
        weight,  # (channels,) or None
        bias,  # (channels,) or None
        y,  # (images, pixels, channels)
        mean,  # (images, groups)
        scale,  # (images, groups)
        pixels,
        channels,
        groups,
        eps,
        Divisor.of(parts),
        defines=defines(x.dtype),
    )
    return y, mean, scale


def _backward_cuda(
    dy: Array,
    x: Array,
    weight: Array | None,
    mean: Array,
    scale: Array,
    groups: int,
    needs: tuple[bool, bool],
) -> tuple[Array | None, Array | None]:
    images, pixels, channels = x.shape
    if not _launches(x):
        return _backward_array(widened(dy), widened(x), weight, mean, scale, groups, needs)
    xp, dx, sums = array_module(x), None, None
    if needs[1]:
        sums = xp.empty((2, channels), np.float32)
        tiles = Tiles(dy, x, run=channels // groups)
        cuda.launch(
            "group_norm_products",
            tiles.grid,
            _THREADS,
            dy,  # (images, pixels, channels)
            x,  # (images, pixels, channels)
            mean,  # (images, groups)
            scale,  # (images, groups)
            tiles.part,  # (splits, 2, channels)
            tiles.counters,  # (tiles,)
            sums,  # (2, channels)
            images * pixels,
            channels,
            groups,
            tiles.vector,
            Divisor.of(pixels),
            Divisor.of(tiles.width),
            defines=defines(dy.dtype),
        )
    if needs[0]:
        dx = xp.empty(x.shape, x.dtype)
        parts, threads = _block(x, groups, dy, weight)
        cuda.launch(
            "group_norm_backward",
            images * groups,
            threads,
            dy,  # (images, pixels, channels)
            x,  # (images, pixels, channels)
            weight,  # (channels,) or None
            mean,  # (images, groups)
            scale,  # (images, groups)
            dx,  # (images, pixels, channels)
            pixels,
            channels,
            groups,
            Divisor.of(parts),
            defines=defines(x.dtype),
        )
    return dx, sums


_forward: Any = by_device(cpu=_forward_numpy, cuda=_forward_cuda)
_backward: Any = by_device(cpu=_backward_numpy, cuda=_backward_cuda)
