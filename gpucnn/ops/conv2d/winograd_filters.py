"""Winograd's transform of the filters, U = KG weight, on NumPy: winograd.py has the formulas.

In inference the filters rarely change between calls, and for few images transforming them takes
most of the time.  So the transformed filters are cached, from the second call on, in the cache of
the weight's tensor, which drops them when the weight changes.  They take (n / r)**2 times the
filters' memory: four times with tiles of 4 x 4.
"""

from typing import Any

import numpy as np

from gpucnn.cpu import Work, blas, parallel, scratch, spans
from gpucnn.device import Array
from gpucnn.ops.conv2d.engine import Cache
from gpucnn.ops.conv2d.winograd_tiles import by_position


def natural(weight: Array, kg: Array) -> tuple[Array, Work]:
    """U (n * n, OC, C) of weight (OC, r, r, C), in panels, and the work that computes it."""
    oc, r, _, c = weight.shape
    by_filter, u = weight.reshape(oc, r * r, c), _in_panels(len(kg), oc, c, weight.dtype)

    def transform(filters: slice) -> None:
        _to_panels(kg, by_filter[filters], u[:, :, filters])

    return u, (transform, spans(oc, 64))


def transposed(weight: Array, kg: Array) -> tuple[Array, Work]:
    """U^T (n * n, C, OC), in panels, and the work that computes it."""
    oc, r, _, c = weight.shape
    by_filter, u_t = weight.reshape(oc, r * r, c), _in_panels(len(kg), c, oc, weight.dtype)

    def transform(channels: slice) -> None:
        count = channels.stop - channels.start
        by_channel = scratch("winograd filters", (count, r * r, oc), weight.dtype)
        for some in spans(oc, 16):  # runs of a cache line: twice as fast as all at once
            by_channel[:, :, some] = by_filter[some, :, channels].transpose(2, 1, 0)
        _to_panels(kg, by_channel, u_t[:, :, channels])

    return u_t, (transform, spans(c, 64))


def _in_panels(positions: int, rows: int, columns: int, dtype: Any) -> Array:
    """Memory in blas.multiply's layout: (positions, panels, rows, panel width)."""
    width = blas.panel_width(rows, columns)
    panels = columns // width
    memory = by_position((positions, panels * rows, width), dtype)
    return memory.reshape(positions, panels, rows, width)


def _to_panels(kg: Array, filters: Array, u: Array) -> None:
    """Set u (n * n, panels, rows, width) from filters (rows, r * r, columns)."""
    _, panels, rows, width = u.shape
    cut = filters.reshape(rows, -1, panels, width).transpose(2, 0, 1, 3)
    np.matmul(kg, cut, out=u.transpose(1, 2, 0, 3))


def cached(weight: Array, kg: Array, cache: Cache | None) -> Array:
    """U^T: from `cache` if this weight was transformed twice before, else computed."""
    key = _key(kg)
    u_t = None if cache is None else cache.get(key)
    if u_t is None:
        u_t, work = transposed(weight, kg)
        parallel(*work)
        if cache is not None:
            cache[key] = u_t if key in cache else None  # the first call may be the only one
    return u_t


def forget(cache: Cache | None, kg: Array) -> None:
    """Free the cached transforms of a weight in training, which changes at every step."""
    if cache:
        cache.pop(_key(kg), None)


def _key(kg: Array) -> tuple[str, int, int]:
    """The cache's key: (36, 9) for tiles of 4 x 4 and filters of 3 x 3, (n * n, r * r)."""
    return "winograd filters", *kg.shape
