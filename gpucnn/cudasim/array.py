"""The simulator's array: a stand-in for cupy.ndarray whose memory is device memory.

It behaves as CuPy's where gpucnn uses it, and refuses what CuPy refuses: NumPy cannot read it
without `.get()`, and no operation takes a NumPy array beside it.
"""

import math
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from gpucnn.cudasim import driver

# Every 16 bits are a NaN as float16 and bfloat16, every 32 as float32, every 64 as float64; as an
# integer it is far out of bounds.  native/scheduler.cpp fills shared memory with the same.
POISON = 0x7FFF
_ALIGNMENT = 512  # of CuPy's allocations
_FENCE = 4096  # bytes of poison around an array: a small step outside harms no other


class ndarray:
    """An array in the simulated device's memory."""

    __slots__ = ("_host",)
    __array_priority__ = 100

    def __init__(self, shape: Any, dtype: Any = float) -> None:
        self._host = allocate(shape, dtype)

    # --- what it is ---

    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    itemsize = property(lambda self: self._host.itemsize)
    strides = property(lambda self: self._host.strides)
    flags = property(lambda self: self._host.flags)
    device = property(lambda self: driver.Device(0))

    @property
    def data(self) -> "MemoryPointer":
        return MemoryPointer(self._host.ctypes.data)

    @property
    def T(self) -> "ndarray":
        return wrap(self._host.T)

    @property
    def base(self) -> "ndarray | None":
        owner = self._host.base
        return wrap(owner) if isinstance(owner, np.ndarray) else None

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Iterator["ndarray"]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return repr(self._host).replace("array(", "cudasim.array(", 1)

    # --- to the host: each of these waits for the device ---

    def get(self) -> np.ndarray[Any, Any]:
        """A copy in host memory."""
        driver.counters.host_syncs += 1
        return self._host.copy()

    def item(self, *index: int) -> Any:
        driver.counters.host_syncs += 1
        return self._host.item(*index)

    def tolist(self) -> Any:
        return self.get().tolist()

    def __bool__(self) -> bool:
        return bool(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __float__(self) -> float:
        return float(self.get())

    def __index__(self) -> int:
        return int(self.get().__index__())

    def set(self, host: np.ndarray[Any, Any]) -> None:
        """Copy an array of the host, of the same shape and dtype, into this one."""
        if not isinstance(host, np.ndarray):
            raise TypeError(f"set takes a NumPy array, got {type(host).__name__}")
        if host.shape != self.shape or host.dtype != self.dtype:
            raise ValueError(f"set: {host.dtype} {host.shape} into {self.dtype} {self.shape}")
        self._host[...] = host

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed: this array is in the memory of "
            "device cudasim.  Use .get() for a copy on the host"
        )

    # --- NumPy's protocols: np.add(x, y) and np.sum(x) give arrays of the device ---

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        return run(getattr(ufunc, method), inputs, options)

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        return run(function, args, options)

    # --- elements ---

    def __getitem__(self, index: Any) -> "ndarray":
        return wrap(self._host[unwrap(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        self._host[unwrap(index)] = unwrap(value)

    # --- methods that NumPy has too ---

    def astype(self, dtype: Any, copy: bool = True) -> "ndarray":
        if not copy and self.dtype == np.dtype(dtype):
            return self
        return wrap(self._host.astype(dtype))

    def copy(self, order: Any = "C") -> "ndarray":
        return wrap(self._host.copy(order))

    def fill(self, value: Any) -> None:
        self._host.fill(unwrap(value))


class MemoryPointer:
    """Where an array starts."""

    def __init__(self, ptr: int) -> None:
        self.ptr = ptr


def allocate(shape: Any, dtype: Any) -> np.ndarray[Any, Any]:
    """Fresh device memory, full of poison: what a kernel does not write cannot pass for zero."""
    dtype = np.dtype(dtype)
    shape = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(_FENCE + size + _ALIGNMENT + _FENCE, np.uint8)
    driver.counters.allocations += 1
    memory[: memory.size // 2 * 2].view(np.uint16).fill(POISON)
    start = _FENCE + -(memory.ctypes.data + _FENCE) % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def wrap(result: Any) -> Any:
    """NumPy's result as the device's: arrays and scalars become arrays of the device."""
    if isinstance(result, np.ndarray | np.generic):
        array = ndarray.__new__(ndarray)
        array._host = np.asarray(result)
        return array
    if isinstance(result, tuple | list):
        return type(result)(wrap(item) for item in result)
    return result


def unwrap(value: Any) -> Any:
    """The memory behind a device array; TypeError for an array of the host."""
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, np.ndarray):
        raise TypeError(
            "Unsupported type <class 'numpy.ndarray'>: an array of the host meets one of device "
            "cudasim.  Use gpucnn.cudasim.asarray for a copy on the device"
        )
    if isinstance(value, tuple | list):
        return type(value)(unwrap(item) for item in value)
    return value


def run(function: Any, args: Any, options: dict[str, Any]) -> Any:
    """NumPy's `function` on device arrays, its result on the device; `out` is handed back itself."""
    given = {name: unwrap(value) for name, value in options.items()}
    result = function(*(unwrap(value) for value in args), **given)
    out = options.get("out")
    if out is not None:
        return out[0] if isinstance(out, tuple) and len(out) == 1 else out
    return wrap(result)


def lift(name: str, module: ModuleType | Any = np) -> Any:
    """NumPy's function `name` for device arrays."""
    function = getattr(module, name)

    def lifted(*args: Any, **options: Any) -> Any:
        return run(function, args, options)

    lifted.__name__ = lifted.__qualname__ = name
    lifted.__doc__ = f"numpy.{name} for arrays of device cudasim."
    return lifted


def _method(name: str) -> Any:
    """The method `name` of numpy.ndarray for this class."""

    def method(self: ndarray, *args: Any, **options: Any) -> Any:
        return run(getattr(self._host, name), args, options)

    method.__name__ = method.__qualname__ = name
    return method


def _operator(name: str) -> Any:
    def operator(self: ndarray, *others: Any) -> Any:
        try:
            result = getattr(self._host, name)(*(unwrap(other) for other in others))
        except TypeError:
            if others and not isinstance(others[0], ndarray | np.ndarray | int | float | np.generic):
                return NotImplemented
            raise
        if result is NotImplemented:
            return result
        return self if result is self._host else wrap(result)

    operator.__name__ = operator.__qualname__ = name
    return operator


for _name in (
    "reshape transpose ravel flatten squeeze swapaxes view sum mean max min argmax argmin prod var std "
    "any all cumsum dot clip round repeat take"
).split():
    setattr(ndarray, _name, _method(_name))
for _name in (
    "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift lt le gt ge eq ne"
).split():
    setattr(ndarray, f"__{_name}__", _operator(f"__{_name}__"))
    if _name not in {"lt", "le", "gt", "ge", "eq", "ne"}:
        setattr(ndarray, f"__r{_name}__", _operator(f"__r{_name}__"))
        setattr(ndarray, f"__i{_name}__", _operator(f"__i{_name}__"))
for _name in ("neg", "pos", "abs", "invert"):
    setattr(ndarray, f"__{_name}__", _operator(f"__{_name}__"))
