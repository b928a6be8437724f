"""Helpers for tests of convolutions on tensor cores: geometry, operands, oracle and launches."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import slow_loops

import gpucnn
from gpucnn.cuda.tensor_plan import BYTES, TILES, Plan, specialisations
from gpucnn.device import Array
from gpucnn.ops.conv2d import tensor
from gpucnn.ops.geometry import Geometry
from gpucnn.precision import bfloat16

ELEMENTS = ("half", "bfloat16", "tf32")
TILE = {str(tile): tile for tile in TILES}
DEFAULT = {"half": "64x64", "bfloat16": "64x192", "tf32": "128x64"}  # tiles of the default run
# Every check of the simulator, and orders of blocks and threads other than the usual one.
MODES = ("address,schedule=highest", "race,schedule=random:5", "banks")
FRACTION_BITS = {"float16": 10, "bfloat16": 7, "float32": 23}
SMALLEST = {"float16": -24, "bfloat16": -133, "float32": -149}  # exponents of the least numbers


def dtype_of(element: str) -> np.dtype[Any]:
    return {"half": np.dtype(np.float16), "tf32": np.dtype(np.float32)}.get(element) or bfloat16()


@dataclass(frozen=True)
class Case:
    """A convolution, its operands as float32 numbers that `element` represents, and a tile."""

    g: Geometry
    oc: int
    element: str
    plan: Plan

    def operands(self, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        """x, weight, bias and dy; bias is any float32."""
        g = self.g
        shapes = [
            (g.n, g.h, g.w, g.c),
            (self.oc, g.kh, g.kw, g.c // g.groups),
            (self.oc,),
            (g.n, g.oh, g.ow, self.oc),
        ]
        x, weight, bias, dy = (rng.standard_normal(shape, np.float32) for shape in shapes)
        return self.values(x), self.values(weight), bias, self.values(dy)

    def values(self, x: np.ndarray) -> np.ndarray:
        """x as the tensor cores see it: rounded to half precision, or truncated to TF32."""
        if self.element == "tf32":
            return (x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
        return x.astype(dtype_of(self.element)).astype(np.float32)


def plan(tile: str, stages: int = 4) -> Plan:
    return Plan(TILE[tile], stages, 1, "chosen by a test")


def random_plan(rng: np.random.Generator, element: str) -> Plan:
    """Any tile with 4 stages, or a small one with fewer: each takes seconds to compile.

    bfloat16 differs from half in its conversions only, so one tile serves.
    """
    if element == "bfloat16":
        return plan(DEFAULT[element])
    tile, stages = str(rng.choice(list(TILE))), int(rng.integers(2, 5))
    return plan(tile, stages if (element, tile) == ("half", DEFAULT["half"]) else 4)


def seeds(element: str, quick: int) -> list[Any]:
    """Seeds and `element`: 300 of half and float, 100 of others; all but `quick` are slow."""
    return [
        pytest.param(seed, element, marks=[] if seed < quick else pytest.mark.slow)
        for seed in range(300 if element in ("half", "float") else 100)
    ]


def tiles() -> list[Any]:
    """Elements and plans that the package lists: all but one of each element are slow."""
    found = {(case.element, str(case.tile), case.stages) for case in specialisations()}
    return [
        pytest.param(
            element,
            plan(tile, stages),
            marks=[] if (tile, stages) == (DEFAULT[element], 4) else pytest.mark.slow,
            id=f"{element}-{tile}-{stages}",
        )
        for element, tile, stages in sorted(found)
    ]


def random_case(rng: np.random.Generator, element: str, chosen: Plan | None = None) -> Case:
    """Small images of any geometry that the kernels take; the tile is `chosen`, or random.

    Kernel sizes 1 to 7, strides 1 to 3, dilation, groups, padding on each side; channels and
    filters of a group are one to nine copies of 16 bytes.
    """
    chunk = 16 // BYTES[element]
    while True:
        groups = int(rng.choice([1, 1, 1, 2, 3]))
        c, oc = (int(rng.integers(1, 10)) * chunk * groups for _ in range(2))
        kernel, stride = rng.integers(1, 8, 2), rng.choice([1, 1, 2, 3], 2)
        dilation, padding = rng.choice([1, 1, 2, 3], 2), rng.integers(0, 4, (2, 2))
        extent = (kernel - 1) * dilation + 1
        size = np.maximum(1, extent - padding.sum(axis=1) + rng.integers(0, 7, 2))
        n = int(rng.choice([0, 1, 1, 2, 2, 3, 3, 3, 5]))
        if n * size.prod() * c * oc * kernel.prod() <= 2e7:
            break
    (top, bottom), (left, right) = padding.tolist()
    g = Geometry.of(
        "test",
        (n, *size.tolist(), c),
        tuple(kernel.tolist()),
        tuple(stride.tolist()),
        ((top, bottom), (left, right)),
        tuple(dilation.tolist()),
        groups,
    )
    return Case(g, oc, element, chosen or random_plan(rng, element))


# --- the kernels ---


def on(device: str, array: np.ndarray, element: str) -> Array:
    return gpucnn.tensor(array, device).astype(dtype_of(element)).data


def empty(device: str, shape: tuple[int, ...], element: str) -> Array:
    return on(device, np.full(shape, np.nan, np.float32), element)


def host(array: Array) -> np.ndarray:
    return gpucnn.Tensor(array).astype(np.float32).numpy()


def forward(
    case: Case,
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    device: str,
    relu: bool = False,
) -> np.ndarray:
    """y by the kernel."""
    g, e = case.g, case.element
    y = empty(device, (g.n, g.oh, g.ow, case.oc), e)
    given = None if bias is None else gpucnn.tensor(bias, device).data
    tensor.convolve(case.plan, e, on(device, x, e), on(device, weight, e), given, y, g, relu)
    return host(y)


def grad_input(
    case: Case,
    dy: np.ndarray,
    weight: np.ndarray,
    device: str,
    mask: np.ndarray | None = None,
    scale: float = 1.0,
    result: str | None = None,
) -> np.ndarray:
    """dx by the kernel, in `result`, by default the element."""
    g, e = case.g, case.element
    dx = empty(device, (g.n, g.h, g.w, g.c), result or e)
    made = None if mask is None else on(device, mask, result or e)
    given = on(device, dy, e), on(device, weight, e)
    tensor.grad_input(case.plan, e, *given, made, dx, g, scale)
    return host(dx)


# --- the oracle ---


def excess(actual: np.ndarray, exact: np.ndarray, sizes: np.ndarray, steps: int, e: str) -> float:
    """The largest error by what is allowed: 2 units of the result, and float32 summation.

    exact is the sum in float64 and sizes that of the terms' absolute values; a tensor core adds
    `steps` times to a float32 that it may truncate.
    """
    if not actual.size:
        return 0.0
    if not np.isfinite(actual).all():
        return float("inf")
    name = dtype_of(e).name
    exponent = np.floor(np.log2(np.maximum(np.abs(exact), 2.0**-150)))
    unit = 2.0 ** np.maximum(exponent - FRACTION_BITS[name], SMALLEST[name])
    allowed = 2 * unit + steps * 2.0**-23 * sizes
    return float((np.abs(actual - exact) / np.maximum(allowed, 1e-300)).max())


def errors(
    case: Case, rng: np.random.Generator, device: str, what: tuple[str, ...] = ("y", "dx")
) -> dict[str, float]:
    """The `excess` of y and of dx: at most 1 for right ones."""
    x, weight, bias, dy = case.operands(rng)
    found = {}
    if "y" in what:
        found["y"] = forward(case, x, weight, bias, device)
    if "dx" in what:
        found["dx"] = grad_input(case, dy, weight, device)
    exact = slow_loops.conv2d(x, weight, bias, dy, case.g)
    sizes = slow_loops.conv2d(abs(x), abs(weight), abs(bias), abs(dy), case.g)
    g, step = case.g, 32 // BYTES[case.element]
    steps = g.kh * g.kw * (max(g.c, case.oc) // step + 2)
    return {
        name: excess(array, exact[i], sizes[i], steps, case.element)
        for i, (name, array) in enumerate((name, found.get(name)) for name in ("y", "dx"))
        if array is not None
    }
