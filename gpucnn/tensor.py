"""Tensor: an array, the device it lives on, and its gradient.

Nothing is computed here.  Operators and methods call gpucnn.ops, and backward calls
gpucnn.autograd; both build on Tensor, so gpucnn/__init__.py binds them with `bind` once all are
loaded.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from gpucnn.device import (
    Array,
    Device,
    array_module,
    default_device,
    device_of,
    to_device,
    to_host,
    working_on,
)
from gpucnn.dlpack import array_from_cuda, array_from_dlpack, check_dtype, speaks_dlpack
from gpucnn.errors import DtypeError, GraphError, ShapeError

Scalar = int | float


class _Late(Protocol):
    """A module that builds on Tensor."""

    def __getattr__(self, name: str) -> Callable[..., "Tensor"]: ...


ops: _Late
autograd: _Late


def bind(ops_module: Any, autograd_module: Any) -> None:
    """Give Tensor's operators the modules that compute them."""
    global ops, autograd
    ops, autograd = ops_module, autograd_module


class Tensor:
    """An array that remembers how it was computed.

    data           the NumPy or CuPy array
    grad           an array of the same shape, in memory of its own; None before the first backward
    requires_grad  whether operations on this tensor are recorded

    Make one with `gpucnn.tensor`.  Images are (N, H, W, C).
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
    __array_ufunc__ = None  # array + tensor is the tensor's business

    grad: Array | None

    def __init__(self, data: Array, requires_grad: bool = False) -> None:
        self._data = data
        self.grad = None
        self.requires_grad = requires_grad
        self._node: Any = None  # the autograd.Function that computed it
        self._retain = False
        self._version = 0  # counts the changes that a recorded graph must not survive
        self._cache: dict[Any, Any] | None = None  # what ops computed from the array: see `cache`

    # --- its array ---

    @property
    def data(self) -> Array:
        """The NumPy or CuPy array.  It may be written through this attribute, `t.data[...] = x`.

        Inference caches the transformed filters of a convolution until `data` is read or set.  An
        array that was taken from it earlier and is written later is not noticed: read `data` anew
        for each write.  Setting it, or an optimizer's step, also makes graphs that were recorded
        before unusable.
        """
        self._cache = None
        return self._data

    @data.setter
    def data(self, array: Array) -> None:
        self._data = array
        self._changed()

    def _changed(self) -> None:
        """The array has been replaced or written."""
        self._version += 1
        self._cache = None

    def cache(self) -> dict[Any, Any]:
        """What ops computed from the array and may use again: a dict that lives until it changes.

        A result that comes too late goes into a dict that nobody reads any more.
        """
        cache = self._cache
        if cache is None:
            cache = self._cache = {}
        return cache

    # --- what it is ---

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
        """Whether no operation computed it: its gradient, if it has one, is kept."""
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

    # --- in and out ---

    def numpy(self) -> np.ndarray[Any, Any]:
        """The values as a NumPy array: the tensor's own memory on the CPU, a copy elsewhere."""
        return to_host(self.data)

    def item(self) -> Any:
        """The only element, as a Python number."""
        if self.size != 1:
            raise ShapeError(f"item: expected one element, got shape {self.shape}")
        return to_host(self.data).item()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        if copy is False and not isinstance(self.data, np.ndarray):
            raise ValueError(f"a tensor on {self.device} has no NumPy array without a copy")
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    # Other libraries share the tensor's memory, gradients aside: torch.from_dlpack(tensor).

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
        asked = {
            "stream": stream,
            "max_version": max_version,
            "dl_device": dl_device,
            "copy": copy,
        }
        # NumPy 2.0 knows the first of these alone.
        asked = {name: value for name, value in asked.items() if value is not None}
        with working_on(self.device):  # whose current stream the consumer waits for
            return self.data.__dlpack__(**asked)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """CuPy's; AttributeError elsewhere, so that hasattr tells what is on a GPU."""
        with working_on(self.device):  # whose current stream it names
            interface: dict[str, Any] = self.data.__cuda_array_interface__
        return interface

    def to(self, device: "str | Device") -> "Tensor":
        """This tensor on `device`: itself if it is there, else a copy that passes gradients on."""
        return ops.to_device(self, Device.parse(device))

    def detach(self) -> "Tensor":
        """The same memory, outside the graph."""
        return Tensor(self.data)

    # --- gradients ---

    def backward(self, gradient: Array | None = None, retain_graph: bool = False) -> None:
        """Add the gradient of this tensor to `.grad` of every leaf behind it: autograd.backward."""
        autograd.backward(self, gradient, retain_graph)

    def retain_grad(self) -> "Tensor":
        """Ask for `.grad` although this tensor is not a leaf; returns the tensor itself."""
        if not self.requires_grad:
            raise GraphError("retain_grad: this tensor does not require a gradient")
        self._retain = not self.is_leaf
        return self

    def zero_grad(self) -> None:
        """Forget the gradient."""
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
        return ops.power(self, exponent)

    def __neg__(self) -> "Tensor":
        return ops.negative(self)

    def __matmul__(self, other: Any) -> "Tensor":
        return ops.matmul(self, other)

    def __rmatmul__(self, other: Any) -> "Tensor":
        return ops.matmul(other, self)

    def __getitem__(self, index: Any) -> "Tensor":
        return ops.getitem(self, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        raise GraphError(
            "a tensor cannot be changed in place: the graph may still need its old values\n"
            "  build a new one (gpucnn.ops.where, pad, concatenate), or change a leaf's .data "
            "before it is used"
        )

    # --- methods that are ops ---

    def reshape(self, *shape: Any) -> "Tensor":
        return ops.reshape(
            self, shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        )

    def flatten(self) -> "Tensor":
        return ops.flatten(self)

    def transpose(self, *axes: Any) -> "Tensor":
        if len(axes) == 1 and not isinstance(axes[0], int):
            axes = tuple(axes[0])
        return ops.transpose(self, axes or None)

    @property
    def T(self) -> "Tensor":
        return ops.transpose(self)

    def sum(self, axis: Any = None, keepdims: bool = False) -> "Tensor":
        return ops.sum(self, axis, keepdims)

    def mean(self, axis: Any = None, keepdims: bool = False) -> "Tensor":
        return ops.mean(self, axis, keepdims)

    def max(self, axis: Any = None, keepdims: bool = False) -> "Tensor":
        return ops.max(self, axis, keepdims)

    def min(self, axis: Any = None, keepdims: bool = False) -> "Tensor":
        return ops.min(self, axis, keepdims)

    def argmax(self, axis: int | None = None) -> Array:
        """Positions of the largest elements, as an integer array: they have no gradient."""
        with working_on(self.device):
            return self.data.argmax(axis=axis)

    def exp(self) -> "Tensor":
        return ops.exp(self)

    def log(self) -> "Tensor":
        return ops.log(self)

    def sqrt(self) -> "Tensor":
        return ops.sqrt(self)

    def relu(self) -> "Tensor":
        return ops.relu(self)

    def astype(self, dtype: Any) -> "Tensor":
        return ops.astype(self, dtype)


def tensor(
    array: Any, device: "str | Device | None" = None, requires_grad: bool = False, dtype: Any = None
) -> Tensor:
    """A Tensor of `array`: anything that NumPy or CuPy can make an array of.

    Memory is shared where device and dtype allow, also with arrays of other libraries that have
    __dlpack__ or __cuda_array_interface__ (PyTorch, Numba); see from_dlpack for their errors.
    device is "auto", "cpu", "cuda", "cuda:N" or a Device.  None leaves an array of a GPU where it
    is, and puts anything else on the device of the `with gpucnn.device(...)` around the call, on
    the CPU without one.  dtype None keeps an array's own; Python floats become float32.

    Raises DtypeError for what is not numeric, or for a gradient of integers; DeviceError for a
    device that cannot be used.
    """
    array = _array(array)
    if dtype is not None:
        with working_on(device_of(array)):
            array = array.astype(dtype, copy=False)
    check_dtype("tensor", array)
    if requires_grad and array.dtype.kind != "f":
        raise DtypeError(
            f"tensor: only floating-point tensors have gradients, got {array.dtype}\n"
            "  pass dtype=numpy.float32"
        )
    if device is None and isinstance(array, np.ndarray):
        device = default_device()
    if device is not None:
        array = to_device(array, Device.parse(device))
    return Tensor(array, requires_grad)


def _array(x: Any) -> Array:
    """x as a NumPy or CuPy array, without a copy where that can be."""
    if isinstance(x, Tensor):
        return x.data
    try:
        array_module(x)
        return x
    except TypeError:
        pass  # neither library's: an array of another one, or no array
    if speaks_dlpack(x):
        return array_from_dlpack("tensor", x)
    if hasattr(x, "__cuda_array_interface__"):
        return array_from_cuda("tensor", x)
    typed = isinstance(x, np.generic) or hasattr(x, "__array__")
    try:
        array = np.asarray(x)
    except ValueError as error:
        raise ShapeError(f"tensor: rows of different lengths make no array ({error})") from error
    return array.astype(np.float32) if array.dtype == np.float64 and not typed else array


def from_dlpack(x: Any) -> Tensor:
    """A Tensor of x's own memory: an array of any library that speaks DLPack, on the CPU or CUDA.

    Nothing is copied: shape, strides, dtype and device are x's, and so is whether it may be
    written, except that NumPy 2.0 makes read-only what it takes and does not pass that on.
    Raises ArgumentError if x does not speak DLPack; DeviceError for a device that gpucnn does not
    have; DtypeError for a dtype that it does not have (bfloat16, complex); GraphError if x
    requires a gradient in its own library.
    Source: the array API standard, data interchange mechanisms.
    """
    return Tensor(array_from_dlpack("from_dlpack", x.data if isinstance(x, Tensor) else x))
