"""The cases of the memory-bound kernels detect faults: each seeded one makes at least one fail."""

from collections.abc import Callable, Iterator
from functools import partial
from operator import attrgetter

import numpy as np
import pytest
from seeded_faults import HIGHEST, TABLE, Check, Fault

from gpucnn.commands.check import kernels

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiler")]

PARTS = (
    "_pools", "_elementwise", "_normalisations", "layers.cases", "_losses", "_augmentation",
)  # fmt: skip
FAULTS = [
    # vector.cuh
    Fault("last numbers read as 16 bytes", "vector.cuh", "left >= LANES && (", "(", "address"),
    Fault("halves swapped", "vector.cuh", "v[2 * i], v[2 * i + 1]", "v[2 * i + 1], v[2 * i]"),
    Fault("upper half read twice", "vector.cuh", "i % 2 * 16", "16"),
    Fault("quotient one bit off", "vector.cuh", ">> by.shift", ">> (by.shift - 1)"),
    Fault("remainder without the product", "vector.cuh", "* by.divisor;", ";"),
    # batch_norm_sums.cuh and batch_norm.cu
    Fault(
        "numbers of the last step overwritten",
        "batch_norm_sums.cuh",
        "__syncthreads();  // the numbers",
        "//",
        HIGHEST,
    ),
    Fault(
        "numbers read too early",
        "batch_norm_sums.cuh",
        "        __syncthreads();\n        if (at.line + half",
        "        if (at.line + half",
    ),
    Fault("a line too many", "batch_norm_sums.cuh", "half >= lines", "half > lines"),
    Fault("tiles share a counter", "batch_norm_sums.cuh", "counters + blockIdx.x", "counters"),
    Fault("weight of a sample", "batch_norm_sums.cuh", "into.count * share", "into.count"),
    Fault("block's share of rows", "batch_norm_sums.cuh", "min(at.begin + share, rows)", "rows"),
    Fault("mean not relative", "batch_norm.cu", "(k[i] - reference[i]) + away", "k[i] + away"),
    Fault("a row left out", "batch_norm.cu", "int row = 1; row", "int row = 2; row"),
    Fault(
        "rows of other threads",
        "batch_norm.cu",
        "row < step ? rows * channels : 0",
        "rows * channels",
        "race",
    ),
    Fault("variance taken for its root", "batch_norm.cu", "if (eps >= 0.0f)", "if (false)"),
    # pool2d.cu
    Fault("ties go to the last", "pool2d.cu", "value[i] > best[i]", "value[i] >= best[i]"),
    Fault(
        "a window too many",
        "pool2d.cu",
        "min(divide(at + before, stride), outputs - 1)",
        "divide(at + before, stride)",
        "address",
    ),
    Fault(
        "winners overlap",
        "pool2d.cu",
        "(unsigned)winner[i] << i % 4 * 8",
        "(unsigned)winner[i] << i % 4",
    ),
    Fault("cells beyond the last window", "pool2d.cu", "at.row < g.oh && ", "", "address"),
    Fault("columns between windows", "pool2d.cu", "s < g.kw ? ", "true ? "),
    Fault("mask left out", "pool2d.cu", "v[i] == 0.0f ? 0.0f : d[i] * scale", "d[i] * scale"),
    Fault(
        "channels of the next group",
        "image_elements.cuh",
        "groups.divisor) * N}",
        "groups.divisor)}",
    ),
    # cross_entropy.cu
    Fault("row guard dropped", "cross_entropy.cu", "if (row < rows)", "if (true)", "address"),
    Fault(
        "sums read too early",
        "cross_entropy.cu",
        "__syncthreads();\n    if (threadIdx.x != 0)",
        "if (threadIdx.x != 0)",
        "race",
    ),
    Fault(
        "mean of any block",
        "cross_entropy.cu",
        "if (last_to_arrive(counter, gridDim.x))",
        "if (true)",
        "race",
    ),
    Fault("divided twice", "cross_entropy.cu", "weights || !mean ? 1.0f : 1.0f", "1.0f"),
    Fault("sum divided", "cross_entropy.cu", "weights || !mean", "weights"),
    Fault(
        "mean for sum",
        "cross_entropy.cu",
        "mean ? loss_sum / weight_sum : loss_sum",
        "loss_sum / weight_sum",
    ),
    # dropout.cu, activation.cu
    Fault(
        "ends read as 16 bytes",
        "dropout.cu",
        "first < 0 || first + 16 > size ? 1 : ",
        "",
        "address",
    ),
    Fault("unaligned numbers", "dropout.cu", "used % LANES == 0", "true", "address"),
    Fault("round constant", "dropout.cu", "0x9E3779B97F4A7C15", "0x9E3779B97F4A7C16"),
    Fault("bits of another element", "dropout.cu", "(part + i) % 4 * 16", "i % 4"),
    Fault("gradient at 0", "activation.cu", "signs[i] > 0.0f", "signs[i] >= 1.0f"),
    Fault("sigmoid of -x", "activation.cu", "x < 0.0f ? small : 1.0f", "x < 0.0f ? 1.0f : small"),
    Fault("slope of a sigmoid left out", "activation.cu", " + near * slope", ""),
    Fault("log of 1 without its small part", "activation.cu", "log1pf(", "logf("),
    # group_norm.cu
    Fault(
        "sums overwritten before they are read",
        "group_norm.cu",
        "__syncthreads();  // the last sums",
        "//",
        "race",
    ),
    Fault(
        "sums read before they are written",
        "group_norm.cu",
        "    __syncthreads();\n    Pair total",
        "    Pair total",
        "race",
    ),
    Fault("statistics of another image", "group_norm.cu", "pixels) * groups", "pixels)"),
    Fault("parameters of the first group", "group_norm.cu", "channel + part);", "part);"),
    Fault("squares not squared", "group_norm.cu", "squares += away * away", "squares += away"),
    Fault("a group's last numbers", "group_norm.cu", "i < pixels *", "i < pixels - 1 *"),
    Fault("beyond the group", "group_norm.cu", "i < pixels *", "i <= pixels *", "address"),
    # interpolate.cu
    Fault("readers left out", "interpolate.cu", "after + 3.0f", "after - 1.0f"),
    Fault(
        "pixel beyond the edge",
        "interpolate.cu",
        "first + 1, size - 1",
        "first + 1, size",
        "address",
    ),
    Fault(
        "shares exchanged",
        "interpolate.cu",
        "taps.second == at ? taps.share",
        "taps.second == at ? 1.0f - taps.share",
    ),
    Fault("corners not on corners", "interpolate.cu", "mode == ALIGNED ? scale", "false ? scale"),
    # local_response_norm.cu
    Fault(
        "neighbours not mirrored",
        "local_response_norm.cu",
        "int j = -after; j <= before",
        "int j = -before; j <= after",
    ),
    Fault("next tile's neighbours", "local_response_norm.cu", ": TILE + i - after)", ": TILE - 1)"),
    Fault(
        "channel of the tile", "local_response_norm.cu", "remainder(blockIdx.x, channels) *", "0 *"
    ),
    Fault(
        "tile read too early",
        "local_response_norm.cu",
        "i - after);\n    __syncthreads();",
        "i - after);",
        HIGHEST,
    ),
    # augment.cu
    Fault("mirror off by one", "augment.cu", "size - 1 - column", "size - column"),
    Fault("row not carried", "augment.cu", "++row;", ";"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_a_seeded_fault_in_a_memory_bound_kernel_is_detected(fault: Fault) -> None:
    TABLE.detect(fault, checks())


@pytest.mark.parametrize("mode", ["fast", HIGHEST, "address", "race", "banks"])
def test_without_a_fault_every_case_passes(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUCNN_CUDASIM", mode)
    for _, check in checks():
        check()


def checks() -> Iterator[Check]:
    """The cases of the memory-bound kernels."""
    rng = np.random.default_rng(20)
    for part in PARTS:
        for name, case in attrgetter(part)(kernels)(rng, "cudasim"):
            yield f"{name}, beside the CPU", partial(is_right, name, case)


def is_right(name: str, case: Callable[[], float]) -> None:
    assert case() <= kernels.bound(name)
