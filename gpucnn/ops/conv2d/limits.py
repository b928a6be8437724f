"""What the tiled kernels of a convolution can compute, and how they read their operands."""

from gpucnn.device import Array
from gpucnn.ops.geometry import Geometry

_MAX_VECTOR_FLOATS = 2**32  # half of what 31-bit offsets in float4 reach: the rest is for padding


def tiled(g: Geometry, oc: int) -> bool:
    """Whether the geometry fits the 31-bit offsets and the tables of the tiled kernels."""
    limit = 2**31 - 128
    padded = (g.h + g.top + g.bottom) * (g.w + g.left + g.right)
    return (
        g.kh + g.kw <= 31
        and padded * g.c < limit
        and max(g.oh * g.ow, padded) * oc < limit
        and g.n * max(g.oh * g.ow, g.h * g.w) < limit
        and oc * g.kh * g.kw * (g.c // g.groups) < limit
        and g.groups * g.stride_h * g.stride_w <= 65535
    )


def loads(a: Array, b: Array, *counts: int) -> str:
    """How a kernel reads a and b: "vector" (16 bytes a load) if possible, else "scalar"."""
    whole = all(count % 4 == 0 for count in counts)
    aligned = a.data.ptr % 16 == 0 and b.data.ptr % 16 == 0
    in_reach = max(a.size, b.size) <= _MAX_VECTOR_FLOATS
    return "vector" if whole and aligned and in_reach else "scalar"
