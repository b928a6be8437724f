"""What tests of every device share: arrays on it, results from it, and how far two may be apart.

The same test function runs on each device that the `device` fixture names (conftest.py).  In
float32 a GPU runs the kernels, in float64 the ops' forms for any array module.

GPUCNN_TEST_CUDA=cuda:1 runs the `gpu` tests on that GPU, while CuPy's current device is cuda:0.
"""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn.device import Device, to_host
from gpucnn.errors import DeviceError

GPU = os.environ.get("GPUCNN_TEST_CUDA", "cuda")  # the CUDA device of every `gpu` test


def place(name: str) -> Any:
    """The device as a parameter: skipped, with the reason, where it cannot be used."""
    marks = [pytest.mark.gpu] if name.partition(":")[0] == "cuda" else []
    try:
        Device.parse(name)
    except DeviceError as error:
        marks.append(pytest.mark.skip(reason=str(error).splitlines()[0]))
    return pytest.param(name, marks=marks)


CPU, CUDASIM, CUDA = map(place, ("cpu", "cudasim", GPU))
SECOND_CUDA = place("cuda:1")  # whatever GPUCNN_TEST_CUDA says


in_both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])

# The largest difference over the largest value.  float32: the order of a sum.
BOUNDS = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-12}


def tensor(array: Any, device: str, dtype: Any = None, grad: bool = False) -> gpucnn.Tensor:
    """A tensor on `device`, of the array's own dtype if none is given."""
    return gpucnn.tensor(np.asarray(array), device=device, requires_grad=grad, dtype=dtype)


def leaf(array: Any, device: str, dtype: Any = None) -> gpucnn.Tensor:
    """A tensor that wants a gradient."""
    return tensor(array, device, dtype, grad=True)


def host(array: Any) -> np.ndarray:
    """An array or tensor of any device as NumPy's."""
    array = array.data if isinstance(array, gpucnn.Tensor) else array
    return to_host(array) if hasattr(array, "get") else np.asarray(array)


def backward(y: gpucnn.Tensor, dy: Any) -> None:
    """y.backward from an array of the host, in y's dtype."""
    y.backward(tensor(dy, str(y.device), y.dtype).data)


def results(y: gpucnn.Tensor, dy: Any, *leaves: gpucnn.Tensor) -> list[np.ndarray]:
    """y and the leaves' gradients for dy, on the host."""
    backward(y, dy)
    return [host(y), *(host(leaf.grad) for leaf in leaves)]


def relative(actual: Any, expected: Any) -> float:
    """The largest difference over the largest value; 0 for two empty arrays.

    Infinity for an array with a NaN, which is what the simulator's fresh memory is full of:
    a NaN itself is not larger than any bound.
    """
    actual, expected = host(actual), host(expected)
    assert actual.shape == expected.shape
    if not actual.size:
        return 0.0
    if not np.isfinite(actual).all():
        return float("inf")
    return float(np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-30))


def assert_close(actual: Any, expected: Any, bound: float | None = None) -> None:
    """The two agree within `bound`, that of actual's dtype if none is given."""
    actual = host(actual)
    error = relative(actual, expected)
    bound = BOUNDS[actual.dtype] if bound is None else bound
    assert error <= bound, f"off by {error:.2e} of the largest value, allowed {bound:.0e}"


def error_beside_cpu(
    f: Callable[..., gpucnn.Tensor], *arrays: np.ndarray, device: str = "cudasim"
) -> float:
    """The largest relative difference between f on `device` and on the CPU, in y and each gradient.

    f is called with the device's name and one float32 tensor per array.
    """
    both = []
    for place in (device, "cpu"):
        leaves = [leaf(a, place, np.float32) for a in arrays]
        y = f(place, *leaves)
        dy = np.random.default_rng(3).standard_normal(y.shape, np.float32)
        both.append(results(y, dy, *leaves))
    assert [a.dtype for a in both[0]] == [a.dtype for a in both[1]]
    return max(relative(a, b) for a, b in zip(*both, strict=True))
