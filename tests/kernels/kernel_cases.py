"""Helpers of the kernels' tests: random geometry, arrays on the simulated device."""

from typing import Any

import numpy as np

import gpucnn
from gpucnn.integers import ceil_div
from gpucnn.ops.geometry import Geometry


def on_gpu(array: np.ndarray, gradient: bool = False) -> gpucnn.Tensor:
    return gpucnn.tensor(array, device="cudasim", requires_grad=gradient)


def random_geometry(rng: np.random.Generator, pool: bool = False) -> tuple[Geometry, int]:
    """A geometry over small images, and a number of filters for it.

    Kernel sizes 1 to 11, strides 1 to 4, 1 to 67 channels, padding on each side; with dilation and
    groups for a convolution, with padding smaller than the window for a pool.
    """
    while True:
        groups = 1 if pool else int(rng.choice([1, 1, 1, 2, 3]))
        c, oc = (int(rng.integers(1, 67 // groups + 1)) * groups for _ in range(2))
        if rng.random() < 0.5:  # divisible by 4: the kernels' 16-byte loads
            c, oc = ceil_div(c, 4 * groups) * 4 * groups, ceil_div(oc, 4 * groups) * 4 * groups
        kernel, stride = rng.integers(1, 12, 2), rng.integers(1, 5, 2)
        dilation = np.ones(2, int) if pool else rng.choice([1, 1, 2, 3], 2)
        padding = rng.integers(0, 6, (2, 2))
        if pool:
            padding = np.minimum(padding, kernel[:, None] - 1)
        extent = (kernel - 1) * dilation + 1
        size = np.maximum(1, extent - padding.sum(axis=1) + rng.integers(0, 9, 2))
        n = int(rng.choice([0, 1, 2, 3, 5]))
        if n * size.prod() * c * oc * kernel.prod() > 1e8:
            continue  # the slow loops would take seconds
        top, left = padding[:, 0].tolist()
        bottom, right = padding[:, 1].tolist()
        g = Geometry.of(
            "test",
            (n, *size.tolist(), c),
            tuple(kernel.tolist()),
            tuple(stride.tolist()),
            ((top, bottom), (left, right)),
            tuple(dilation.tolist()),
            groups,
        )
        if pool and (
            (g.oh - 1) * g.stride_h - g.top >= g.h or (g.ow - 1) * g.stride_w - g.left >= g.w
        ):
            continue  # a window that sees only padding is refused
        return g, oc


def options(g: Geometry) -> dict[str, Any]:
    """The stride and padding of g, as keyword arguments of an op."""
    return {
        "stride": (g.stride_h, g.stride_w),
        "padding": ((g.top, g.bottom), (g.left, g.right)),
    }
