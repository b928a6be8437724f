"""Whether a gradient matches its tensor in kind, device, shape and dtype."""

from typing import Any

import numpy as np

from gpucnn.device import Array, array_module, device_of
from gpucnn.errors import DeviceMismatch, DtypeError, GraphError, ShapeError


def fits(dx: Any, x: Array) -> bool:
    """Whether dx matches x; may be False for a matching subclass or NumPy scalar."""
    return (
        type(dx) is type(x)
        and dx.shape == x.shape
        and dx.dtype == x.dtype
        and (isinstance(x, np.ndarray) or dx.device.id == x.device.id)
    )


def check_gradient(where: str, dx: Any, x: Array) -> None:
    """Raise unless dx is an array with x's device, shape and dtype.

    Raises GraphError, DeviceMismatch, ShapeError or DtypeError; the message begins with `where`.
    """
    if fits(dx, x):
        return
    try:
        array_module(dx)
    except TypeError:
        raise GraphError(
            f"{where}: expected a gradient as an array, got {type(dx).__name__}"
        ) from None
    if device_of(dx) != device_of(x):
        raise DeviceMismatch(
            f"{where}: expected a gradient on {device_of(x)}, the tensor's device, got one on "
            f"{device_of(dx)}"
        )
    if dx.shape != x.shape:
        raise ShapeError(f"{where}: expected a gradient of shape {x.shape}, got {dx.shape}")
    if dx.dtype != x.dtype:
        raise DtypeError(
            f"{where}: expected a gradient of {x.dtype}, got {dx.dtype}\n"
            f"  convert it: gradient.astype({str(x.dtype)!r})"
        )
