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
from gpucnn.cudasim.memory import Host


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
        return repr(self._host).replace("array(", "cudasim.array(", 1)

    # --- to the host; all of these synchronize ---

    def get(self, *, out: Host | None = None, blocking: bool = True) -> Host:
        """A copy in host memory, in `out` if it is given.

        With blocking=False the host does not synchronize.  Like all work on the current stream, the
        copy is complete when the call returns.
        """
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
        driver.counters.host_syncs += 1
        return self._host.item()

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
        return wrap(self._host[unwrap(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        self._host[unwrap(index)] = unwrap(value)

    # --- methods that NumPy has too; most are added below ---

    def astype(self, dtype: Any, *, copy: bool = True) -> Any:
        return (
            self if not copy and self.dtype == np.dtype(dtype) else wrap(self._host.astype(dtype))
        )

    def copy(self, order: Any = "C") -> Any:
        return wrap(self._host.copy(order))

    def fill(self, value: Any) -> None:
        self._host.fill(unwrap(value))


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
    """Call NumPy's `function` on device arrays; return an array on the device, or `out` itself."""
    given = {name: unwrap(value) for name, value in options.items()}
    result = function(*(unwrap(value) for value in args), **given)
    out = options.get("out")
    if out is not None:
        return out[0] if isinstance(out, tuple) and len(out) == 1 else out
    return wrap(result)


def may_share_memory(a: ndarray, b: ndarray) -> bool:
    """Whether the address ranges of two arrays overlap."""
    return np.may_share_memory(a._host, b._host)


lifted: dict[str, Any] = {}  # the results of `lift`, by name


def lift(name: str, signature: inspect.Signature, module: ModuleType | Any = np) -> Any:
    """NumPy's function `name` for device arrays, with CuPy's `signature`."""
    function = getattr(module, name)
    refuse = signatures.refusal(name, signature)

    def on_the_device(*args: Any, **options: Any) -> Any:
        refuse(args, options)
        return run(function, args, options)

    on_the_device.__name__ = on_the_device.__qualname__ = name
    on_the_device.__doc__ = f"numpy.{name} for arrays on device cudasim."
    on_the_device.__signature__ = signature  # type: ignore[attr-defined]
    if name in signatures.SCATTERS:
        on_the_device.at = lambda a, indices, b: run(function.at, (a, indices, b), {})  # type: ignore[attr-defined]
    lifted[name] = on_the_device
    return on_the_device


def _method(name: str, signature: inspect.Signature) -> Any:
    """The method `name` of numpy.ndarray for this class."""
    refuse = signatures.refusal(name, signature)

    def method(self: ndarray, *args: Any, **options: Any) -> Any:
        refuse(args, options)
        return run(getattr(self._host, name), args, options)

    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    method.__name__ = method.__qualname__ = name
    method.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[itself, *signature.parameters.values()]
    )
    return method


def _operator(name: str) -> Any:
    """The operator `name` of numpy.ndarray for this class."""

    def operator(self: ndarray, *others: Any) -> Any:
        if any(not _is_operand(other) for other in others):
            return NotImplemented
        result = getattr(self._host, name)(*map(unwrap, others))
        return self if result is self._host else wrap(result)

    operator.__name__ = operator.__qualname__ = name
    return operator


def _is_operand(value: Any) -> bool:
    return isinstance(value, ndarray | np.ndarray | np.generic | int | float)


_COMPARISONS = "lt le gt ge eq ne"
_UNARY = "neg pos abs invert"
_BINARY = "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift"

for _name, _signature in signatures.table(signatures.METHODS).items():
    setattr(ndarray, _name, _method(_name, _signature))
for _name in f"{_COMPARISONS} {_UNARY} {_BINARY}".split():
    setattr(ndarray, f"__{_name}__", _operator(f"__{_name}__"))
for _name in _BINARY.split():
    setattr(ndarray, f"__r{_name}__", _operator(f"__r{_name}__"))
    if _name != "matmul":  # CuPy has no a @= b
        setattr(ndarray, f"__i{_name}__", _operator(f"__i{_name}__"))
ndarray.__hash__ = None  # type: ignore[assignment]  # like NumPy's: == compares elements
