"""Winograd's transform of the filters, U = KG w, on NumPy: see _winograd.py for the formulas.

Without gradients the filters are those of the last call almost always, and transforming them takes
most of the time if images are few.  So their transforms are kept, four times the filters' memory
and a copy of them: of filters that come a second time, and as long as their array lives.  They are
used again if the filters are still the same to the last bit, whoever may have written to them.
"""

import weakref

import numpy as np

from gpucnn.device import Array
from gpucnn.ops._winograd_tiles import by_position
from gpucnn.threads import empty, flat, parallel, spans

_known: dict[tuple[int, int], "_Known"] = {}  # by the id of the array, and n * n


def transform(w: Array, kg: Array) -> Array:
    """U (n * n, OC, C) of filters w (OC, r, r, C)."""
    return _transform(w.reshape(len(w), -1, w.shape[3]), kg)


def transform_transposed(w: Array, kg: Array, training: bool) -> Array:
    """U^T (n * n, C, OC) of filters w (OC, r, r, C), which other ones replace soon if training."""
    key = id(w), len(kg)
    known = _known.get(key)
    if training:
        _known.pop(key, None)
    elif known is None:
        _known[key] = _Known(w, key)
    else:
        return known.transform(w, kg)
    return _transform(_transposed(w), kg)


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
            self.kept = kept = w.copy(), _transform(_transposed(w), kg)
        return kept[1]


def _equal(a: Array, b: Array) -> bool:
    """Whether all bits are the same."""
    bits, others = flat(a).view(np.uint16), flat(b).view(np.uint16)
    same: list[bool] = []

    def compare(block: slice) -> None:
        same.append(np.array_equal(bits[block], others[block]))

    parallel(compare, spans(len(bits), 1 << 18))
    return all(same)


def _transposed(w: Array) -> Array:
    """Filters (OC, r, r, C) as (C, r * r, OC)."""
    by_filter = w.reshape(len(w), -1, w.shape[3])
    by_channel = empty(by_filter.shape[::-1], w.dtype)

    def copy(filters: slice) -> None:
        by_channel[:, :, filters] = by_filter[filters].transpose(2, 1, 0)

    parallel(copy, spans(len(w), 16))
    return by_channel


def _transform(w: Array, kg: Array) -> Array:
    u = by_position((len(kg), len(w), w.shape[2]), w.dtype)

    def multiply(rows: slice) -> None:
        np.matmul(kg, w[rows], out=u[:, rows].transpose(1, 0, 2))

    parallel(multiply, spans(len(w), 64))
    return u
