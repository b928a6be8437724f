"""The kernels' tests detect faults: each fault seeded into a kernel makes at least one fail."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from every_kernel import run_all
from kernel_cases import random_geometry
from test_conv2d_kernels import errors, operands
from test_every_kernel import check

from gpucnn import cuda
from gpucnn.cuda import compiler, launcher
from gpucnn.errors import KernelError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiler", "tiles_for_all")]


@dataclass(frozen=True)
class Fault:
    what: str
    file: str
    right: str  # text of the file ...
    wrong: str  # ... and its replacement
    mode: str = "fast"  # GPUCNN_CUDASIM that detects it


FILES = sorted({kernel.file for kernel in cuda.kernels().values()})
HIGHEST = "fast,schedule=highest"
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
    Fault("images not carried", "conv2d_grad_weight.cu", "++walk.image;", ";"),
    Fault("left edge", "conv2d_grad_weight.cu", "(uint32)column < (uint32)g.w", "column < g.w"),
    Fault(
        "pixels of the next split",
        "conv2d_grad_weight.cu",
        "b_pixels > 0 && on_image",
        "on_image",
        "address",
    ),
    Fault("sum read too early", "reduce.cu", "= sum;\n    __syncthreads();", "= sum;"),
    Fault(
        "guard dropped",
        "reduce.cu",
        "size) return;\n    float total",
        "size);\n    float total",
        "address",
    ),
    Fault("sums overwritten", "batch_norm.cu", "__syncthreads();  // the sums", "//", HIGHEST),
    Fault("ties go to the last", "pool2d.cu", "value > best", "value >= best"),
    Fault("a window too many", "pool2d.cu", "min((at + before) / stride, outputs - 1)", "at"),
    Fault("row guard dropped", "cross_entropy.cu", "(row >= rows)", "(false)", "address"),
    Fault(
        "partial sums read too early",
        "cross_entropy.cu",
        "__syncthreads();\n    if",
        "if",
        "race",
    ),
    Fault(
        "quad before the start",
        "dropout.cu",
        "element >= 0 && element + 3",
        "element + 3",
        "address",
    ),
    Fault("round constant", "dropout.cu", "0x9E3779B97F4A7C15", "0x9E3779B97F4A7C16"),
    Fault(
        "neighbours not mirrored", "local_response_norm.cu", "after, before);", "before, after);"
    ),
    Fault("missing gradient read", "optimizer.cu", "if (!gradient) return;", "", "address"),
    Fault("mirror off by one", "augment.cu", "size - 1 - column", "size - column"),
]


@pytest.fixture
def fault(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fault]:
    fault = request.param
    assemble = cuda.assemble

    def assemble_with_fault(file: str, *rest: Any) -> str:
        text = assemble(file, *rest)
        here = file == fault.file or fault.file.endswith(".cuh")
        return text.replace(fault.right, fault.wrong) if here else text

    files = FILES if fault.file.endswith(".cuh") else [fault.file]
    if not any(fault.right in assemble(file) for file in files):
        pytest.fail("the kernel has changed: update the text that the fault replaces")
    monkeypatch.setattr(compiler, "assemble", assemble_with_fault)
    monkeypatch.setenv("GPUCNN_CUDASIM", fault.mode)
    forget()
    yield fault
    forget()


def forget() -> None:
    """Drop the cached modules: they were compiled from another source."""
    compiler.load_module.cache_clear()
    launcher.checked_kernel.cache_clear()


@pytest.mark.usefixtures("conv_algorithm")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what, indirect=True)
def test_a_seeded_fault_in_a_kernel_is_detected(fault: Fault) -> None:
    with pytest.raises((KernelError, AssertionError)):
        everything()


def everything() -> None:
    """Run a short version of the kernels' tests."""
    check(*run_all(np.random.default_rng(20), "cudasim"))
    for seed in range(12):
        rng = np.random.default_rng(seed)
        g, oc = random_geometry(rng)
        found = errors(g, operands(g, oc, rng))
        assert max(found) <= 1e-5, (g, oc, found)
