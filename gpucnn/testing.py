"""Independent judges for ops: finite differences, and slow loops that anyone can check by eye."""

from collections.abc import Callable

import numpy as np

from gpucnn.device import Array
from gpucnn.tensor import Tensor, tensor


def gradcheck(
    function: Callable[..., Tensor],
    *arrays: Array,
    step: float = 1e-6,
    tolerance: float = 1e-6,
    seed: int = 0,
) -> None:
    """Compare the gradients of `function` with central differences; AssertionError if they differ.

    function takes one Tensor per array and gives one Tensor, of any shape: a random projection
    makes it a scalar.  arrays are made float64.  The bound is on |difference| over
    max(1, |gradient|), element by element; keep inputs away from kinks by more than `step`.
    """
    arrays = tuple(np.array(x, dtype=np.float64) for x in arrays)
    inputs = [tensor(x, requires_grad=True) for x in arrays]
    result = function(*inputs)
    assert result.dtype == np.float64, f"the result is {result.dtype}, not float64"
    dy = np.random.default_rng(seed).standard_normal(result.shape)
    result.backward(dy)
    for position, (x, leaf) in enumerate(zip(arrays, inputs, strict=True)):
        expected = np.empty_like(x)
        for index in np.ndindex(x.shape):
            value = x[index]
            ends = []
            for shifted in (value + step, value - step):
                x[index] = shifted
                ends.append(float((function(*map(tensor, arrays)).data * dy).sum()))
            x[index] = value
            expected[index] = (ends[0] - ends[1]) / (2 * step)
        actual = leaf.grad
        assert actual is not None, f"input {position} got no gradient"
        assert actual.shape == x.shape, f"input {position}: {actual.shape}, expected {x.shape}"
        error = np.abs(actual - expected) / np.maximum(1, np.abs(expected))
        assert error.size == 0 or error.max() <= tolerance, (
            f"input {position}: gradient off by {error.max():.2e} at "
            f"{np.unravel_index(error.argmax(), error.shape)}"
        )
