"""The kernels' tests detect faults: each fault seeded into a kernel makes at least one fail."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
from kernel_cases import random_geometry
from seeded_faults import HIGHEST, TABLE, Check, Fault
from test_conv2d_kernels import errors, operands

from gpucnn.commands.check.kernels import bound, cases

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("compiler", "tiles_for_all", "conv_algorithm"),
]

FAULTS = [
    Fault("barrier after a step dropped", "gemm_tile.cuh", "__syncthreads();  // the other", "//"),
    Fault(
        "barrier after the first store dropped",
        "gemm_tile.cuh",
        "store_next(tiles[0]);\n    __syncthreads();",
        "store_next(tiles[0]);",
    ),
    Fault(
        "padding left out",
        "gemm_tile.cuh",
        "constexpr int PAD = 4;",
        "constexpr int PAD = 0;",
        "banks",
    ),
    Fault(
        "table written number by number",
        "conv2d_forward.cu",
        "table[at] = tap;",
        "table[at].pixel = tap.pixel; table[at].weight = tap.weight; table[at].bits = tap.bits;",
        "banks",
    ),
    Fault("one buffer in place of two", "gemm_tile.cuh", "= size - buffer;", "= buffer;"),
    Fault("a row too far", "gemm_tile.cuh", "i < 4 ? i : 16 + i - 4", "i < 4 ? i : 17 + i - 4"),
    Fault("quad read past its end", "gemm_tile.cuh", "if (left > 3) v.w", "if (left > 2) v.w"),
    Fault("quad written past its end", "gemm_tile.cuh", "vector && left >= 4", "vector"),
    Fault("rows past the end written", "conv2d_forward.cu", "(m >= pixels)", "(false)", "address"),
    Fault(
        "filters past the end read",
        "conv2d_forward.cu",
        "min(blockIdx.y * TN + line + q * LINES, filters - 1)",
        "blockIdx.y * TN + line + q * LINES",
        "address",
    ),
    Fault("table read too early", "conv2d_forward.cu", "__syncthreads();  // the", "//", HIGHEST),
    Fault("end of the table forgotten", "conv2d_forward.cu", "t <= count;", "t < count;"),
    Fault("alignment assumed", "conv2d_forward.cu", "= filters % 4 == 0;", "= true;"),
    Fault("last row of the padding", "conv2d_gather.cuh", "at < size", "at <= size"),
    Fault("negative rows", "conv2d_gather.cuh", "at >= 0 && at", "at"),
    Fault("step between taps forgotten", "conv2d_grad_input.cu", "axis.step = tap", "// = tap"),
    Fault("short phase overrun", "conv2d_grad_input.cu", "TM >= phase.pixels", "TM < 0"),
    Fault("left edge", "pixel_walk.cuh", "(uint32)column < (uint32)g.w", "column < g.w"),
    Fault(
        "pixels of the next split",
        "conv2d_grad_weight.cu",
        "b_pixels > 0 && on_image",
        "on_image",
        "address",
    ),
    Fault("missing gradient read", "optimizer.cu", "if (!gradient) return;", "", "address"),
    Fault("gradient read past its end", "optimizer.cu", "i + WIDTH <= size", "true", "address"),
    Fault("copies of old parameters", "optimizer.cu", "value[k] = next;", "g[k] = next;"),
    Fault("an overflow missed", "optimizer.cu", "if (bad) atomicOr", "if (false) atomicOr"),
    Fault("scale not divided out", "optimizer.cu", "0.0f : 1.0f / now", "0.0f : 1.0f"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_a_seeded_fault_in_a_kernel_is_detected(fault: Fault) -> None:
    TABLE.detect(fault, checks())


def checks() -> Iterator[Check]:
    """The cases of every kernel, and random geometries of convolutions."""
    for name, case in cases(np.random.default_rng(20), "cudasim"):
        yield f"{name}, beside the CPU", partial(is_right, name, case)
    for seed in range(12):
        yield f"random convolution {seed}, against slow loops", partial(random_convolution, seed)


def is_right(name: str, case: Callable[[], float]) -> None:
    assert case() <= bound(name)


def random_convolution(seed: int) -> None:
    rng = np.random.default_rng(seed)
    g, oc = random_geometry(rng)
    found = errors(g, operands(g, oc, rng))
    assert max(found) <= 1e-5, (g, oc, found)
