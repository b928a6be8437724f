"""The convolutions that the tests compute, and the engines that compute them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from devices import CUDA, CUDASIM

import gpucnn
from gpucnn.ops.geometry import Geometry, Padding, Size

rng = np.random.default_rng(0)


@dataclass(frozen=True)
class Convolution:
    """Images (n, h, w, c), oc filters, and the arguments of ops.conv2d."""

    n: int
    h: int
    w: int
    c: int
    oc: int
    kernel_size: Size = 3
    stride: Size = 1
    padding: Padding = 1
    dilation: Size = 1
    groups: int = 1

    def __str__(self) -> str:
        changed = [
            f"{name}={value}".replace(" ", "")
            for name, value in vars(self).items()
            if name not in "nhwc" and value != getattr(Convolution, name, None)
        ]
        return "-".join([f"{self.n}x{self.h}x{self.w}x{self.c}", *changed])

    @property
    def options(self) -> dict[str, Any]:
        names = ("stride", "padding", "dilation", "groups")
        return {name: getattr(self, name) for name in names}

    @property
    def geometry(self) -> Geometry:
        shape = (self.n, self.h, self.w, self.c)
        return Geometry.of("conv2d", shape, self.kernel_size, **self.options)

    @property
    def pairs(self) -> tuple[Any, ...]:
        """stride, padding and dilation as pairs, and groups: for the slow loops."""
        g = self.geometry
        padding = ((g.top, g.bottom), (g.left, g.right))
        return (g.stride_h, g.stride_w), padding, (g.dilation_h, g.dilation_w), g.groups

    def draw(self, dtype: Any = np.float64) -> list[np.ndarray]:
        """x, weight and bias."""
        g = self.geometry
        shapes = ((g.n, g.h, g.w, g.c), (self.oc, g.kh, g.kw, g.c // g.groups), (self.oc,))
        return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


CONVOLUTIONS = [
    Convolution(n=3, h=8, w=8, c=5, oc=7),
    Convolution(n=2, h=7, w=9, c=3, oc=4, padding=((0, 2), (1, 0))),
    Convolution(n=2, h=2, w=2, c=3, oc=4),
    Convolution(
        n=2, h=9, w=11, c=4, oc=6, kernel_size=(3, 2), stride=(2, 1), padding=(1, 2),
        dilation=(1, 2), groups=2,
    ),
    Convolution(n=2, h=9, w=9, c=8, oc=6, kernel_size=1, padding=0),
    Convolution(n=2, h=9, w=9, c=8, oc=6, kernel_size=1, stride=2, padding=0, groups=2),
    Convolution(n=2, h=10, w=7, c=4, oc=4, kernel_size=5, padding=2),
    Convolution(n=2, h=11, w=11, c=6, oc=6, padding=2, dilation=2, groups=6),
    Convolution(n=2, h=20, w=23, c=3, oc=5, kernel_size=11, stride=4, padding=2),
    Convolution(n=3, h=6, w=20, c=2, oc=3, kernel_size=5, padding=2),
    Convolution(n=1, h=5, w=5, c=2, oc=2, kernel_size=5, stride=3, padding=0),
    Convolution(n=9, h=8, w=9, c=4, oc=6, groups=2),
    Convolution(n=2, h=9, w=13, c=4, oc=6, padding=((0, 4), (7, 1)), dilation=(3, 2), groups=2),
    Convolution(
        n=2, h=12, w=10, c=3, oc=2, kernel_size=5, padding=((1, 0), (0, 0)), dilation=(2, 1)
    ),
    Convolution(n=2, h=6, w=8, c=4, oc=6, kernel_size=2, stride=2, padding=0, groups=2),
]  # fmt: skip
# Transformed filters larger than a core's cache, for large images and small ones; tiles outside the
# image.
WIDE = [
    Convolution(n=3, h=12, w=10, c=128, oc=128),
    Convolution(n=20, h=8, w=8, c=96, oc=96),
    Convolution(n=2, h=1, w=5, c=3, oc=4, padding=((6, 0), (1, 1))),
]

every_convolution = pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)

ENGINES = [
    *[pytest.param("cpu", name) for name in ("auto", "winograd", "exact")],
    *[
        pytest.param(*device.values, name, marks=device.marks)
        for device in (CUDASIM, CUDA)
        for name in ("auto", "tiled", "plain")
    ],
]
every_engine = pytest.mark.parametrize(("device", "engine"), ENGINES)


def use(engine: str, request: pytest.FixtureRequest) -> None:
    """Make conv2d use this engine; "tiled" means the GPU's tiled kernels even for small shapes."""
    if engine == "tiled":
        request.getfixturevalue("tiles_for_all")
    gpucnn.set_conv_algorithm("auto" if engine == "tiled" else engine)
