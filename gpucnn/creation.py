"""Creating tensors: from numbers, lists and arrays of NumPy, CuPy or another library, or filled.

Functions that fill a tensor take its shape as ints or as a tuple: zeros(2, 3) or zeros((2, 3)).
device is as for `tensor`: by default that of the innermost `with gpucnn.device(...)`, or the CPU.
They raise ArgumentError for a shape that is not of ints from 0, DtypeError for a dtype that is not
of numbers or for integers with requires_grad, DeviceError for a device that cannot be used.
"""

import math
from collections.abc import Callable
from operator import index
from typing import Any

import numpy as np

from gpucnn.device import (
    Array,
    Device,
    array_module,
    default_device,
    device_of,
    to_device,
    working_on,
)
from gpucnn.dlpack import (
    array_from_cuda,
    array_from_dlpack,
    check_dtype,
    is_number,
    supports_dlpack,
)
from gpucnn.errors import ArgumentError, DtypeError, ShapeError
from gpucnn.out_of_memory import explaining
from gpucnn.precision import bfloat16, is_floating
from gpucnn.random import default_generator
from gpucnn.tensor import Tensor


def tensor(
    array: Any, device: "str | Device | None" = None, requires_grad: bool = False, dtype: Any = None
) -> Tensor:
    """Create a Tensor from an array, a number or nested lists.

    Shares the array's memory if device and dtype allow.  This includes other libraries' arrays with
    __dlpack__ or __cuda_array_interface__ (PyTorch, Numba); see from_dlpack for their errors.
    device is "auto", "cpu", "cuda", "cuda:N" or a Device.  By default an array on a GPU stays
    there, and anything else goes to the device of the innermost `with gpucnn.device(...)`, or to
    the CPU outside of one.  By default an array keeps its dtype, and Python floats become float32.
    dtype is NumPy's or its name; "bfloat16" needs the package ml_dtypes.

    Raises DtypeError for values or a dtype that are not numbers, or for integers with
    requires_grad; ShapeError for ragged lists; DeviceError for a device that cannot be used.
    """
    array = _array(array)
    if dtype is not None:
        dtype = number_dtype("tensor", dtype)
        try:
            with working_on(device_of(array)):
                array = array.astype(dtype, copy=False)
        except (TypeError, ValueError) as error:
            raise DtypeError(
                f"tensor: {array.dtype} does not convert to {dtype}: {error}"
            ) from None
    check_dtype("tensor", array)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    _check_gradient("tensor", array.dtype, requires_grad)
    if device is None and isinstance(array, np.ndarray):
        device = default_device()
    if device is not None:
        array = to_device(array, Device.parse(device))
    return Tensor(array, requires_grad)


def from_dlpack(x: Any) -> Tensor:
    """Create a Tensor that shares the memory of x, an array of any library with DLPack support.

    x is on the CPU or a CUDA device.  Nothing is copied: shape, strides, dtype and device are x's.
    The tensor is writable if x is, except that NumPy 2.0 imports every array as read-only and
    cannot export a read-only one.
    Raises ArgumentError if x does not support DLPack; DeviceError or DtypeError for a device or
    dtype that gpucnn does not support (complex), or that NumPy cannot share (bfloat16 on the CPU);
    GraphError if x requires a gradient in its own library.
    Source: the array API standard, data interchange mechanisms.
    """
    return Tensor(array_from_dlpack("from_dlpack", x.data if isinstance(x, Tensor) else x))


# --- filled tensors ---


def zeros(
    *shape: Any,
    device: "str | Device | None" = None,
    dtype: Any = "float32",
    requires_grad: bool = False,
) -> Tensor:
    """A tensor of zeros."""
    return _filled("zeros", shape, 0, device, dtype, requires_grad)


def ones(
    *shape: Any,
    device: "str | Device | None" = None,
    dtype: Any = "float32",
    requires_grad: bool = False,
) -> Tensor:
    """A tensor of ones."""
    return _filled("ones", shape, 1, device, dtype, requires_grad)


def full(
    shape: Any,
    fill_value: float,
    device: "str | Device | None" = None,
    dtype: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """A tensor whose elements are all fill_value, a Python number; shape is an int or a tuple.

    dtype None means float32 for a float, int64 for an int and bool for a bool.
    Raises ArgumentError unless fill_value is a number.
    """
    fill_value = fill_value.item() if isinstance(fill_value, np.generic) else fill_value
    if not isinstance(fill_value, int | float):
        raise ArgumentError(
            f"full: expected a number as fill_value, got {type(fill_value).__name__}"
        )
    dtype = _dtype_of(fill_value) if dtype is None else dtype
    return _filled("full", (shape,), fill_value, device, dtype, requires_grad)


def empty(
    *shape: Any,
    device: "str | Device | None" = None,
    dtype: Any = "float32",
    requires_grad: bool = False,
) -> Tensor:
    """A tensor whose memory is not initialised."""
    return _filled("empty", shape, None, device, dtype, requires_grad)


def zeros_like(x: Tensor) -> Tensor:
    """A tensor of zeros with the shape, dtype and device of x."""
    return zeros(x.shape, device=x.device, dtype=x.dtype)


def ones_like(x: Tensor) -> Tensor:
    """A tensor of ones with the shape, dtype and device of x."""
    return ones(x.shape, device=x.device, dtype=x.dtype)


def arange(
    start: float,
    stop: float | None = None,
    step: float = 1,
    device: "str | Device | None" = None,
    dtype: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """start, start + step, ... below stop, of one axis; arange(n) counts from 0 to n - 1.

    dtype None means int64 if all arguments are ints, else float32.
    Raises ArgumentError unless they are finite numbers and step is not 0.
    """
    start, stop = (0, start) if stop is None else (start, stop)
    numbers = [x.item() if isinstance(x, np.generic) else x for x in (start, stop, step)]
    if not all(isinstance(x, int | float) and math.isfinite(x) for x in numbers) or not numbers[2]:
        raise ArgumentError(
            f"arange: expected finite numbers and a step other than 0, got {start}, {stop}, {step}"
        )
    if dtype is None:
        dtype = _dtype_of(sum(numbers))
    try:
        with explaining("arange"):
            array = np.arange(*numbers)
    except (OverflowError, ValueError) as error:
        raise ArgumentError(f"arange: {start}, {stop}, {step}: {error}") from None
    return _moved("arange", array, device, dtype, requires_grad)


def randn(
    *shape: Any,
    generator: np.random.Generator | None = None,
    device: "str | Device | None" = None,
    dtype: Any = "float32",
    requires_grad: bool = False,
) -> Tensor:
    """Numbers from the normal distribution with mean 0 and variance 1.

    generator is NumPy's; None is gpucnn's, which `manual_seed` seeds.  They are drawn on the host:
    a generator's numbers are the same on every device.
    """
    draw = (generator or default_generator()).standard_normal
    return _drawn("randn", draw, shape, device, dtype, requires_grad)


def rand(
    *shape: Any,
    generator: np.random.Generator | None = None,
    device: "str | Device | None" = None,
    dtype: Any = "float32",
    requires_grad: bool = False,
) -> Tensor:
    """Numbers from the uniform distribution over 0 <= x < 1; generator as for `randn`."""
    draw = (generator or default_generator()).random
    return _drawn("rand", draw, shape, device, dtype, requires_grad)


def _filled(
    what: str,
    shape: tuple[Any, ...],
    value: int | float | None,
    device: "str | Device | None",
    dtype: Any,
    requires_grad: bool,
) -> Tensor:
    """A tensor of `value`; None leaves its memory as it is."""
    sizes, number = _shape(what, shape), number_dtype(what, dtype)
    _check_gradient(what, number, requires_grad)
    target = Device.parse(device)
    if value is not None and not _holds(number, value):
        raise DtypeError(f"{what}: {value} is out of range for {number}\n  pass another dtype")
    with working_on(target), explaining(what):
        xp = target.xp
        array = xp.empty(sizes, number) if value is None else xp.full(sizes, value, number)
    return Tensor(array, requires_grad)


def _drawn(
    what: str,
    draw: Callable[..., Any],
    shape: tuple[Any, ...],
    device: "str | Device | None",
    dtype: Any,
    requires_grad: bool,
) -> Tensor:
    """A tensor of what draw(sizes, dtype) draws, in float64 for float64 and else in float32."""
    sizes, number = _shape(what, shape), number_dtype(what, dtype)
    if not is_floating(number):
        raise DtypeError(f"{what}: expected a floating-point dtype, got {number}")
    with explaining(what):
        array = draw(sizes, np.float64 if number == np.float64 else np.float32)
    return _moved(what, np.asarray(array), device, number, requires_grad)


def _moved(
    what: str, array: Any, device: "str | Device | None", dtype: Any, requires_grad: bool
) -> Tensor:
    """An array of the host as a tensor of `dtype` on `device`."""
    number = number_dtype(what, dtype)
    _check_gradient(what, number, requires_grad)
    moved = to_device(array.astype(number, copy=False), Device.parse(device))
    return Tensor(moved, requires_grad)


def _shape(what: str, shape: tuple[Any, ...]) -> tuple[int, ...]:
    """zeros(2, 3) and zeros((2, 3)): (2, 3)."""
    given = shape[0] if len(shape) == 1 and not hasattr(shape[0], "__index__") else shape
    try:
        sizes = tuple(map(index, given))
    except TypeError:
        sizes = (-1,)
    if any(n < 0 for n in sizes):
        raise ArgumentError(
            f"{what}: expected a shape of ints from 0, such as 2, 3 or (2, 3), got {given!r}"
        )
    return sizes


def _dtype_of(value: float) -> str:
    """What PyTorch makes of a Python number."""
    if isinstance(value, bool):
        return "bool"
    return "int64" if isinstance(value, int) else "float32"


def _holds(dtype: np.dtype[Any], value: float) -> bool:
    """Whether `value` is in the range of `dtype`, which may be of integers."""
    if dtype.kind not in "iu":
        return True
    return math.isfinite(value) and np.iinfo(dtype).min <= value <= np.iinfo(dtype).max


def _check_gradient(what: str, dtype: np.dtype[Any], requires_grad: bool) -> None:
    if requires_grad and not is_floating(dtype):
        raise DtypeError(
            f"{what}: only floating-point tensors have gradients, got {dtype}\n"
            "  pass dtype=numpy.float32"
        )


def number_dtype(what: str, dtype: Any) -> np.dtype[Any]:
    """dtype as NumPy's; DtypeError, naming `what`, unless it is one of numbers or bools."""
    if isinstance(dtype, str) and dtype == "bfloat16":
        return bfloat16()
    try:
        found: np.dtype[Any] = np.dtype(dtype)
    except TypeError:
        raise DtypeError(f"{what}: expected a dtype such as 'float32', got {dtype!r}") from None
    if not is_number(found):
        raise DtypeError(f"{what}: expected a dtype of numbers, got {found}")
    return found


def _array(x: Any) -> Array:
    """x as a NumPy or CuPy array, without a copy if possible."""
    if isinstance(x, Tensor):
        return x.data
    try:
        array_module(x)
        return x
    except TypeError:
        pass  # another library's array, or no array
    if supports_dlpack(x):
        return array_from_dlpack("tensor", x)
    if hasattr(x, "__cuda_array_interface__"):
        return array_from_cuda("tensor", x)
    typed = isinstance(x, np.generic) or hasattr(x, "__array__")
    try:
        array = np.asarray(x)
    except ValueError as error:
        raise ShapeError(f"tensor: the rows have different lengths ({error})") from error
    return array.astype(np.float32) if array.dtype == np.float64 and not typed else array
