"""Test oracles for ops: finite differences, and slow loops that follow the definitions."""

from collections.abc import Callable

import numpy as np

from gpucnn.creation import tensor
from gpucnn.device import Array
from gpucnn.tensor import Tensor


def gradcheck(
    function: Callable[..., Tensor],
    *arrays: Array,
    step: float = 1e-6,
    tolerance: float = 1e-6,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Assert that the gradients of `function` match central differences.

    function takes one Tensor per array and returns one Tensor of any shape, which a random
    projection reduces to a scalar.  The NumPy arrays become float64 tensors on `device`.
    |difference| / max(1, |gradient|) must not exceed tolerance in any element.  Keep inputs
    further than `step` from kinks.

    Raises AssertionError.
    """
    arrays = tuple(np.array(x, dtype=np.float64) for x in arrays)
    inputs = [tensor(x, device, requires_grad=True) for x in arrays]
    result = function(*inputs)
    assert result.dtype == np.float64, f"the result is {result.dtype}, not float64"
    dy = np.random.default_rng(seed).standard_normal(result.shape)
    result.backward(tensor(dy, device).data)
    for position, (x, leaf) in enumerate(zip(arrays, inputs, strict=True)):
        expected = np.empty_like(x)
        for index in np.ndindex(x.shape):
            value = x[index]
            ends = []
            for shifted in (value + step, value - step):
                x[index] = shifted
                shifted_result = function(*(tensor(a, device) for a in arrays)).numpy()
                ends.append(float((shifted_result * dy).sum()))
            x[index] = value
            expected[index] = (ends[0] - ends[1]) / (2 * step)
        assert leaf.grad is not None, f"input {position} got no gradient"
        actual = Tensor(leaf.grad).numpy()
        assert actual.shape == x.shape, f"input {position}: {actual.shape}, expected {x.shape}"
        error = np.abs(actual - expected) / np.maximum(1, np.abs(expected))
        assert error.size == 0 or error.max() <= tolerance, (
            f"input {position}: gradient off by {error.max():.2e} at "
            f"{np.unravel_index(error.argmax(), error.shape)}"
        )


def conv2d_loops(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0)),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Array:
    """ops.conv2d computed from its definition, in float64: y (N, OH, OW, OC).

    x is (N, H, W, C), weight (OC, KH, KW, C / groups), bias (OC,);
    padding is ((top, bottom), (left, right)) in pixels.
    """
    image = np.pad(np.asarray(x, np.float64), ((0, 0), *padding, (0, 0)))
    oc, kh, kw, depth = weight.shape
    oh = (image.shape[1] - (kh - 1) * dilation[0] - 1) // stride[0] + 1
    ow = (image.shape[2] - (kw - 1) * dilation[1] - 1) // stride[1] + 1
    y = np.zeros((len(x), oh, ow, oc))
    for n, i, j, o in np.ndindex(y.shape):
        first = o // (oc // groups) * depth  # the first channel of the filter's group
        for r, s, c in np.ndindex(kh, kw, depth):
            row, column = i * stride[0] + r * dilation[0], j * stride[1] + s * dilation[1]
            y[n, i, j, o] += image[n, row, column, first + c] * weight[o, r, s, c]
        if bias is not None:
            y[n, i, j, o] += bias[o]
    return y


def max_pool2d_loops(
    x: Array,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0)),
    dy: Array | None = None,
) -> tuple[Array, Array]:
    """ops.max_pool2d computed from its definition: y (N, OH, OW, C), and dx for dy (None: ones).

    The first of equal values in row order takes the gradient.
    """
    (top, _), (left, _) = padding
    _, h, w, _ = x.shape
    y, dx = _pooled(x, kernel_size, stride, padding), np.zeros(x.shape)
    for n, i, j, c in np.ndindex(y.shape):
        best, where = -np.inf, None
        for r, s in np.ndindex(kernel_size):
            row, column = i * stride[0] + r - top, j * stride[1] + s - left
            if 0 <= row < h and 0 <= column < w and x[n, row, column, c] > best:
                best, where = x[n, row, column, c], (n, row, column, c)
        y[n, i, j, c] = best
        if where is not None:
            dx[where] += 1 if dy is None else dy[n, i, j, c]
    return y, dx


def avg_pool2d_loops(
    x: Array,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0)),
    count_include_pad: bool = True,
    dy: Array | None = None,
) -> tuple[Array, Array]:
    """ops.avg_pool2d computed from its definition: y (N, OH, OW, C), and dx for dy (None: ones)."""
    (top, _), (left, _) = padding
    _, h, w, _ = x.shape
    y, dx = _pooled(x, kernel_size, stride, padding), np.zeros(x.shape)
    for n, i, j, c in np.ndindex(y.shape):
        seen = [
            (n, row, column, c)
            for row in range(i * stride[0] - top, i * stride[0] - top + kernel_size[0])
            for column in range(j * stride[1] - left, j * stride[1] - left + kernel_size[1])
            if 0 <= row < h and 0 <= column < w
        ]
        count = kernel_size[0] * kernel_size[1] if count_include_pad else len(seen)
        for pixel in seen:
            y[n, i, j, c] += x[pixel] / count
            dx[pixel] += (1 if dy is None else dy[n, i, j, c]) / count
    return y, dx


def _pooled(
    x: Array,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]],
) -> Array:
    """Zeros (N, OH, OW, C), with all windows inside the padded image."""
    n, h, w, c = x.shape
    oh = (h + sum(padding[0]) - kernel_size[0]) // stride[0] + 1
    ow = (w + sum(padding[1]) - kernel_size[1]) // stride[1] + 1
    return np.zeros((n, oh, ow, c))
