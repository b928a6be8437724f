"""Helpers for tests that run on every device: tensors on it, results from it, tolerances.

A test with the `device` fixture (conftest.py) runs on each device.  On a GPU, float32 runs the
kernels, and float64 runs the ops' generic NumPy-style code.

GPUCNN_TEST_CUDA=cuda:1 runs the `gpu` tests on that GPU while CuPy's current device is cuda:0.
"""

import os
from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn.commands.check.beside_cpu import error_beside_cpu, host, relative
from gpucnn.device import Device
from gpucnn.errors import DeviceError

GPU = os.environ.get("GPUCNN_TEST_CUDA", "cuda")  # the CUDA device of every `gpu` test


def place(name: str) -> Any:
    """The device as a pytest parameter, skipped with the reason if it cannot be used."""
    marks = [pytest.mark.gpu] if name.partition(":")[0] == "cuda" else []
    try:
        Device.parse(name)
    except DeviceError as error:
        marks.append(pytest.mark.skip(reason=str(error).splitlines()[0]))
    return pytest.param(name, marks=marks)


__all__ = ["error_beside_cpu", "host", "relative"]  # shared with `gpucnn check`

CPU, CUDASIM, CUDA = map(place, ("cpu", "cudasim", GPU))
SECOND_CUDA = place("cuda:1")  # regardless of GPUCNN_TEST_CUDA


in_both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])

# The largest difference over the largest value; in float32 the order of a sum matters.
BOUNDS = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-12}


def tensor(array: Any, device: str, dtype: Any = None, grad: bool = False) -> gpucnn.Tensor:
    """A tensor on `device`, by default of the array's dtype."""
    return gpucnn.tensor(np.asarray(array), device=device, requires_grad=grad, dtype=dtype)


def leaf(array: Any, device: str, dtype: Any = None) -> gpucnn.Tensor:
    """A tensor that requires a gradient."""
    return tensor(array, device, dtype, grad=True)


def backward(y: gpucnn.Tensor, dy: Any) -> None:
    """Call y.backward with a host array, converted to y's dtype."""
    y.backward(tensor(dy, str(y.device), y.dtype).data)


def results(y: gpucnn.Tensor, dy: Any, *leaves: gpucnn.Tensor) -> list[np.ndarray]:
    """y and the leaves' gradients for dy, on the host."""
    backward(y, dy)
    return [host(y), *(host(leaf.grad) for leaf in leaves)]


def assert_close(actual: Any, expected: Any, bound: float | None = None) -> None:
    """Assert that actual and expected agree within `bound` (default: BOUNDS of actual's dtype)."""
    actual = host(actual)
    error = relative(actual, expected)
    bound = BOUNDS[actual.dtype] if bound is None else bound
    assert error <= bound, f"off by {error:.2e} of the largest value, allowed {bound:.0e}"
