"""Convolution on NumPy: the chosen engine, with ReLU and pooling fused by an Epilogue."""

import numpy as np

from gpucnn.device import Array
from gpucnn.ops.conv2d import portable
from gpucnn.ops.conv2d.algorithms import choose_algorithm
from gpucnn.ops.conv2d.engine import Cache, Saved
from gpucnn.ops.conv2d.fusion import Epilogue
from gpucnn.ops.geometry import Geometry


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
    """y and the state for backward, None if no gradient is needed."""
    x, weight = np.ascontiguousarray(x), np.ascontiguousarray(weight)
    if x.size == 0:
        return portable.forward(x, weight, bias, g, needs, relu, pool)
    keep = any(needs)
    epilogue = Epilogue(g, len(weight), x.dtype, relu, pool)
    engine = choose_algorithm(g, len(weight), training=keep)
    saved = engine.forward(x, weight, bias, g, epilogue, keep, cache)
    return epilogue.result(), saved
