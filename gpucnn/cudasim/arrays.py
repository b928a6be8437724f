"""The simulator's array: a stand-in for cupy.ndarray whose memory is device memory.

It behaves like CuPy's where gpucnn uses it, and refuses what CuPy refuses: NumPy cannot read it
without `.get()`, and no operation mixes it with a NumPy array.
"""

import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from gpucnn.cudasim import driver, memory, signatures
from gpucnn.cudasim.capture import check_index, is_basic, refused_transfer
from gpucnn.cudasim.memory import Host
from gpucnn.cudasim.streams import current_capture


class ndarray:
    """An array in the simulated device's memory."""

    __slots__ = ("__weakref__", "_host", "base")

    base: "ndarray | None"  # the array that this one is a view of; None if it owns its memory

    def __init__(self, shape: Any, dtype: Any = float) -> None:
        self._host = memory.allocate(shape, dtype)
        self.base = memory.first_array(self._host, self)

    # --- attributes ---

    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    itemsize = property(lambda self: self._host.itemsize)
    strides = property(lambda self: self._host.strides)
    flags = property(lambda self: self._host.flags)
    T = property(lambda self: wrap(self._host.T))
    device = property(lambda self: driver.Device(0))
    data = property(lambda self: driver.MemoryPointer(self._host.ctypes.data))

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        if current_capture() is not None:
            raise refused_transfer("D2H")
        return repr(self._host).replace("array(", "cudasim.array(", 1)

    # --- to the host; all of these synchronize ---

    def get(self, *, out: Host | None = None, blocking: bool = True) -> Host:
        """A copy in host memory, in `out` if it is given.

        With blocking=False the host does not synchronize.  Like all work on the current stream, the
        copy is complete when the call returns.
        """
        if current_capture() is not None:
            raise refused_transfer("D2H")
        if blocking:
            driver.counters.host_syncs += 1
        if out is None:
            return self._host.copy()
        if out.shape != self.shape or out.dtype != self.dtype:
            raise ValueError(f"get: {self.dtype} {self.shape} into {out.dtype} {out.shape}")
        out[...] = self._host
        return out

    def item(self) -> Any:
        """The only element, as a Python number."""
        return self.get().item()

    def tolist(self) -> Any:
        return self.get().tolist()

    def __bool__(self) -> bool:
        return bool(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __float__(self) -> float:
        return float(self.get())

    def set(self, arr: Host, stream: driver.Stream | None = None) -> None:
        """Copy a NumPy array of the same shape and dtype into this one, on `stream`."""
        if not isinstance(arr, np.ndarray):
            raise TypeError(f"set takes a NumPy array, got {type(arr).__name__}")
        if arr.dtype != self.dtype:
            raise TypeError(f"set: {arr.dtype} into {self.dtype}")
        if arr.shape != self.shape:
            raise ValueError(f"set: {arr.shape} into {self.shape}")
        if not (self.flags.c_contiguous or self.flags.f_contiguous):
            raise RuntimeError(f"set: into an array {self.shape} that is not contiguous")
        stream = driver.get_current_stream() if stream is None else stream
        stream._copy(self._host, arr, memory.allocation_of(self._host))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed: this array is on device cudasim\n"
            "  use .get() for a copy on the host"
        )

    # Other libraries get the memory as host memory, which it is.  There is no
    # __cuda_array_interface__: its users would pass the address to a GPU.

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._host.__dlpack_device__()

    def __dlpack__(self, **options: Any) -> Any:
        """Export the array's memory, after all copies into it are complete."""
        driver.Device(0).synchronize()
        return self._host.__dlpack__(**options)

    # --- NumPy's protocols: np.add(x, y) and np.sum(x) return arrays on the device ---

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        ours = getattr(lifted.get(ufunc.__name__), method, None)
        return NotImplemented if ours is None else ours(*inputs, **kwargs)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        ours = lifted.get(func.__name__)
        return NotImplemented if ours is None else ours(*args, **kwargs)

    # --- elements ---

    def __getitem__(self, index: Any) -> Any:
        if current_capture() is None:
            return wrap(self._host[unwrap(index)])
        check_index(unwrap(index))
        if not is_basic(unwrap(index)):
            return run(np.ndarray.__getitem__, (self, index), {})
        parts = index if isinstance(index, tuple) else (index,)
        return wrap(self._host[parts if Ellipsis in parts else (*parts, ...)])  # always a view

    def __setitem__(self, index: Any, value: Any) -> None:
        if current_capture() is not None:
            check_index(unwrap(index))
        change(np.ndarray.__setitem__, self, index, value)

    # --- methods that NumPy has too; most are added below ---

    def astype(self, dtype: Any, *, copy: bool = True) -> Any:
        if not copy and self.dtype == np.dtype(dtype):
            return self
        return run(np.ndarray.astype, (self, dtype), {})

    def copy(self, order: Any = "C") -> Any:
        return run(np.ndarray.copy, (self, order), {})

    def fill(self, value: Any) -> None:
        change(np.ndarray.fill, self, value)


def wrap(result: Any) -> Any:
    """Convert NumPy's result: arrays and scalars become arrays on the device."""
    if isinstance(result, np.ndarray | np.generic):
        array = ndarray.__new__(ndarray)
        array._host = memory.on_device(np.asarray(result))
        array.base = memory.first_array(array._host, array)
        return array
    if isinstance(result, tuple | list):
        return type(result)(wrap(item) for item in result)
    return result


def unwrap(value: Any) -> Any:
    """The memory of a device array as a NumPy array; TypeError for a NumPy array."""
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, np.ndarray):
        raise TypeError(
            "Unsupported type <class 'numpy.ndarray'>: cannot mix a NumPy array with an array on "
            "device cudasim\n  use gpucnn.cudasim.asarray for a copy on the device"
        )
    if isinstance(value, tuple | list):
        return type(value)(unwrap(item) for item in value)
    return value


def run(function: Any, args: Any, options: dict[str, Any]) -> Any:
    """Call NumPy's `function` on device arrays; return an array on the device, or `out` itself.

    While the current stream captures, the call is recorded.
    """
    given = {name: unwrap(value) for name, value in options.items()}
    hosts = tuple(unwrap(value) for value in args)
    capture = current_capture()
    if capture is None:
        result = function(*hosts, **given)
    else:
        result = capture.call(function, hosts, given, memory.result)
    out = options.get("out")
    if out is not None:
        return out[0] if isinstance(out, tuple) and len(out) == 1 else out
    return wrap(result)


def change(function: Any, array: ndarray, *args: Any) -> Any:
    """Call NumPy's `function`, which writes to its first argument; return its result."""
    hosts = (array._host, *map(unwrap, args))
    capture = current_capture()
    if capture is None:
        return function(*hosts)
    capture.call(function, hosts, {}, memory.result, changes_first=True)
    return array._host


def may_share_memory(a: ndarray, b: ndarray) -> bool:
    """Whether the address ranges of two arrays overlap."""
    return np.may_share_memory(a._host, b._host)


lifted: dict[str, Any] = {}  # the results of `lift`, by name


def lift(name: str, signature: inspect.Signature, module: ModuleType | Any = np) -> Any:
    """NumPy's function `name` for device arrays, with CuPy's `signature`."""
    function = getattr(module, name)
    refuse = signatures.refusal(name, signature)
    in_place = name == "copyto"

    def on_the_device(*args: Any, **options: Any) -> Any:
        refuse(args, options)
        if in_place and current_capture() is not None and not options:
            change(function, *args)
            return None
        return run(function, args, options)

    on_the_device.__name__ = on_the_device.__qualname__ = name
    on_the_device.__doc__ = f"numpy.{name} for arrays on device cudasim."
    on_the_device.__signature__ = signature  # type: ignore[attr-defined]
    if name in signatures.SCATTERS:

        def at(a: ndarray, indices: Any, b: Any) -> None:
            change(function.at, a, indices, b)

        on_the_device.at = at  # type: ignore[attr-defined]
    lifted[name] = on_the_device
    return on_the_device


def _method(name: str, signature: inspect.Signature) -> Any:
    """The method `name` of numpy.ndarray for this class."""
    function = getattr(np.ndarray, name)
    refuse = signatures.refusal(name, signature)

    def method(self: ndarray, *args: Any, **options: Any) -> Any:
        refuse(args, options)
        return run(function, (self, *args), options)

    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    method.__name__ = method.__qualname__ = name
    method.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[itself, *signature.parameters.values()]
    )
    return method


def _operator(name: str) -> Any:
    """The operator `name` of numpy.ndarray for this class."""
    function = getattr(np.ndarray, name)
    in_place = name.removeprefix("__").removesuffix("__") in _IN_PLACE

    def operator(self: ndarray, *others: Any) -> Any:
        if any(not _is_operand(other) for other in others):
            return NotImplemented
        if not in_place:
            return run(function, (self, *others), {})
        result = change(function, self, *others)
        return self if result is self._host else wrap(result)

    operator.__name__ = operator.__qualname__ = name
    return operator


def _is_operand(value: Any) -> bool:
    return isinstance(value, ndarray | np.ndarray | np.generic | int | float)


_COMPARISONS = "lt le gt ge eq ne"
_UNARY = "neg pos abs invert"
_BINARY = "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift"
_IN_PLACE = {f"i{name}" for name in _BINARY.split() if name != "matmul"}  # CuPy has no a @= b

for _name, _signature in signatures.table(signatures.METHODS).items():
    setattr(ndarray, _name, _method(_name, _signature))
for _name in f"{_COMPARISONS} {_UNARY} {_BINARY}".split():
    setattr(ndarray, f"__{_name}__", _operator(f"__{_name}__"))
for _name in _BINARY.split():
    setattr(ndarray, f"__r{_name}__", _operator(f"__r{_name}__"))
    if f"i{_name}" in _IN_PLACE:
        setattr(ndarray, f"__i{_name}__", _operator(f"__i{_name}__"))
ndarray.__hash__ = None  # type: ignore[assignment]  # like NumPy's: == compares elements
