"""Compare results on a device with those on the CPU."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np

import gpucnn
from gpucnn.device import to_host
from gpucnn.errors import DtypeError, GpucnnError, ShapeError
from gpucnn.precision import bfloat16, is_half


def dtypes() -> Iterator[tuple[str, np.dtype[Any]]]:
    """What a case's name ends with, and the dtype of its activations."""
    yield "", np.dtype(np.float32)
    yield " float16", np.dtype(np.float16)
    with suppress(DtypeError):  # ml_dtypes is not installed
        yield " bfloat16", bfloat16()


def host(array: Any) -> np.ndarray[Any, Any]:
    """Copy an array or tensor of any device to a NumPy array."""
    array = array.data if isinstance(array, gpucnn.Tensor) else array
    return to_host(array) if hasattr(array, "get") else np.asarray(array)


def relative(actual: Any, expected: Any) -> float:
    """The largest difference over the largest value; 0 for two empty arrays.

    Infinity if `actual` has a NaN or an infinity: the simulator fills new memory with NaN, and a
    NaN error would not exceed any bound.
    """
    actual, expected = host(actual), host(expected)
    if actual.shape != expected.shape:
        raise ShapeError(
            f"the device's result has shape {actual.shape}, the CPU's {expected.shape}"
        )
    if not actual.size:
        return 0.0
    if is_half(actual.dtype):
        actual, expected = actual.astype(np.float32), expected.astype(np.float32)
    if not np.isfinite(actual).all():
        return float("inf")
    return float(np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-30))


def error_beside_cpu(
    f: Callable[..., gpucnn.Tensor],
    *arrays: np.ndarray[Any, Any],
    device: str = "cudasim",
    dtype: Any = np.float32,
) -> float:
    """The largest relative difference of f on `device` and on the CPU, in y and every gradient.

    f takes the name of the device and one tensor per array: the first of `dtype`, others float32.
    """
    both = []
    for name in (device, "cpu"):
        leaves = [
            gpucnn.tensor(np.asarray(a), name, requires_grad=True, dtype=np.float32 if i else dtype)
            for i, a in enumerate(arrays)
        ]
        both.append(results(f(name, *leaves), leaves))
    return largest(*both)


def results(y: gpucnn.Tensor, leaves: list[gpucnn.Tensor]) -> list[np.ndarray[Any, Any]]:
    """y and the gradients of the leaves, on the host; dy is random, but the same in every call."""
    dy = np.random.default_rng(3).standard_normal(y.shape, np.float32)
    y.backward(gpucnn.tensor(dy, y.device, dtype=y.dtype).data)
    return [host(y), *(host(leaf.grad) for leaf in leaves)]


def largest(ours: list[np.ndarray[Any, Any]], theirs: list[np.ndarray[Any, Any]]) -> float:
    """The largest relative difference over pairs of arrays."""
    if [a.dtype for a in ours] != [a.dtype for a in theirs]:
        raise GpucnnError(
            f"the device's results have dtypes {[str(a.dtype) for a in ours]}, "
            f"the CPU's {[str(a.dtype) for a in theirs]}"
        )
    return max(relative(a, b) for a, b in zip(ours, theirs, strict=True))
