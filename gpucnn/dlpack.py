"""Sharing memory with other libraries' arrays: DLPack and __cuda_array_interface__."""

from typing import Any

import numpy as np

from gpucnn.device import Array, Device, array_module
from gpucnn.errors import ArgumentError, DeviceError, DtypeError, GraphError
from gpucnn.precision import is_floating

# DLDeviceType of dlpack.h
_HOST = {1: "CPU", 3: "CUDA pinned", 11: "ROCm pinned"}  # NumPy accepts these
_CUDA = {2: "CUDA", 13: "CUDA managed"}
_ELSEWHERE = {
    4: "OpenCL",
    7: "Vulkan",
    8: "Metal",
    9: "VPI",
    10: "ROCm",
    14: "oneAPI",
    15: "WebGPU",
    16: "Hexagon",
    17: "MAIA",
}


def supports_dlpack(x: Any) -> bool:
    """Whether x supports DLPack."""
    return hasattr(x, "__dlpack__") and hasattr(x, "__dlpack_device__")


def array_from_dlpack(what: str, x: Any) -> Array:
    """A NumPy or CuPy array that shares x's memory; x itself if it is one.

    Raises ArgumentError if x does not support DLPack, DeviceError or DtypeError for a device or
    dtype that gpucnn does not support, and GraphError if x requires a gradient in its own library.
    The message begins with `what`.
    """
    try:
        array_module(x)
    except TypeError:
        x = _import(what, x)
    return check_dtype(what, x)


def _import(what: str, x: Any) -> Array:
    if not supports_dlpack(x):
        raise ArgumentError(
            f"{what}: expected an array with __dlpack__ and __dlpack_device__, got "
            f"{type(x).__name__}\n  gpucnn.tensor converts lists and numbers"
        )
    try:
        kind, index = (int(number) for number in x.__dlpack_device__())
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise DeviceError(f"{what}: {type(x).__name__} has no memory to share ({error})") from error
    if kind in _CUDA:
        xp = Device.parse(f"cuda:{index}").xp
        with xp.cuda.Device(index):
            return _take(what, xp.from_dlpack, x)
    if kind in _HOST:
        return _take(what, np.from_dlpack, x)
    raise DeviceError(
        f"{what}: the array is on {_ELSEWHERE.get(kind, f'DLPack device type {kind}')}, and gpucnn "
        "has cpu and cuda\n  copy it to the host first, with its own library"
    )


def _take(what: str, take: Any, x: Any) -> Array:
    if getattr(x, "requires_grad", False):
        raise GraphError(
            f"{what}: the {type(x).__name__} requires a gradient, and gradients do not pass from "
            "one library to another\n  detach it from its graph first: x.detach()"
        )
    try:
        return take(x)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        dtype = getattr(x, "dtype", "an unknown dtype")
        kind, way_out = (
            (ArgumentError, "convert it to a plain, dense array first, with its own library")
            if _is_known(dtype)
            else (DtypeError, "convert it first: to float32, with its own library")
        )
        raise kind(
            f"{what}: {type(x).__name__} of {dtype} cannot be shared ({error})\n  {way_out}"
        ) from error


def export(array: Array, options: dict[str, Any]) -> Any:
    """array.__dlpack__ with the options that are not None.

    Raises BufferError, as the protocol wants, for NumPy's bfloat16.
    """
    if isinstance(array, np.ndarray) and array.dtype.kind == "V":
        raise BufferError(
            "NumPy cannot share bfloat16 with other libraries\n"
            "  convert the tensor first: x.astype('float32')"
        )
    return array.__dlpack__(**{k: v for k, v in options.items() if v is not None})


def _is_known(dtype: Any) -> bool:
    """Whether gpucnn supports a dtype of this name; NumPy may know more (ml_dtypes' bfloat16)."""
    try:
        return np.dtype(str(dtype).removeprefix("torch.")).kind in "fiub"
    except TypeError:
        return False


def array_from_cuda(what: str, x: Any) -> Array:
    """A CuPy array that shares the memory of x, an object with __cuda_array_interface__.

    Read-only memory is copied, because CuPy has no read-only arrays.
    """
    interface = x.__cuda_array_interface__
    try:
        dtype, read_only = np.dtype(interface["typestr"]), bool(interface["data"][1])
    except (KeyError, TypeError, IndexError) as error:
        raise ArgumentError(
            f"{what}: the __cuda_array_interface__ of {type(x).__name__} is incomplete ({error})"
        ) from error
    if interface.get("mask") is not None:
        raise ArgumentError(f"{what}: {type(x).__name__} has a mask, which gpucnn does not support")
    _check(what, dtype)
    cupy = Device.parse("cuda").xp
    address, current = interface["data"][0], cupy.cuda.runtime.getDevice()
    index = cupy.cuda.runtime.pointerGetAttributes(address).device if address else current
    with cupy.cuda.Device(index):  # CuPy copies an array that is not on the current device
        array = cupy.asarray(x)
        return array.copy() if read_only else array


def check_dtype(what: str, array: Array) -> Array:
    """The array itself; DtypeError if gpucnn does not support its dtype."""
    _check(what, array.dtype)
    return array


def is_number(dtype: np.dtype[Any]) -> bool:
    """Whether gpucnn supports a dtype of NumPy: numbers and bools of up to 8 bytes, bfloat16."""
    # long double has no kernel
    return (dtype.kind in "iub" or is_floating(dtype)) and dtype.itemsize <= 8


def _check(what: str, dtype: np.dtype[Any]) -> None:
    if not is_number(dtype):
        raise DtypeError(f"{what}: expected numbers, got dtype {dtype}")
