"""conv2d: its contract, its checks, and its autograd Function.

As usual in deep learning this is a cross-correlation: filters are not flipped.
"""

from typing import Any

from gpucnn.autograd import Function
from gpucnn.device import Array, by_device
from gpucnn.errors import ShapeError
from gpucnn.ops._checks import check_bias_and_dtypes
from gpucnn.ops.conv2d import cpu, cuda
from gpucnn.ops.conv2d.engine import Cache, Gradients
from gpucnn.ops.geometry import Geometry, Padding, Size
from gpucnn.ops.pool2d.op import MaxPool
from gpucnn.tensor import Tensor


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    relu: bool = False,
    pool: MaxPool | None = None,
) -> Tensor:
    """Slide OC filters over images: y[n, i, j, o] = sum(window (i, j) * weight[o]) + bias[o].

    x is (N, H, W, C), weight (OC, KH, KW, C / groups), bias (OC,); the result is (N, OH, OW, OC)
    with OH = (H + top + bottom - (KH - 1) * dilation - 1) // stride + 1.  Sizes are in pixels.
    padding adds zeros: an int, (vertical, horizontal), ((top, bottom), (left, right)), "valid" or
    "same".  With groups, filter o sees only the channels of group o // (OC / groups).

    relu and pool fuse the ops that often follow: ops.relu, then ops.max_pool2d with the arguments
    in `pool`.  On the CPU both run while a part of the result is still in cache, so the full
    convolution is never stored in memory.  On a GPU the convolution kernel applies the ReLU, and a
    second kernel pools.

    On the CPU most layers use Winograd's algorithm.  There one extreme pixel costs accuracy in its
    whole tile, and a pixel that is not finite makes the tile NaN: see set_conv_algorithm for the
    bound.

    Raises ShapeError if channels, groups or filters do not fit, DtypeError if dtypes differ.
    """
    g = _geometry(x, weight, bias, stride, padding, dilation, groups)
    pooling = None if pool is None else pool.geometry((g.n, g.oh, g.ow, weight.shape[0]))
    cache = weight.cache() if weight.is_leaf else None
    return _Conv2d(g, relu, pooling, cache)(x, weight, bias)


def _geometry(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Size,
    padding: Padding,
    dilation: Size,
    groups: int,
) -> Geometry:
    if weight.ndim != 4:
        raise ShapeError(
            f"conv2d: expected weight (OC, KH, KW, C / groups), got shape {weight.shape}"
        )
    oc, kh, kw, depth = weight.shape
    g = Geometry.of("conv2d", x.shape, (kh, kw), stride, padding, dilation, groups)
    if not isinstance(groups, int) or groups < 1 or g.c % groups or oc % groups:
        raise ShapeError(
            f"conv2d: {groups} groups do not divide {g.c} channels and {oc} filters\n"
            f"  x {x.shape}, weight {weight.shape}"
        )
    if depth != g.c // groups:
        raise ShapeError(
            f"conv2d: x has {g.c} channels, weight expects {depth * groups}\n"
            f"  x {x.shape}, weight {weight.shape}, groups {groups}; "
            f"build the layer with in_channels={g.c}"
        )
    check_bias_and_dtypes("conv2d", x, weight, bias)
    return g


class _Conv2d(Function):
    """A convolution with the ReLU and max pooling fused into it."""

    name = "conv2d"

    def __init__(
        self, geometry: Geometry, relu: bool, pool: Geometry | None, cache: Cache | None = None
    ) -> None:
        self.geometry, self.relu, self.pool, self.cache = geometry, relu, pool, cache

    def forward(self, x: Array, weight: Array, bias: Array | None) -> Array:
        y, self.saved = _forward(
            x, weight, bias, self.geometry, self.needs, self.relu, self.pool, self.cache
        )
        return y

    def backward(self, dy: Array) -> Gradients:
        gradients: Gradients = self.saved.backward(dy, self.needs, self.last_use)
        return gradients


_forward: Any = by_device(cpu=cpu.forward, cuda=cuda.forward)
