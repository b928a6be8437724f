"""Axes of size 1 added and removed, two axes swapped, and tensors stacked along a new axis."""

from collections.abc import Sequence
from typing import Any

from gpucnn.errors import ArgumentError, ShapeError
from gpucnn.integers import is_int
from gpucnn.ops.elementwise import as_tensor
from gpucnn.ops.shape import concatenate, reshape, transpose
from gpucnn.tensor import Tensor


def squeeze(x: Any, axis: int | tuple[int, ...] | None = None) -> Tensor:
    """x without the axes of size 1 among `axis`: one axis, several, or None for all.

    Axes of another size stay, as in PyTorch.  Negative axes count from the end.
    Raises ArgumentError for an axis out of range.
    """
    x = as_tensor(x)
    axes = range(x.ndim) if axis is None else axis if isinstance(axis, tuple | list) else (axis,)
    removed = {_axis("squeeze", x, i, x.ndim) for i in axes}
    return reshape(x, tuple(n for i, n in enumerate(x.shape) if n != 1 or i not in removed))


def unsqueeze(x: Any, axis: int) -> Tensor:
    """x with a new axis of size 1 at position `axis` of the result.

    A negative axis counts from the result's end: -1 is the last one.
    Raises ArgumentError for an axis out of range.
    """
    x = as_tensor(x)
    i = _axis("unsqueeze", x, axis, x.ndim + 1)
    return reshape(x, (*x.shape[:i], 1, *x.shape[i:]))


def swapaxes(x: Any, axis0: int, axis1: int) -> Tensor:
    """x with two axes swapped, contiguous.  Raises ArgumentError for an axis out of range."""
    x = as_tensor(x)
    i, j = (_axis("swapaxes", x, axis, x.ndim) for axis in (axis0, axis1))
    order = list(range(x.ndim))
    order[i], order[j] = j, i
    return transpose(x, order)


def stack(tensors: Sequence[Any], axis: int = 0) -> Tensor:
    """Join tensors of one shape along a new axis at position `axis` of the result.

    Raises ArgumentError for no tensors or an axis out of range, ShapeError if the shapes differ,
    DtypeError if the dtypes do.
    """
    parts = [as_tensor(x) for x in tensors]
    if not parts:
        raise ArgumentError("stack: expected at least one tensor")
    first = parts[0]
    for i, part in enumerate(parts):
        if part.shape != first.shape:
            raise ShapeError(
                f"stack: expected tensors of one shape, got {first.shape} and, at {i}, {part.shape}"
            )
    axis = _axis("stack", first, axis, first.ndim + 1)
    return concatenate([unsqueeze(part, axis) for part in parts], axis)


def _axis(op: str, x: Tensor, axis: Any, ndim: int) -> int:
    """axis counted from the front, of `ndim` axes; ArgumentError, naming `op`, if there is none."""
    if not is_int(axis):
        raise ArgumentError(f"{op}: axis must be an int, got {axis!r}")
    if not -ndim <= axis < ndim:
        raise ArgumentError(
            f"{op}: axis {axis} is out of range for shape {x.shape}; expected {-ndim} to {ndim - 1}"
        )
    return int(axis) % ndim
