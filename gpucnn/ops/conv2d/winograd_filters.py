"""Winograd's transform of the filters, U = KG w, on NumPy: see _winograd.py for the formulas.

Without gradients the filters are those of the last call almost always, and transforming them takes
most of the time if images are few.  So their transforms are kept, four times the filters' memory
and a copy of them: of filters that come a second time, and as long as their array lives.  They are
used again if the filters are still the same to the last bit, whoever may have written to them.
"""

import weakref
from typing import Any

import numpy as np

from gpucnn.cpu import Work, flat, parallel, scratch, spans
from gpucnn.cpu import blas as _products
from gpucnn.device import Array
from gpucnn.ops.conv2d.winograd_tiles import by_position

_known: dict[tuple[int, int], "_Known"] = {}  # by the id of the array, and n * n


def natural(w: Array, kg: Array) -> tuple[Array, Work]:
    """U (n * n, OC, C) of filters w (OC, r, r, C), in panels, and the work that sets it."""
    oc, r, _, c = w.shape
    by_filter, u = w.reshape(oc, r * r, c), _in_panels(len(kg), oc, c, w.dtype)

    def transform(filters: slice) -> None:
        _to_panels(kg, by_filter[filters], u[:, :, filters])

    return u, (transform, spans(oc, 64))


def transposed(w: Array, kg: Array) -> tuple[Array, Work]:
    """U^T (n * n, C, OC), in panels, and the work that sets it."""
    oc, r, _, c = w.shape
    by_filter, u_t = w.reshape(oc, r * r, c), _in_panels(len(kg), c, oc, w.dtype)

    def transform(channels: slice) -> None:
        count = channels.stop - channels.start
        by_channel = scratch("winograd filters", (count, r * r, oc), w.dtype)
        for some in spans(oc, 16):  # runs of a cache line: twice as fast as all at once
            by_channel[:, :, some] = by_filter[some, :, channels].transpose(2, 1, 0)
        _to_panels(kg, by_channel, u_t[:, :, channels])

    return u_t, (transform, spans(c, 64))


def _in_panels(positions: int, rows: int, columns: int, dtype: Any) -> Array:
    """Memory for matrices as _products.py wants them: (positions, panels, rows, columns of one)."""
    width = _products.panel_width(rows, columns)
    panels = columns // width
    memory = by_position((positions, panels * rows, width), dtype)
    return memory.reshape(positions, panels, rows, width)


def _to_panels(kg: Array, filters: Array, u: Array) -> None:
    """Set u (n * n, panels, rows, width) from filters (rows, r * r, columns)."""
    _, panels, rows, width = u.shape
    cut = filters.reshape(rows, -1, panels, width).transpose(2, 0, 1, 3)
    np.matmul(kg, cut, out=u.transpose(1, 2, 0, 3))


def without_gradients(w: Array, kg: Array) -> Array:
    """U^T, ready: of the last call, if these are its filters."""
    key = id(w), len(kg)
    known = _known.get(key)
    if known is None:
        _known[key] = _Known(w, key)
        return _ready(w, kg)
    return known.transform(w, kg)


def forget(w: Array, kg: Array) -> None:
    """Keep nothing of these filters: they are trained, and others at every call."""
    _known.pop((id(w), len(kg)), None)


def _ready(w: Array, kg: Array) -> Array:
    u_t, work = transposed(w, kg)
    parallel(*work)
    return u_t


class _Known:
    """Filters that were here before: from the second time on their copy and its U^T."""

    def __init__(self, w: Array, key: tuple[int, int]) -> None:
        def forget(_: object, known: "dict[tuple[int, int], _Known]" = _known) -> None:
            known.pop(key, None)

        self.filters = weakref.ref(w, forget)
        self.kept: tuple[Array, Array] | None = None

    def transform(self, w: Array, kg: Array) -> Array:
        kept = self.kept  # another thread may replace it
        if kept is None or not _equal(w, kept[0]):
            self.kept = kept = w.copy(), _ready(w, kg)
        return kept[1]


def _equal(a: Array, b: Array) -> bool:
    """Whether all bits are the same."""
    bits, others = flat(a).view(np.uint16), flat(b).view(np.uint16)
    same: list[bool] = []

    def compare(block: slice) -> None:
        same.append(np.array_equal(bits[block], others[block]))

    parallel(compare, spans(len(bits), 1 << 18))
    return all(same)
