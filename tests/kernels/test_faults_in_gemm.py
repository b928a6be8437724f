"""The tests of matrix products detect faults: each seeded one makes a check fail."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
from gemm_cases import Product, excesses, planned
from seeded_faults import HIGHEST, TABLE, Check, Fault
from tensor_cases import host, on, plan

from gpucnn.ops import gemm

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiler")]

CORE, RESULTS, SPLITS = "tensor_tile.cuh", "tensor_results.cuh", "splits.cuh"
TENSOR, PLAIN = "gemm_tensor.cu", "gemm.cu"

# Each with the product that detects it: element, form and splits.
FAULTS = [
    (
        Fault("barrier dropped", CORE, "__syncthreads();  // the next tile", "//", HIGHEST),
        "half NN",
    ),
    (Fault("wait for too little", CORE, "wait<DEPTH - 2>();", "wait<DEPTH>();"), "half NT"),
    (Fault("stage not advanced", CORE, "copies.stage = stage;", ""), "half NT"),
    (
        Fault("swizzle of 16 bits", CORE, "((chunk ^ swizzle) << 4)", "(chunk << 4)", "banks"),
        "half TN",
    ),
    (Fault("swizzle of tf32", CORE, "(line & 3) << 1", "line & 7", "banks"), "tf32 TN"),
    (Fault("zero-fill dropped", CORE, "from, exists ? 16 : 0", "from, 16", "address"), "half TN"),
    (Fault("panels overlap", CORE, "at / PANEL * K + k", "at / PANEL + k"), "tf32 TN"),
    (Fault("copies still in flight", CORE, "copy_async_wait<0>();", "", "race"), "half NT"),
    (Fault("tf32 A at the wrong k", CORE, "half * (EIGHT / 2)", "half * EIGHT"), "tf32 TN"),
    (Fault("tf32 B at the wrong k", CORE, "part % 2 * (EIGHT / 2)", "part % 2 * EIGHT"), "tf32 NN"),
    (Fault("pairs overlap", CORE, "number<2>(row", "number<1>(row"), "tf32 TN"),
    (Fault("pairs exchanged", CORE, "[2 * half] = rows.x", "[2 * half] = rows.y"), "tf32 TN"),
    (Fault("pairs stored 8 apart", RESULTS, "r % 8 * 2 + r / 8 : r", "r : r"), "tf32 TN"),
    (Fault("pairs of every row", RESULTS, "PAIRED_ROWS ? r", "true ? r"), "tf32 NN"),
    (
        Fault(
            "splits in another order",
            RESULTS,
            "mine[s * stride",
            "mine[(s + split) % splits * stride",
        ),
        "half NT 3",
    ),
    (
        Fault("a split added twice", RESULTS, "sum[i][j][e] = 0.0f", "sum[i][j][e] += 0.0f"),
        "half NT 3",
    ),
    (Fault("rows overwritten", RESULTS, "__syncwarp();  // the previous", "//", "race"), "half NT"),
    (Fault("rows without padding", RESULTS, "LINE = WN + 8;", "LINE = WN;", "banks"), "half NT"),
    (
        Fault("halves not swapped", RESULTS, "swap = lane & 4", "swap = lane & 32", "banks"),
        "half NT",
    ),
    (Fault("fence dropped", SPLITS, "__threadfence();\n        last", "last", "race"), "half NT 3"),
    (Fault("counter not reset", SPLITS, "(arrived, blocks - 1)", "(arrived, blocks)"), "half NT 3"),
    (
        Fault(
            "rows past the end",
            TENSOR,
            "min(Tile::a_line(q), m - 1 - row)",
            "Tile::a_line(q)",
            "address",
        ),
        "half NT",
    ),
    (
        Fault(
            "columns past the end",
            TENSOR,
            "min(Tile::b_start(q), n - Tile::CHUNK - column)",
            "Tile::b_start(q)",
            "address",
        ),
        "half NN",
    ),
    (Fault("K of the next split", TENSOR, "min(begin + share, k)", "k"), "half NT 3"),
    (Fault("end of K forgotten", TENSOR, "left_a -= Tile::K;", "", "address"), "half NT"),
    (Fault("scale dropped", TENSOR, "v[i] * scale", "v[i]"), "half NN"),
    (Fault("mask dropped", TENSOR, "x[i] != 0.0f ? ", "true ? "), "half NN"),
    (Fault("bias of one column", TENSOR, "bias[at_column + i]", "bias[at_column]"), "half NT"),
    (Fault("ReLU dropped", TENSOR, "v[i] < 0.0f ? 0.0f : v[i]", "v[i]"), "half NT"),
    (Fault("edge stored", TENSOR, "at_row >= m || count <= 0", "count <= 0", "address"), "half NT"),
    (
        Fault("a counter for two", TENSOR, "arrived + tiles + blockIdx.x", "arrived + blockIdx.x"),
        "half TN 3",
    ),
    (
        Fault(
            "sums read too early",
            "line_sums.cuh",
            "__syncthreads();\n    int thread",
            "int thread",
            HIGHEST,
        ),
        "half TN",
    ),
    (
        Fault(
            "plain: lines past the end",
            PLAIN,
            "min(line + q * (T::THREADS / 2), left - 1)",
            "line + q * (T::THREADS / 2)",
            "address",
        ),
        "float NT",
    ),
    (Fault("plain: end of K forgotten", PLAIN, "depth -= TILE_K;", "", "address"), "float TN"),
    (
        Fault("plain: patches mixed up", PLAIN, "&sum[i / 2][i % 2 * 4]", "&sum[i / 2][0]"),
        "float NN 3",
    ),
    (Fault("plain: scale dropped", PLAIN, "v[j] * scale", "v[j]"), "float NN"),
]


@pytest.mark.parametrize(("fault", "what"), FAULTS, ids=lambda of: getattr(of, "what", ""))
def test_a_seeded_fault_in_a_product_is_detected(fault: Fault, what: str) -> None:
    TABLE.detect(fault, checks(what))


@pytest.mark.parametrize("what", sorted({what for _, what in FAULTS}))
@pytest.mark.parametrize("mode", ["fast", HIGHEST, "address", "race", "banks"])
def test_without_a_fault_nothing_is_detected(
    what: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUCNN_CUDASIM", mode)
    for _, check in checks(what):
        check()


def checks(what: str) -> Iterator[Check]:
    element, _, *splits = what.split()
    yield f"product {what}, against float64", partial(run, what)
    if splits and element != "float":
        yield f"bits of product {what}, in another order of blocks", partial(same_bits, element)


def run(what: str) -> None:
    """The product `what` on ragged tiles, twice: the second finds what the first left behind."""
    element, form, *splits = what.split()
    sizes = (71, 139, 45) if element == "float" else (72, 200, 104)
    product = Product(form, *sizes, element, element)
    with planned(plan("64x64", 4), int(splits[0]) if splits else 1):
        for _ in range(2):
            found = excesses(product, np.random.default_rng(3), "cudasim")
            assert max(found.values()) <= 1, found


def same_bits(element: str) -> None:
    """A split sum has the same bits whichever block is last."""
    a, b = np.random.default_rng(4).standard_normal((2, 40, 640), np.float32)
    results = []
    with pytest.MonkeyPatch.context() as patch, planned(plan("64x64", 4), 5):
        for schedule in ("lowest", "highest"):
            patch.setenv("GPUCNN_CUDASIM", f"fast,schedule={schedule},threads=1")
            given = on("cudasim", a, element), on("cudasim", b, element)
            results.append(host(gemm.multiply("NT", *given, np.float32)[0]))
    np.testing.assert_array_equal(*results)
