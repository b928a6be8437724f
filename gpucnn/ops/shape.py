"""The same values in another shape, order, place or dtype."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpucnn.autograd import Function
from gpucnn.device import Array, Device, array_module, device_of
from gpucnn.device import to_device as copy_to
from gpucnn.errors import ArgumentError, DtypeError, ShapeError
from gpucnn.ops.elementwise import as_tensor
from gpucnn.tensor import Tensor


def reshape(x: Any, shape: Sequence[int]) -> Tensor:
    """x with its elements in row order under a new shape; one size may be -1."""
    x = as_tensor(x)
    shape = tuple(shape)
    known = math.prod(n for n in shape if n != -1)
    free = sum(n == -1 for n in shape)
    fits = known == x.size if free == 0 else free == 1 and known > 0 and x.size % known == 0
    if not fits or any(n < -1 for n in shape):
        raise ShapeError(f"reshape: {x.shape} has {x.size} elements and cannot become {shape}")
    return _Reshape(shape)(x)


def flatten(x: Any) -> Tensor:
    """(N, ...) as (N, everything else); images (N, H, W, C) go in row, column, channel order."""
    x = as_tensor(x)
    if x.ndim == 0:
        raise ShapeError("flatten: expected at least one axis, got a scalar")
    return reshape(x, (x.shape[0], math.prod(x.shape[1:])))


def transpose(x: Any, axes: Sequence[int] | None = None) -> Tensor:
    """x with its axes in the order `axes`; None reverses them."""
    x = as_tensor(x)
    order = tuple(range(x.ndim))[::-1] if axes is None else tuple(axes)
    if sorted(i % x.ndim if -x.ndim <= i < x.ndim else -1 for i in order) != list(range(x.ndim)):
        raise ArgumentError(f"transpose: axes {order} do not order the {x.ndim} axes of {x.shape}")
    return _Transpose(tuple(i % x.ndim for i in order))(x)


def concatenate(tensors: Sequence[Any], axis: int = 0) -> Tensor:
    """The tensors one after another along `axis`; their other sizes must agree."""
    parts = [as_tensor(x) for x in tensors]
    if not parts:
        raise ArgumentError("concatenate: expected at least one tensor")
    first = parts[0]
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
    """x with `value` around it: widths holds (before, after) for each axis, in elements."""
    x = as_tensor(x)
    pairs = tuple((int(before), int(after)) for before, after in widths)
    if len(pairs) != x.ndim or any(n < 0 for pair in pairs for n in pair):
        raise ArgumentError(
            f"pad: expected {x.ndim} pairs of non-negative widths for shape {x.shape}, got {pairs}"
        )
    return _Pad(pairs, value)(x)


def getitem(x: Any, index: Any) -> Tensor:
    """x[index]: integers, slices, None, Ellipsis, integer and boolean arrays, as in NumPy.

    The gradients of an element that is picked several times are added up in an order that depends
    on the index alone: the same bits every time, on a GPU too.  There the backward pass of index
    arrays sorts them on the host, and waits for those that are on the GPU; integers and slices
    wait for nothing.
    """
    x = as_tensor(x)
    if isinstance(index, tuple):
        index = tuple(i.data if isinstance(i, Tensor) else i for i in index)
    elif isinstance(index, Tensor):
        index = index.data
    return _GetItem(index)(x)


def astype(x: Any, dtype: Any) -> Tensor:
    """x as another dtype; the gradient comes back in x's own."""
    x = as_tensor(x)
    return x if x.dtype == dtype else _AsType(dtype)(x)


def to_device(x: Tensor, device: Device) -> Tensor:
    """x on `device`: itself if it is there, else a copy through which gradients flow back."""
    return x if x.device == device else _ToDevice(device)(x)


def from_nchw(x: Any) -> Tensor:
    """Images (N, C, H, W), as PyTorch holds them, as (N, H, W, C), contiguous."""
    x = as_tensor(x)
    if x.ndim != 4:
        raise ShapeError(f"from_nchw: expected images (N, C, H, W), got shape {x.shape}")
    return transpose(x, (0, 2, 3, 1))


def to_nchw(x: Any) -> Tensor:
    """Images (N, H, W, C) as (N, C, H, W), contiguous."""
    x = as_tensor(x)
    if x.ndim != 4:
        raise ShapeError(f"to_nchw: expected images (N, H, W, C), got shape {x.shape}")
    return transpose(x, (0, 3, 1, 2))


class _Reshape(Function):
    name = "reshape"

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def forward(self, x: Array) -> Array:
        self.old = x.shape
        return x.reshape(self.shape)

    def backward(self, dy: Array) -> Array:
        return dy.reshape(self.old)


class _Transpose(Function):
    name = "transpose"

    def __init__(self, axes: tuple[int, ...]) -> None:
        self.axes = axes

    def forward(self, x: Array) -> Array:
        return array_module(x).ascontiguousarray(x.transpose(self.axes))

    def backward(self, dy: Array) -> Array:
        inverse = sorted(range(len(self.axes)), key=self.axes.__getitem__)
        return array_module(dy).ascontiguousarray(dy.transpose(inverse))


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
        return array_module(x).pad(x, self.widths, constant_values=self.value)

    def backward(self, dy: Array) -> Array:
        return array_module(dy).ascontiguousarray(dy[self.inner])


class _GetItem(Function):
    name = "getitem"

    def __init__(self, index: Any) -> None:
        self.index = index

    def forward(self, x: Array) -> Array:
        self.shape = x.shape
        try:
            y = x[self.index]
        except IndexError as error:
            raise ShapeError(f"getitem: {error}; x has shape {x.shape}") from None
        return array_module(x).ascontiguousarray(y).reshape(y.shape)  # which turns () into (1,)

    def backward(self, dy: Array) -> Array:
        xp = array_module(dy)
        dx = xp.zeros(self.shape, dtype=dy.dtype)
        parts = self.index if isinstance(self.index, tuple) else (self.index,)
        if all(isinstance(i, _PLAIN) for i in parts):
            dx[self.index] = dy  # each element at most once
        elif xp is np:
            np.add.at(dx, self.index, dy)
        elif dy.size:
            places, trailing = _places(self.shape, self.index)
            _add_at(dx.reshape(-1, trailing), places, dy.reshape(-1, trailing))
        return dx


# --- a GPU's add.at is an atomic for each number, in no order: sums of pairs instead ---

_PLAIN = int | np.integer | slice | type(None) | type(Ellipsis)


def _places(shape: tuple[int, ...], index: Any) -> tuple[Any, int]:
    """Where each part of x[index] came from in x (lead, trailing), by row, in order; and trailing.

    Trailing axes that the index does not mention are whole in every part.
    """
    parts = [
        part.get() if hasattr(part, "get") else part
        for part in (index if isinstance(index, tuple) else (index,))
    ]
    parts = [np.asarray(part) if isinstance(part, list) else part for part in parts]
    lead = len(shape)
    if not any(part is Ellipsis for part in parts):
        lead = sum(part.ndim if _is_mask(part) else part is not None for part in parts)
    rows = np.arange(math.prod(shape[:lead])).reshape(shape[:lead])
    try:
        return rows[tuple(parts)].reshape(-1), math.prod(shape[lead:])
    except IndexError as error:  # CuPy wraps such an index round and says nothing
        raise ShapeError(f"getitem: {error}; x has shape {shape}") from None


def _is_mask(part: Any) -> bool:
    return hasattr(part, "dtype") and part.dtype.kind == "b"


def _add_at(dx: Array, places: Any, dy: Array) -> None:
    """Add dy (n, trailing) to dx[places], places (n,) of the host, where dx is 0.

    The rows of one place are put side by side, and added up in pairs until one of each is left:
    as many rounds as the largest number of them has bits.
    """
    xp = array_module(dx)
    order = np.argsort(places, kind="stable")
    found, starts, counts = np.unique(places[order], return_index=True, return_counts=True)
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
    dx[xp.asarray(found)] = dy


class _AsType(Function):
    name = "astype"

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype

    def forward(self, x: Array) -> Array:
        self.old = x.dtype
        return x.astype(self.dtype)

    def backward(self, dy: Array) -> Array:
        return dy.astype(self.old)


class _ToDevice(Function):
    name = "to_device"

    def __init__(self, device: Device) -> None:
        self.device = device

    def forward(self, x: Array) -> Array:
        self.old = device_of(x)
        return copy_to(x, self.device)

    def backward(self, dy: Array) -> Array:
        return copy_to(dy, self.old)
