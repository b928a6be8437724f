"""Ops that move values: reshape, transpose, concatenate, pad, index, and change dtype or device."""

import math
from collections.abc import Sequence
from operator import index as as_index
from typing import Any

import numpy as np

from gpucnn.autograd import Function
from gpucnn.creation import number_dtype
from gpucnn.device import Array, Device, array_module, device_of, to_host
from gpucnn.device import to_device as copy_to
from gpucnn.errors import ArgumentError, DtypeError, ShapeError
from gpucnn.integers import is_int
from gpucnn.ops._exact import narrowed
from gpucnn.ops._promotion import promoted
from gpucnn.ops.elementwise import as_tensor, require_range
from gpucnn.precision import is_floating
from gpucnn.tensor import Tensor


def reshape(x: Any, shape: Sequence[int]) -> Tensor:
    """x in a new shape, its elements in row order; one size may be -1, to be inferred.

    The result shares x's memory where x is contiguous.
    Raises ShapeError if the sizes do not match, ArgumentError unless they are ints.
    """
    x = as_tensor(x)
    shape = _ints("reshape", "shape", shape)
    known = math.prod(n for n in shape if n != -1)
    free = sum(n == -1 for n in shape)
    fits = known == x.size if free == 0 else free == 1 and known > 0 and x.size % known == 0
    if not fits or any(n < -1 for n in shape):
        raise ShapeError(f"reshape: {x.shape} has {x.size} elements and cannot become {shape}")
    return _Reshape(shape)(x)


def flatten(x: Any) -> Tensor:
    """x (N, ...) as (N, M); images (N, H, W, C) in row, column, channel order.

    Raises ShapeError for a scalar.
    """
    x = as_tensor(x)
    if x.ndim == 0:
        raise ShapeError("flatten: expected at least one axis, got a scalar")
    return reshape(x, (x.shape[0], math.prod(x.shape[1:])))


def transpose(x: Any, axes: Sequence[int] | None = None) -> Tensor:
    """x with its axes in the order `axes`, contiguous; None reverses them.

    Raises ArgumentError unless axes is a permutation of x's axes; negative ones count from the end.
    """
    x = as_tensor(x)
    order = tuple(range(x.ndim))[::-1] if axes is None else _ints("transpose", "axes", axes)
    if sorted(i % x.ndim if -x.ndim <= i < x.ndim else -1 for i in order) != list(range(x.ndim)):
        raise ArgumentError(f"transpose: axes {order} do not order the {x.ndim} axes of {x.shape}")
    return _Transpose(tuple(i % x.ndim for i in order))(x)


def concatenate(tensors: Sequence[Any], axis: int = 0) -> Tensor:
    """Join tensors along the existing axis `axis`; their other sizes and dtypes must agree.

    Under autocast, half precision next to float32 becomes float32.
    Raises ArgumentError for no tensors or an axis out of range, ShapeError, DtypeError.
    """
    parts = promoted(*(as_tensor(x) for x in tensors))
    if not parts:
        raise ArgumentError("concatenate: expected at least one tensor")
    first = parts[0]
    if not is_int(axis):
        raise ArgumentError(f"concatenate: axis must be an int, got {axis!r}")
    if not -first.ndim <= axis < first.ndim:
        raise ArgumentError(f"concatenate: axis {axis} is out of range for shape {first.shape}")
    axis %= first.ndim
    for part in parts[1:]:
        if part.dtype != first.dtype:
            raise DtypeError(f"concatenate: dtypes {first.dtype} and {part.dtype} differ")
        if part.ndim != first.ndim or any(
            n != m
            for i, (n, m) in enumerate(zip(part.shape, first.shape, strict=True))
            if i != axis
        ):
            raise ShapeError(
                f"concatenate: {part.shape} does not fit {first.shape} along axis {axis}"
            )
    return _Concatenate(axis)(*parts)


def pad(x: Any, widths: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """x surrounded by `value`: widths holds (before, after) for each axis, in elements.

    Raises ArgumentError unless value is a number and there is one pair of non-negative widths for
    each axis; DtypeError for a value that a tensor of integers cannot hold.
    """
    x = as_tensor(x)
    try:
        pairs = tuple((as_index(before), as_index(after)) for before, after in widths)
    except (TypeError, ValueError):
        pairs = None
    if pairs is None or len(pairs) != x.ndim or any(n < 0 for pair in pairs for n in pair):
        raise ArgumentError(
            f"pad: expected {x.ndim} pairs of non-negative widths for shape {x.shape}, "
            f"got {widths!r}"
        )
    value = value.item() if isinstance(value, np.generic) else value
    if not isinstance(value, int | float):
        raise ArgumentError(f"pad: expected a number as value, got {type(value).__name__}")
    if not is_floating(x.dtype):
        if isinstance(value, float) and not value.is_integer():
            raise DtypeError(f"pad: value {value} in a tensor of {x.dtype}")
        value = int(value)
        require_range("pad", x, value)
    return _Pad(pairs, value)(x)


def getitem(x: Any, index: Any) -> Tensor:
    """x[index] with integers, slices, None, Ellipsis, integer and boolean arrays, as in NumPy.

    Index arrays may be on the host, also for an x on a GPU.  The result is contiguous.  The
    gradients of an element that is picked several times are summed in an order that depends only on
    the index: the same bits every time, on a GPU too.
    On a GPU the backward pass sorts index arrays on the host, which synchronises if they are on the
    GPU; integers and slices never synchronise.

    Raises ShapeError for an index out of range.
    """
    x = as_tensor(x)
    if isinstance(index, tuple):
        index = tuple(i.data if isinstance(i, Tensor) else i for i in index)
    elif isinstance(index, Tensor):
        index = index.data
    return _GetItem(index)(x)


def astype(x: Any, dtype: Any) -> Tensor:
    """x converted to dtype, or x itself if it has it; the gradient is converted back.

    The result of a conversion to integers or bools does not require a gradient.
    Raises DtypeError for a dtype that is not of numbers.
    """
    x, dtype = as_tensor(x), number_dtype("astype", dtype)
    if not is_floating(dtype) and x.requires_grad:
        x = x.detach()
    return x if x.dtype == dtype else _AsType(dtype)(x)


def clone(x: Any) -> Tensor:
    """A contiguous copy of x, which passes gradients back."""
    return _Clone()(as_tensor(x))


def to_device(x: Tensor, device: Device) -> Tensor:
    """x on `device`: x itself if it is there, else a copy that passes gradients back."""
    return x if x.device == device else _ToDevice(device)(x)


def _ints(op: str, what: str, values: Any) -> tuple[int, ...]:
    """values, a sequence of ints, as a tuple; ArgumentError for anything else."""
    try:
        return tuple(map(as_index, values))
    except TypeError:
        raise ArgumentError(f"{op}: {what} must be a tuple of ints, got {values!r}") from None


def from_nchw(x: Any) -> Tensor:
    """PyTorch's images (N, C, H, W) as (N, H, W, C), contiguous.

    Raises ShapeError unless x has four axes.
    """
    x = as_tensor(x)
    if x.ndim != 4:
        raise ShapeError(f"from_nchw: expected images (N, C, H, W), got shape {x.shape}")
    return transpose(x, (0, 2, 3, 1))


def to_nchw(x: Any) -> Tensor:
    """Images (N, H, W, C) as PyTorch's (N, C, H, W), contiguous.

    Raises ShapeError unless x has four axes.
    """
    x = as_tensor(x)
    if x.ndim != 4:
        raise ShapeError(f"to_nchw: expected images (N, H, W, C), got shape {x.shape}")
    return transpose(x, (0, 3, 1, 2))


class _Reshape(Function):
    name = "reshape"
    keeps_zeros = True

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def forward(self, x: Array) -> Array:
        self.old = x.shape
        return x.reshape(self.shape)

    def backward(self, dy: Array) -> Array:
        if self.masked:
            self.mask(0)
        return dy.reshape(self.old)


class _Transpose(Function):
    name = "transpose"

    def __init__(self, axes: tuple[int, ...]) -> None:
        self.axes = axes

    def forward(self, x: Array) -> Array:
        y = x.transpose(self.axes)
        return array_module(x).ascontiguousarray(y).reshape(y.shape)  # undo () -> (1,)

    def backward(self, dy: Array) -> Array:
        dx = dy.transpose(sorted(range(len(self.axes)), key=self.axes.__getitem__))
        return array_module(dy).ascontiguousarray(dx).reshape(dx.shape)


class _Concatenate(Function):
    name = "concatenate"

    def __init__(self, axis: int) -> None:
        self.axis = axis

    def forward(self, *parts: Array) -> Array:
        self.sizes = [part.shape[self.axis] for part in parts]
        return array_module(parts[0]).concatenate(parts, axis=self.axis)

    def backward(self, dy: Array) -> tuple[Array, ...]:
        xp, start, gradients = array_module(dy), 0, []
        for size in self.sizes:
            index = (slice(None),) * self.axis + (slice(start, start + size),)
            gradients.append(xp.ascontiguousarray(dy[index]))
            start += size
        return tuple(gradients)


class _Pad(Function):
    name = "pad"

    def __init__(self, widths: tuple[tuple[int, int], ...], value: float) -> None:
        self.widths = widths
        self.value = value

    def forward(self, x: Array) -> Array:
        self.inner = tuple(
            slice(before, before + n) for (before, _), n in zip(self.widths, x.shape, strict=True)
        )
        if x.ndim == 0:  # np.pad rejects an empty list of widths
            return x.copy()
        return narrowed(array_module(x).pad(x, self.widths, constant_values=self.value), x.dtype)

    def backward(self, dy: Array) -> Array:
        dx = dy[self.inner]
        return array_module(dy).ascontiguousarray(dx).reshape(dx.shape)


class _GetItem(Function):
    name = "getitem"

    def __init__(self, index: Any) -> None:
        self.index = index

    def forward(self, x: Array) -> Array:
        self.shape = x.shape
        try:
            y = x[_on_device(x, self.index)]
        except IndexError as error:
            raise ShapeError(f"getitem: {error}; x has shape {x.shape}") from None
        return array_module(x).ascontiguousarray(y).reshape(y.shape)  # undo () -> (1,)

    def backward(self, dy: Array) -> Array:
        xp = array_module(dy)
        dx = xp.zeros(self.shape, dtype=dy.dtype)
        parts = self.index if isinstance(self.index, tuple) else (self.index,)
        if all(isinstance(i, _PLAIN) for i in parts):
            dx[self.index] = dy  # picks each element at most once
        elif xp is np:
            np.add.at(dx, self.index, dy)
        elif dy.size:
            rows, trailing = _rows(self.shape, self.index)
            _add_at(dx.reshape(-1, trailing), rows, dy.reshape(-1, trailing))
        return dx


def _on_device(x: Array, index: Any) -> Any:
    """An index whose NumPy arrays are on x's device."""
    if isinstance(x, np.ndarray):
        return index
    parts = index if isinstance(index, tuple) else (index,)
    moved = [array_module(x).asarray(i) if isinstance(i, np.ndarray) else i for i in parts]
    return tuple(moved) if isinstance(index, tuple) else moved[0]


# --- add.at on a GPU: CuPy's version adds atomically, in no fixed order; this sums pairs ---

_PLAIN = int | np.integer | slice | type(None) | type(Ellipsis)


def _rows(shape: tuple[int, ...], index: Any) -> tuple[Any, int]:
    """The row of x that each row of x[index] was taken from, in order, and the length of a row.

    x is seen as (rows, trailing), where trailing is the axes that the index leaves whole.
    """
    parts = [
        to_host(part) if hasattr(part, "get") else part  # an index array on the GPU
        for part in (index if isinstance(index, tuple) else (index,))
    ]
    parts = [np.asarray(part) if isinstance(part, list) else part for part in parts]
    lead = len(shape)
    if not any(part is Ellipsis for part in parts):
        lead = sum(part.ndim if _is_mask(part) else part is not None for part in parts)
    rows = np.arange(math.prod(shape[:lead])).reshape(shape[:lead])
    try:
        return rows[tuple(parts)].reshape(-1), math.prod(shape[lead:])
    except IndexError as error:  # CuPy wraps such an index around without an error
        raise ShapeError(f"getitem: {error}; x has shape {shape}") from None


def _is_mask(part: Any) -> bool:
    return hasattr(part, "dtype") and part.dtype.kind == "b"


def _add_at(dx: Array, rows: Any, dy: Array) -> None:
    """Add dy (n, trailing) to dx[rows], where dx is 0; rows (n,) is on the host.

    The rows of dy are sorted by target, and those of one target are summed in pairs until one is
    left, which takes log2(largest count) rounds.
    """
    xp = array_module(dx)
    order = np.argsort(rows, kind="stable")
    targets, starts, counts = np.unique(rows[order], return_index=True, return_counts=True)
    dy = dy[xp.asarray(order)]
    while counts.max() > 1:
        halves = (counts + 1) // 2
        firsts = np.cumsum(halves) - halves
        of_run = np.arange(halves.sum()) - np.repeat(firsts, halves)
        left = np.repeat(starts, halves) + of_run
        paired = np.flatnonzero(of_run + np.repeat(halves, halves) < np.repeat(counts, halves))
        right = left[paired] + np.repeat(halves, halves)[paired]
        total = dy[xp.asarray(left)]
        total[xp.asarray(paired)] += dy[xp.asarray(right)]
        dy, starts, counts = total, firsts, halves
    dx[xp.asarray(targets)] = dy


class _AsType(Function):
    name = "astype"

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype

    def forward(self, x: Array) -> Array:
        self.old = x.dtype
        return x.astype(self.dtype)

    def backward(self, dy: Array) -> Array:
        return dy.astype(self.old)


class _Clone(Function):
    name = "clone"

    def forward(self, x: Array) -> Array:
        return x.copy()

    def backward(self, dy: Array) -> Array:
        return dy


class _ToDevice(Function):
    name = "to_device"

    def __init__(self, device: Device) -> None:
        self.device = device

    def forward(self, x: Array) -> Array:
        self.old = device_of(x)
        return copy_to(x, self.device)

    def backward(self, dy: Array) -> Array:
        return copy_to(dy, self.old)
