"""The tests of convolutions on tensor cores detect faults: each seeded one makes a check fail."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
from seeded_faults import HIGHEST, TABLE, Check, Fault
from tensor_cases import Case, errors, grad_input, plan

from gpucnn.ops.geometry import Geometry

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiler")]

FORWARD, GRAD_INPUT = "conv2d_forward_tensor.cu", "conv2d_grad_input_tensor.cu"
CORE = "tensor_tile.cuh"
FAULTS = [
    Fault(
        "forward: a row of taps begins late", FORWARD, "end_of_row ? -s : 1", "end_of_row ? 0 : 1"
    ),
    Fault(
        "forward: filters step too far", FORWARD, "SIZE - last, bytes - last", "SIZE - last, bytes"
    ),
    Fault(
        "forward: padding copied",
        FORWARD,
        "(off_image[q] & bits) == 0",
        "(int)bits >= 0",
        "address",
    ),
    Fault(
        "forward: channels past the last copied",
        FORWARD,
        "c < own ? tap->bits : NO_TAP",
        "tap->bits",
    ),
    Fault("forward: the next tap is late", FORWARD, "if (c >= all)", "if (c > all)"),
    Fault(
        "forward: filters past the last read",
        FORWARD,
        "min(f + Tile::b_line(q), filters - 1)",
        "f + Tile::b_line(q)",
        "address",
    ),
    Fault("forward: rows past the end stored", FORWARD, "m + row >= pixels ||", "", "address"),
    Fault("forward: whole chunks assumed", FORWARD, "filters % CHUNK == 0", "true", "address"),
    Fault("forward: table short", FORWARD, "t <= count + STAGES", "t < count", "address"),
    Fault(
        "forward: table read too early", FORWARD, "__syncthreads();  // the table", "//", HIGHEST
    ),
    Fault("grad-input: step between taps", GRAD_INPUT, "down * rows.step * g.kw", "down * g.kw"),
    Fault(
        "grad-input: padding copied",
        GRAD_INPUT,
        "(off_image[q] & bits) == 0",
        "(int)bits >= 0",
        "address",
    ),
    Fault(
        "grad-input: filters past the last",
        GRAD_INPUT,
        "Tile::b_k() < b_left - Tile::b_k_step(q)",
        "true",
        "address",
    ),
    Fault(
        "grad-input: past the last tap",
        GRAD_INPUT,
        "(int)tap->bits >= 0 ? left : 0",
        "left",
        "address",
    ),
    Fault("grad-input: phases mixed up", GRAD_INPUT, "% rows.pixels * g.stride_h", "% rows.pixels"),
    Fault("grad-input: scale forgotten", GRAD_INPUT, ": mask_scale * v[i]", ": v[i]"),
    Fault("grad-input: zeros pass the mask", GRAD_INPUT, "made[i] == 0.0f ? 0.0f : ", ""),
    Fault(
        "wait for too little", CORE, "copy_async_wait<DEPTH - 2>();", "copy_async_wait<DEPTH>();"
    ),
    Fault("swizzle left out", CORE, "(chunk ^ (line >> 1 & 3))", "chunk", "banks"),
    Fault("stage not advanced", CORE, "copies.stage = stage;", ""),
    Fault(
        "other k-step",
        CORE,
        "reader.load(next, shared + copies.stage, 1)",
        "reader.load(next, shared + copies.stage, 0)",
    ),
]


# Ragged tiles, phases, taps of one and a half k-tiles and of two, odd filters.
OPTIONS = (3, 4), (2, 1), ((1, 2), (0, 1)), (1, 2)
CASES = {
    channels: Case(Geometry.of("test", (2, 9, 7, channels), *OPTIONS), oc, "half", plan("64x64"))
    for channels, oc in ((64, 13), (48, 40))
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_a_seeded_fault_in_a_convolution_on_tensor_cores_is_detected(fault: Fault) -> None:
    TABLE.detect(fault, checks())


def test_without_a_fault_nothing_is_detected() -> None:
    for _, check in checks():
        check()


def checks() -> Iterator[Check]:
    for channels, what in ((64, "y"), (48, "y"), (48, "dx")):
        yield (
            f"{what} of a convolution of {channels} channels, against float64",
            partial(is_right, CASES[channels], what),
        )
    yield "a masked dx, against dx", partial(mask_is_right, CASES[48])


def is_right(case: Case, what: str) -> None:
    assert errors(case, np.random.default_rng(5), "cudasim", (what,))[what] <= 1


def mask_is_right(case: Case) -> None:
    rng = np.random.default_rng(5)
    x, weight, _, dy = case.operands(rng)
    x[rng.random(x.shape) < 0.5] = 0
    dx = grad_input(case, dy, weight, "cudasim")
    masked = grad_input(case, dy, weight, "cudasim", mask=x, scale=2.0)
    np.testing.assert_array_equal(masked, np.where(x == 0, 0, 2 * dx))
