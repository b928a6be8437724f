"""The array of a tensor: its properties, and its conversion to numbers and to other libraries.

NumPy's functions take tensors and return arrays, without a gradient: np.mean(t), np.stack([t, u]).
Its ufuncs, such as np.exp, refuse tensors with a TypeError.
"""

from typing import Any

import numpy as np

from gpucnn.device import Array, Device, device_of, to_host, working_on
from gpucnn.dlpack import export
from gpucnn.errors import ArgumentError, DtypeError, ShapeError


class TensorData:
    """The part of Tensor that knows no graphs and no ops."""

    __slots__ = ("_cache", "_data", "_version")
    # NumPy and CuPy leave array + tensor to Tensor.__radd__, which records it.
    __array_ufunc__ = None

    _data: Array
    _version: int  # counts changes of the array, which invalidate graphs
    _cache: dict[Any, Any] | None  # see `cache`

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

    def dim(self) -> int:
        """The number of axes: `ndim`."""
        return self.ndim

    def numel(self) -> int:
        """The number of elements: `size`."""
        return self.size

    def __len__(self) -> int:
        if self.ndim == 0:
            raise ShapeError("len: a scalar tensor has no length")
        return self.shape[0]

    def _described(self, note: str) -> str:
        """The repr of a tensor: values, shape, dtype, device and `note`."""
        body = np.array2string(self.numpy(), precision=4, separator=", ", threshold=100)
        notes = [f"shape={self.shape}", str(self.dtype)]
        if self.device.kind != "cpu":
            notes.append(f"device={self.device}")
        return f"Tensor({body}, {', '.join([*notes, note] if note else notes)})"

    # --- numbers ---

    def item(self) -> Any:
        """The only element as a Python number; ShapeError if there is not exactly one."""
        if self.size != 1:
            raise ShapeError(f"item: expected one element, got shape {self.shape}")
        return to_host(self.data).item()

    def tolist(self) -> Any:
        """The values as nested lists of Python numbers, or as a number for a scalar."""
        return self.numpy().tolist()

    # Each is for a tensor with one element, as `item` is.
    def __bool__(self) -> bool:
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        """For names[label]; DtypeError unless the tensor is an integer without axes."""
        if self.dtype.kind not in "iu" or self.ndim:
            raise DtypeError(
                f"a tensor {self.shape} of {self.dtype} is no index; expected a single integer\n"
                "  convert it: int(t)"
            )
        return int(self.item())

    def __format__(self, spec: str) -> str:
        """f"{loss:.3f}" formats the only element; without a format, all others are shown as by str.

        Raises ShapeError for a format and several elements.
        """
        if self.ndim and not spec:
            return str(self)
        if self.size != 1:
            raise ShapeError(
                f"format: {spec!r} formats one element, got shape {self.shape}\n"
                "  reduce the tensor first (.mean()), or pick an element"
            )
        return format(self.item(), spec)

    # --- conversion ---

    def numpy(self) -> np.ndarray[Any, Any]:
        """The values as a NumPy array: the tensor's own memory on the CPU, else a copy."""
        return to_host(self.data)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        if copy is False and not isinstance(self.data, np.ndarray):
            raise ValueError(f"a tensor on {self.device} has no NumPy array without a copy")
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __array_function__(
        self, function: Any, types: Any, args: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        """function, one of NumPy's, of arrays instead of tensors."""
        if isinstance(options.get("out"), TensorData):
            raise ArgumentError(
                f"{function.__name__}: out= is a tensor; expected an array\n  pass tensor.data"
            )
        return function(*_arrays(args), **_arrays(options))

    # Other libraries can share the tensor's memory, without its graph: torch.from_dlpack(tensor).
    def __dlpack_device__(self) -> tuple[int, int]:
        kind, index = self.data.__dlpack_device__()
        return int(kind), int(index)

    def __dlpack__(self, **options: Any) -> Any:
        """options: stream, max_version, dl_device, copy.  NumPy 2.0 accepts only `stream`."""
        with working_on(self.device):  # the consumer waits for its current stream
            return export(self.data, options)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """CuPy's interface; AttributeError on the CPU, so hasattr is false there."""
        with working_on(self.device):  # it names the current stream
            interface: dict[str, Any] = self.data.__cuda_array_interface__
        return interface


def is_operand(x: object) -> bool:
    """Whether tensor == x is element by element; with anything else it is False."""
    return isinstance(x, TensorData | int | float | list | tuple) or hasattr(x, "dtype")


def _arrays(value: Any) -> Any:
    """value with NumPy arrays instead of tensors, in lists, tuples and dicts too."""
    if isinstance(value, TensorData):
        return value.numpy()
    if type(value) in (list, tuple):
        return type(value)(map(_arrays, value))
    if isinstance(value, dict):
        return {key: _arrays(item) for key, item in value.items()}
    return value
