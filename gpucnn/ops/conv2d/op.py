"""conv2d: its contract, its checks, and its autograd Function.

As usual in deep learning this is a cross-correlation: filters are not flipped.
"""

from typing import Any

import numpy as np

from gpucnn.autograd import Function
from gpucnn.device import Array, by_device
from gpucnn.errors import ShapeError
from gpucnn.integers import is_int
from gpucnn.ops._checks import check_bias_and_dtypes
from gpucnn.ops.conv2d import cpu, cuda
from gpucnn.ops.conv2d.engine import Cache, Gradients
from gpucnn.ops.elementwise import as_tensor
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

    Under autocast the operands are rounded to half precision, sums and bias are float32, and the
    result has half precision.  On a GPU, tensor cores multiply half precision, and float32 as
    set_float32_precision says.

    Raises ShapeError if channels, groups or filters do not fit, DtypeError if dtypes differ.
    """
    x, weight = as_tensor(x), as_tensor(weight)
    g = _geometry(x, weight, stride, padding, dilation, groups)
    dtype = check_bias_and_dtypes("conv2d", x, weight, bias)
    pooling = None if pool is None else pool.geometry((g.n, g.oh, g.ow, weight.shape[0]))
    cache = weight.cache() if weight.is_leaf else None
    return _Conv2d(g, relu, pooling, cache, dtype)(x, weight, bias)


def _geometry(
    x: Tensor,
    weight: Tensor,
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
    if not is_int(groups) or groups < 1 or g.c % groups or oc % groups:
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
    return g


class _Conv2d(Function):
    """A convolution with the ReLU and max pooling fused into it."""

    name = "conv2d"

    def __init__(
        self,
        geometry: Geometry,
        relu: bool,
        pool: Geometry | None,
        cache: Cache | None = None,
        dtype: np.dtype[Any] | None = None,
    ) -> None:
        self.geometry, self.relu, self.pool = geometry, relu, pool
        self.cache, self.dtype = cache, dtype

    def forward(self, x: Array, weight: Array, bias: Array | None) -> Array:
        y, self.saved = _forward(
            x,
            weight,
            bias,
            self.geometry,
            self.needs,
            self.relu,
            self.pool,
            self.cache,
            self.dtype,
        )
        self.positive = self.relu and isinstance(self.saved, cuda.CudaSaved)
        return y

    def backward(self, dy: Array) -> Gradients:
        if isinstance(self.saved, cuda.CudaSaved):
            mask = self.mask(0) if self.needs[0] else None
            return self.saved.backward(dy, self.needs, self.last_use, mask, self.masked)
        gradients: Gradients = self.saved.backward(dy, self.needs, self.last_use)
        return gradients


_forward: Any = by_device(cpu=cpu.forward, cuda=cuda.forward)
