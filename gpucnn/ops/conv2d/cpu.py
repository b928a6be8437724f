"""Convolution on NumPy: the chosen engine, with ReLU and pooling fused by an Epilogue.

Half precision is computed in float32, as on tensor cores: see `_forward_half`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn.device import Array
from gpucnn.ops._exact import narrowed, widened
from gpucnn.ops._half import rounded
from gpucnn.ops.conv2d import portable
from gpucnn.ops.conv2d.algorithms import choose_algorithm
from gpucnn.ops.conv2d.engine import Cache, Gradients, Saved
from gpucnn.ops.conv2d.fusion import Epilogue
from gpucnn.ops.geometry import Geometry
from gpucnn.ops.pool2d.op import max_forward
from gpucnn.ops.pool2d.portable import SavedMax
from gpucnn.ops.relu import _relu
from gpucnn.precision import is_half


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

    dtype is the half precision to compute in, under autocast; by default it is x's own dtype.
    """
    dtype = dtype or x.dtype
    if is_half(dtype):
        return _forward_half(x, weight, bias, g, needs, relu, pool, cache, dtype)
    x, weight = np.ascontiguousarray(x), np.ascontiguousarray(weight)
    if x.size == 0 or weight.size == 0:
        return portable.forward(x, weight, bias, g, needs, relu, pool)
    keep = any(needs)
    epilogue = Epilogue(g, len(weight), x.dtype, relu, pool)
    engine = choose_algorithm(g, len(weight), training=keep)
    saved = engine.forward(x, weight, bias, g, epilogue, keep, cache)
    return epilogue.result(), saved


def _forward_half(
    x: Array,
    weight: Array,
    bias: Array | None,
    g: Geometry,
    needs: tuple[bool, ...],
    relu: bool,
    pool: Geometry | None,
    cache: Cache | None,
    dtype: np.dtype[Any],
) -> tuple[Array, Saved | None]:
    """Round x and weight to `dtype`, convolve in float32 and round once; then pool and clip.

    The bias, like the sums, is float32.  Pooling compares rounded values, of which more are equal.
    """
    if cache is not None:  # filters transformed from rounded weights are others
        cache = cache.setdefault(("conv2d", dtype), {})
    wide_bias = None if bias is None else widened(bias)
    y, saved = forward(rounded(x, dtype), rounded(weight, dtype), wide_bias, g, needs, cache=cache)
    y, pooled = rounded(y, dtype), None
    if pool is not None:
        y, pooled = max_forward(y, pool, any(needs))
    y = narrowed(_relu(y) if relu else y, dtype)
    if saved is None:
        return y, None
    dtypes = x.dtype, weight.dtype, weight.dtype if bias is None else bias.dtype
    return y, _SavedHalf(saved, y if relu else None, pooled, dtypes)


@dataclass(eq=False)
class _SavedHalf:
    """The state of a float32 convolution of rounded operands."""

    saved: Saved
    y: Array | None  # the result, if a ReLU was fused
    pooled: SavedMax | None
    dtypes: tuple[Any, ...]  # of x, weight and bias

    def backward(self, dy: Array, needs: tuple[bool, ...], last_use: bool) -> Gradients:
        half, dy = dy.dtype, widened(dy)
        dy = portable.unfused(dy, None if self.y is None else widened(self.y), self.pooled)
        if self.pooled is not None:  # windows that overlap add up
            dy = rounded(dy, half)
        gradients = self.saved.backward(dy, needs, last_use)
        dx, dweight, dbias = (
            None if gradient is None else narrowed(gradient, dtype)
            for gradient, dtype in zip(gradients, self.dtypes, strict=True)
        )
        return dx, dweight, dbias
