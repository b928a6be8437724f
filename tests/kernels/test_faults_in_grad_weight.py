"""The tests of the filters' gradient detect faults: each seeded one makes a check fail."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import slow_loops
from devices import relative
from seeded_faults import HIGHEST, TABLE, Check, Fault
from tensor_cases import Case, host, on, plan
from test_tensor_grad_weight import errors, run

from gpucnn.ops.conv2d import grad_weight
from gpucnn.ops.geometry import Geometry

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiler")]

TENSOR, NARROW = "conv2d_grad_weight_tensor.cu", "conv2d_grad_weight_narrow.cu"
PLAIN, WALK = "conv2d_grad_weight_plain.cu", "pixel_walk.cuh"
SPLIT, BIAS, CORE, COUNT = "split_sum.cuh", "bias_sum.cuh", "tensor_tile.cuh", "splits.cuh"
# The part of the block that arrived last, which `to` points to, and then the others
LAST_PART_FIRST = (
    "part = mine[(split + ((member + (((to - mine) / SIZE - split) >> level)) % members << level))"
    " * SIZE + (pass + i) * HOLDERS]"
)
# Blocks of different families arrive in turn, in the same order every time
MIXED = "fast,threads=1,schedule=random:1"
LAST = "1;  // the last wraps the counter to 0\n        "  # splits.cuh
FAULTS = [
    Fault("copies not waited for", CORE, "copy_async_wait<DEPTH - 2>();", "copy_async_wait<9>();"),
    Fault("stage read while it is filled", CORE, "__syncthreads();  // the next", "//", HIGHEST),
    Fault("a bit of the swizzle", CORE, "<< 1 : line & 7", "<< 1 : line & 3", "banks"),
    Fault("columns not carried", TENSOR, "pixel.chunk += walk.column_chunks;", ""),
    Fault("images not carried", TENSOR, "pixel.chunk += walk.row_chunks;", ""),
    Fault("rows not carried", TENSOR, "pixel.place += walk.column_place;", ""),
    Fault("padding on the left read", TENSOR, "0x80008000u", "0x80000000u"),
    Fault("padding above read", TENSOR, "0x80008000u", "0x00008000u"),
    Fault("padding on the right read", TENSOR, "place | (walk.last_place - place)", "place"),
    Fault("pixels of the next split", TENSOR, "exists = left > l * PASS", "exists = true"),
    Fault("filters past the end read", TENSOR, "filters - Tile::CHUNK", "filters", "address"),
    Fault("filters past the end stored", TENSOR, "filter < filters &&", "", "address"),
    Fault("the next group's filters", TENSOR, "(group * filters + min", "(min"),
    Fault("steps and loads out of order", CORE, "if (s < DEPTH - 1) step();", "step();"),
    Fault("parts in the order of arrival", SPLIT, "part = from[i * HOLDERS]", LAST_PART_FIRST),
    Fault("a part left out", SPLIT, "member < members;", "member < members - 1;"),
    Fault("a part added to what was there", SPLIT, "sum[i] = 0.0f;", "", "fast"),
    Fault("families of a tile share a counter", SPLIT, "(arrived + family, ", "(arrived, ", MIXED),
    Fault("tiles share counters", SPLIT, "count += splits) splits", "count += 0) splits", MIXED),
    Fault("counter not reset", COUNT, "atomicInc(arrived, blocks - 1)", "atomicInc(arrived, 99)"),
    Fault("counted before it is written", COUNT, "__syncthreads();  // all", "//", "race"),
    Fault("written after it is counted", COUNT, "__threadfence();\n        last", "last", "race"),
    Fault("read before it is counted", COUNT, LAST + "__threadfence();", "1;", "race"),
    Fault("bias summed too early", BIAS, "__syncthreads();", "", "race"),
    Fault("bias of the next split", BIAS, "LINES < pixels ?", "LINES < pixels + 1 ?"),
    Fault("bias of the next filters", BIAS, "filter + i < left", "true", "address"),
    Fault("bias by all threads", BIAS, "<THREADS, READERS>", "<THREADS>", "address"),
    Fault("warps meet too early", NARROW, "__syncthreads();  // no warp", "//", "race"),
    Fault("places read too early", NARROW, "__syncwarp();  // the other", "//", "race"),
    Fault("sums in the same banks", NARROW, "(k / 4 ^ filter / 4) % 8 * 4", "k / 4 * 4", "banks"),
    Fault("a warp left out", NARROW, "w < WARPS", "w < WARPS - 1"),
    Fault("images not rounded", NARROW, "sizeof(IMAGE) > sizeof(ELEMENT)", "false"),
    Fault("places past the end", NARROW, "left > lane ?", "left > 0 ?"),
    Fault("the walk's rows not carried", WALK, "++walk.image;", ""),
    Fault("bias of one filter for all", PLAIN, "sum_of_filter(dy + oc", "sum_of_filter(dy"),
]  # fmt: skip


# Groups, carries, padding on each side, ragged tiles and splits
OPTIONS = {"stride": (2, 1), "padding": ((1, 2), (2, 1)), "dilation": (1, 2), "groups": 2}
RAGGED = Geometry.of("test", (5, 9, 6, 2 * 24), (3, 2), **OPTIONS)
FIRST = Geometry.of("test", (3, 9, 7, 3), 3, padding=1)  # a first layer: CUDA cores


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_a_seeded_fault_in_a_gradient_of_the_filters_is_detected(fault: Fault) -> None:
    TABLE.detect(fault, checks())


def test_without_a_fault_no_check_of_a_gradient_fails() -> None:
    for _, check in checks():
        check()


def checks() -> Iterator[Check]:
    for element, tile, splits in (("half", "64x64", 6), ("tf32", "128x64", 2)):
        case = Case(RAGGED, 2 * 40, element, replace(plan(tile), splits=splits))
        yield f"dweight and dbias of {element}, against float64", partial(is_right, case)
    yield "bits of a split dweight, against the sum of its parts", in_order
    for oc, x_type in ((20, np.float32), (10, np.float16)):
        for kernel in (narrow, plain):
            yield (
                f"{kernel.__name__} dweight and dbias of {x_type.__name__}, against float64",
                partial(on_cuda_cores, kernel, FIRST, oc, x_type),
            )


def is_right(case: Case) -> None:
    assert max(errors(case, np.random.default_rng(5), "cudasim")) <= 1


def in_order() -> None:
    """The same bits again, and whatever the order in which blocks arrive."""
    g = Geometry.of("test", (7, 8, 4, 8), 3, padding=1)
    case = Case(g, 8, "half", replace(plan("64x64"), splits=7))
    x, _, _, dy = case.operands(np.random.default_rng(5))
    one = replace(case, g=replace(g, n=1), plan=plan("64x64"))
    parts = [run(one, x[i : i + 1], dy[i : i + 1], "cudasim")[0] for i in range(7)]
    fours = (parts[0] + parts[1] + parts[2] + parts[3]) + (parts[4] + parts[5] + parts[6])
    for _ in range(2):
        np.testing.assert_array_equal(run(case, x, dy, "cudasim")[0], fours)


def narrow(x: Any, dy: Any, g: Geometry) -> tuple[Any, Any]:
    return grad_weight.on_cuda_cores(x, dy, g, True, 64)


def plain(x: Any, dy: Any, g: Geometry) -> tuple[Any, Any]:
    return grad_weight._on_plain(x, dy, g, True)


def on_cuda_cores(
    kernel: Callable[[Any, Any, Geometry], tuple[Any, Any]], g: Geometry, oc: int, x_type: type
) -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((g.n, g.h, g.w, g.c), np.float32).astype(x_type)
    dy = rng.standard_normal((g.n, g.oh, g.ow, oc), np.float32).astype(np.float16)
    weight, bias = np.zeros((oc, g.kh, g.kw, g.c)), np.zeros(oc)
    exact = slow_loops.conv2d(x.astype(np.float16), weight, bias, dy, g)[2:]
    given = on("cudasim", x, "half" if x_type is np.float16 else "tf32"), on("cudasim", dy, "half")
    for ours, theirs in zip(kernel(*given, g), exact, strict=True):
        assert ours is not None
        assert relative(host(ours), theirs) <= 1e-6
