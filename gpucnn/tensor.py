"""Tensor: an array, its device and its gradient.

Nothing is computed here: operators and methods call gpucnn.ops, and backward calls
gpucnn.autograd.  Both import Tensor, so gpucnn/__init__.py passes them to `bind` once everything
is loaded.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from gpucnn.device import Array, Device, device_of, to_host, working_on
from gpucnn.errors import DtypeError, GraphError, ShapeError

Scalar = int | float


class _Late(Protocol):
    """A module that imports this one."""

    def __getattr__(self, name: str) -> Callable[..., "Tensor"]: ...


ops: _Late
autograd: _Late


def bind(ops_module: Any, autograd_module: Any) -> None:
    """Set the modules that compute Tensor's operators and its backward pass."""
    global ops, autograd
    ops, autograd = ops_module, autograd_module


class Tensor:
    """An array that remembers how it was computed.

    data           the NumPy or CuPy array
    grad           an array of the same shape and dtype, in its own memory, or None
    requires_grad  whether operations on this tensor are recorded

    Create one with `gpucnn.tensor`.  Images are (N, H, W, C).  Operators broadcast as in NumPy and
    take tensors, arrays and Python numbers.  They never promote: operands of different dtypes raise
    DtypeError.
    """

    __slots__ = (
        "__weakref__",
        "_cache",
        "_data",
        "_node",
        "_retain",
        "_version",
        "grad",
        "requires_grad",
    )
    __array_ufunc__ = None  # NumPy leaves array + tensor to Tensor.__radd__

    grad: Array | None

    def __init__(self, data: Array, requires_grad: bool = False) -> None:
        self._data = data
        self.grad = None
        self.requires_grad = requires_grad
        self._node: Any = None  # the autograd.Function that computed it
        self._retain = False
        self._version = 0  # counts changes of the array, which invalidate graphs
        self._cache: dict[Any, Any] | None = None  # see `cache`

    # --- the array ---

    @property
    def data(self) -> Array:
        """The NumPy or CuPy array.  It may be written in place: `t.data[...] = x`.

        Ops cache what they compute from the array, such as a convolution's transformed filters,
        until `data` is read or set.  Writing to an array that was read earlier is not noticed, so
        read `data` again for each write.  Setting `data` (`t.data -= x` does too) or an optimizer's
        step also invalidates every graph recorded before: its backward raises GraphError.
        """
        self._cache = None
        return self._data

    @data.setter
    def data(self, array: Array) -> None:
        self._data = array
        self._changed()

    def _changed(self) -> None:
        """Invalidate graphs and caches after the array was replaced or written."""
        self._version += 1
        self._cache = None

    def cache(self) -> dict[Any, Any]:
        """A dict for what ops compute from the array, dropped when the array changes.

        An op that was running during the change stores its outdated result in the dropped dict.
        """
        cache = self._cache
        if cache is None:
            cache = self._cache = {}
        return cache

    # --- properties ---

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._data.shape)

    @property
    def ndim(self) -> int:
        return int(self._data.ndim)

    @property
    def size(self) -> int:
        return int(self._data.size)

    @property
    def dtype(self) -> np.dtype[Any]:
        dtype: np.dtype[Any] = self._data.dtype
        return dtype

    @property
    def device(self) -> Device:
        return device_of(self._data)

    @property
    def is_leaf(self) -> bool:
        """Whether no recorded operation computed it; by default only leaves get a `.grad`."""
        return self._node is None

    def __len__(self) -> int:
        if self.ndim == 0:
            raise ShapeError("len: a scalar tensor has no length")
        return self.shape[0]

    def __repr__(self) -> str:
        body = np.array2string(self.numpy(), precision=4, separator=", ", threshold=100)
        notes = [f"shape={self.shape}", str(self.dtype)]
        if self.device.kind != "cpu":
            notes.append(f"device={self.device}")
        if self._node is not None:
            notes.append(f"from={self._node.name}")
        elif self.requires_grad:
            notes.append("requires_grad")
        return f"Tensor({body}, {', '.join(notes)})"

    def __bool__(self) -> bool:
        return bool(self.item())

    # --- conversion ---

    def numpy(self) -> np.ndarray[Any, Any]:
        """The values as a NumPy array: the tensor's own memory on the CPU, else a copy."""
        return to_host(self.data)

    def item(self) -> Any:
        """The only element as a Python number; ShapeError if there is not exactly one."""
        if self.size != 1:
            raise ShapeError(f"item: expected one element, got shape {self.shape}")
        return to_host(self.data).item()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        if copy is False and not isinstance(self.data, np.ndarray):
            raise ValueError(f"a tensor on {self.device} has no NumPy array without a copy")
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    # Other libraries can share the tensor's memory, without its graph: torch.from_dlpack(tensor).

    def __dlpack_device__(self) -> tuple[int, int]:
        kind, index = self.data.__dlpack_device__()
        return int(kind), int(index)

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        options = {
            "stream": stream,
            "max_version": max_version,
            "dl_device": dl_device,
            "copy": copy,
        }
        # NumPy 2.0 accepts only `stream`.
        options = {name: value for name, value in options.items() if value is not None}
        with working_on(self.device):  # the consumer waits for its current stream
            return self.data.__dlpack__(**options)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """CuPy's interface; AttributeError on the CPU, so hasattr is false there."""
        with working_on(self.device):  # it names the current stream
            interface: dict[str, Any] = self.data.__cuda_array_interface__
        return interface

    def to(self, device: "str | Device") -> "Tensor":
        """This tensor on `device`: itself if it is there, else a copy that passes gradients back.

        device is "auto", "cpu", "cuda", "cuda:N" or a Device; DeviceError if it cannot be used.
        """
        return ops.to_device(self, Device.parse(device))

    def detach(self) -> "Tensor":
        """A tensor that shares this one's memory but not its graph."""
        return Tensor(self.data)

    # --- gradients ---

    def backward(self, gradient: Array | None = None, retain_graph: bool = False) -> None:
        """Add this tensor's gradient to `.grad` of every leaf it depends on.

        gradient is the array to start from, of this tensor's shape, dtype and device; None means 1
        and needs a tensor with one element.  The graph is freed unless retain_graph is set.
        Raises GraphError, ShapeError, DtypeError or DeviceMismatch: see autograd.backward.
        """
        autograd.backward(self, gradient, retain_graph)

    def requires_grad_(self, requires_grad: bool = True) -> "Tensor":
        """Set `requires_grad` and return the tensor itself.

        Raises DtypeError for True on a tensor of integers, and GraphError for False on the result
        of a recorded operation: use detach() instead.
        """
        if requires_grad and self.dtype.kind != "f":
            raise DtypeError(
                f"requires_grad_: only floating-point tensors have gradients, got {self.dtype}\n"
                "  convert the tensor first: x.astype('float32')"
            )
        if not requires_grad and not self.is_leaf:
            raise GraphError(
                f"requires_grad_: the result of {self._node.name} always requires a gradient; "
                "only a leaf can be frozen\n  use detach() for the same values without the graph"
            )
        self.requires_grad = requires_grad
        return self

    def retain_grad(self) -> "Tensor":
        """Make backward set `.grad` of this tensor, leaf or not; returns the tensor itself.

        Raises GraphError if the tensor does not require a gradient.
        """
        if not self.requires_grad:
            raise GraphError("retain_grad: this tensor does not require a gradient")
        self._retain = not self.is_leaf
        return self

    def zero_grad(self) -> None:
        """Set `.grad` to None."""
        self.grad = None

    # --- operators ---

    def __add__(self, other: Any) -> "Tensor":
        return ops.add(self, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> "Tensor":
        return ops.subtract(self, other)

    def __rsub__(self, other: Any) -> "Tensor":
        return ops.subtract(other, self)

    def __mul__(self, other: Any) -> "Tensor":
        return ops.multiply(self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> "Tensor":
        return ops.divide(self, other)

    def __rtruediv__(self, other: Any) -> "Tensor":
        return ops.divide(other, self)

    def __pow__(self, exponent: Scalar) -> "Tensor":
        """self ** exponent for a number: ops.power."""
        return ops.power(self, exponent)

    def __neg__(self) -> "Tensor":
        return ops.negative(self)

    def __matmul__(self, other: Any) -> "Tensor":
        """(..., M, K) @ (..., K, N), leading axes broadcast: ops.matmul."""
        return ops.matmul(self, other)

    def __rmatmul__(self, other: Any) -> "Tensor":
        return ops.matmul(other, self)

    def __getitem__(self, index: Any) -> "Tensor":
        """self[index] as in NumPy, always contiguous: ops.getitem."""
        return ops.getitem(self, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        raise GraphError(
            "a tensor cannot be changed in place: the graph may still need its old values\n"
            "  create a new one (gpucnn.ops.where, pad, concatenate), or write to a leaf's .data "
            "before it is used"
        )

    # --- ops as methods ---

    def reshape(self, *shape: Any) -> "Tensor":
        """The elements in row order in a new shape, `x.reshape(2, -1)` or `x.reshape((2, -1))`.

        One size may be -1, to be inferred.  Raises ShapeError if the sizes do not match.
        """
        return ops.reshape(
            self, shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        )

    def flatten(self) -> "Tensor":
        """(N, ...) as (N, M), in row order.  Raises ShapeError for a scalar."""
        return ops.flatten(self)

    def transpose(self, *axes: Any) -> "Tensor":
        """The axes in the order `axes`, `x.transpose(0, 2, 1)` or `x.transpose((0, 2, 1))`.

        Without axes, their order is reversed.  The result is contiguous.
        Raises ArgumentError unless axes is a permutation of the tensor's axes.
        """
        if len(axes) == 1 and not isinstance(axes[0], int):
            axes = tuple(axes[0])
        return ops.transpose(self, axes or None)

    @property
    def T(self) -> "Tensor":
        """The tensor with its axes reversed, contiguous."""
        return ops.transpose(self)

    def sum(self, axis: Any = None, keepdims: bool = False) -> "Tensor":
        """The sum over `axis`: one axis, a tuple of axes, or None for all.

        Reduced axes stay with size 1 if keepdims is set.  float16 is accumulated in float32.
        Raises ArgumentError for an axis that is out of range or repeated.
        """
        return ops.sum(self, axis, keepdims)

    def mean(self, axis: Any = None, keepdims: bool = False) -> "Tensor":
        """The mean over `axis`; axis and keepdims as for `sum`.

        Raises ShapeError for no elements, DtypeError for integers.
        """
        return ops.mean(self, axis, keepdims)

    def max(self, axis: Any = None, keepdims: bool = False) -> "Tensor":
        """The largest value over `axis`; axis and keepdims as for `sum`.

        NaN wins; elements that tie share the gradient equally.  Raises ShapeError for no elements.
        """
        return ops.max(self, axis, keepdims)

    def min(self, axis: Any = None, keepdims: bool = False) -> "Tensor":
        """The smallest value over `axis`; ties, NaN and errors as for `max`."""
        return ops.min(self, axis, keepdims)

    def argmax(self, axis: int | None = None) -> Array:
        """The positions of the largest values as an integer array, which has no gradient.

        axis None takes the position in the flattened tensor; of equal values the first wins.
        """
        with working_on(self.device):
            return self.data.argmax(axis=axis)

    def exp(self) -> "Tensor":
        """e**x, element by element.  Raises DtypeError for integers."""
        return ops.exp(self)

    def log(self) -> "Tensor":
        """The natural logarithm: -infinity at 0, NaN below.  Raises DtypeError for integers."""
        return ops.log(self)

    def sqrt(self) -> "Tensor":
        """The square root: NaN below 0.  Raises DtypeError for integers."""
        return ops.sqrt(self)

    def relu(self) -> "Tensor":
        """max(x, 0), element by element; the gradient at 0 is 0, and NaN stays NaN."""
        return ops.relu(self)

    def astype(self, dtype: Any) -> "Tensor":
        """The tensor converted to dtype, or itself if it has it; the gradient is converted back."""
        return ops.astype(self, dtype)
