"""Compare a state dict with the tensors that it is for."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gpucnn.precision import is_floating
from gpucnn.tensor import Tensor


def differences(own: Mapping[str, Tensor], state: Mapping[str, Any], strict: bool) -> list[str]:
    """Why `state` does not fit `own`, sorted; empty if it does.

    Differences are names that are missing or unexpected, if `strict`; other shapes, and other
    dtypes, unless both are floating-point.
    """
    found = []
    if strict:
        found += [f"missing: {name}" for name in own if name not in state]
        found += [f"unexpected: {name}" for name in state if name not in own]
    for name in own.keys() & state.keys():
        value = state[name]
        if not hasattr(value, "shape") or not hasattr(value, "dtype"):
            found.append(f"{name}: expected an array, got {type(value).__name__}")
            continue
        shape, dtype = tuple(value.shape), _dtype(value)
        if shape != own[name].shape:
            found.append(f"{name}: expected {own[name].shape}, got {shape}")
        elif dtype != own[name].dtype and not (is_floating(dtype) and is_floating(own[name].dtype)):
            found.append(f"{name}: expected {own[name].dtype}, got {value.dtype}")
    return sorted(found)


def _dtype(array: Any) -> np.dtype[Any]:
    """The dtype of an array of any library: torch.float32 is float32; void if NumPy has none."""
    if isinstance(array.dtype, np.dtype):
        return array.dtype
    try:
        found: np.dtype[Any] = np.dtype(str(array.dtype).rpartition(".")[2])
    except TypeError:
        return np.dtype("V")
    return np.dtype("V") if found.kind == "V" else found  # NumPy cannot share bfloat16
