"""Creating tensors: from numbers, lists and arrays of NumPy, CuPy or another library."""

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
from gpucnn.dlpack import array_from_cuda, array_from_dlpack, check_dtype, supports_dlpack
from gpucnn.errors import DtypeError, ShapeError
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

    Raises DtypeError for values that are not numbers, or for integers with requires_grad;
    ShapeError for ragged lists; DeviceError for a device that cannot be used.
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


def from_dlpack(x: Any) -> Tensor:
    """Create a Tensor that shares the memory of x, an array of any library with DLPack support.

    x is on the CPU or a CUDA device.  Nothing is copied: shape, strides, dtype and device are x's.
    The tensor is writable if x is, except that NumPy 2.0 imports every array as read-only and
    cannot export a read-only one.
    Raises ArgumentError if x does not support DLPack; DeviceError or DtypeError for a device or
    dtype that gpucnn does not support (bfloat16, complex); GraphError if x requires a gradient in
    its own library.
    Source: the array API standard, data interchange mechanisms.
    """
    return Tensor(array_from_dlpack("from_dlpack", x.data if isinstance(x, Tensor) else x))


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
