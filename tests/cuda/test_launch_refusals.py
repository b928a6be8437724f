"""cuda.launch refuses wrong arguments and launches beyond the limits, naming what was expected."""

import dataclasses

import numpy as np
import pytest

from gpucnn import cuda
from gpucnn.cuda import launcher
from gpucnn.errors import ArgumentError, DeviceMismatch, DtypeError, ShapeError
from gpucnn.ops.geometry import Geometry


@dataclasses.dataclass(frozen=True)
class Other:
    n: int


def test_wrong_arguments_are_refused_with_kernel_and_parameter(xp):
    x, y = xp.zeros(8, np.float32), xp.zeros(8, np.float32)
    window = Geometry.of("test", (1, 8, 8, 2), 3, 1, 1)
    out = xp.zeros(4, np.int32)

    def refused(error, match, name, *args, grid=1, block=8, shared=0):
        with pytest.raises(error, match=match):
            cuda.launch(name, grid, block, *args, shared=shared)

    refused(ArgumentError, r"expected 4 arguments \(x, y, factor, n\), got 3", "scale", x, y, 1.0)
    refused(
        DtypeError,
        "scale: x: expected an array of float32, got float64",
        "scale",
        x.astype(np.float64),
        y,
        1.0,
        8,
    )
    refused(
        DtypeError, "scale: y: expected an array of float32, got list", "scale", x, [1.0], 1.0, 8
    )
    refused(DeviceMismatch, "scale: y is on cpu", "scale", x, np.zeros(8, np.float32), 1.0, 8)
    refused(DeviceMismatch, "an argument is on cpu", "scale", np.zeros(8, np.float32), y, 1.0, 8)
    refused(
        ShapeError,
        "scale: x .* is not contiguous",
        "scale",
        xp.zeros((8, 2), np.float32)[:, 0],
        y,
        1.0,
        8,
    )
    refused(DtypeError, "scale: n: expected int32, got 1.5", "scale", x, y, 1.0, 1.5)
    refused(DtypeError, "scale: factor: expected float32, got str", "scale", x, y, "1", 8)
    refused(
        ArgumentError,
        "scale: n: expected int32, got 4294967296, which is out of range",
        "scale",
        x,
        y,
        1.0,
        2**32,
    )
    refused(ArgumentError, "at least one array", "scale", 1, 2)
    refused(
        DtypeError,
        "geometry: window: expected a struct Geometry, got int",
        "geometry",
        out,
        3,
        True,
    )
    refused(ArgumentError, r"got a Other \(n\)", "geometry", out, Other(1), True)
    too_large = dataclasses.replace(window, n=2**31)
    refused(ArgumentError, "exceeds 32 bits", "geometry", out, too_large, True)


def test_launches_past_the_limits_are_refused(xp):
    x = xp.zeros(8, np.float32)
    refused = [
        ({"grid": (1, 65536), "block": 1}, "grid"),
        ({"grid": 2**31, "block": 1}, "grid"),
        ({"grid": -1, "block": 1}, "grid"),
        ({"grid": 1, "block": 2048}, "block"),
        ({"grid": 1, "block": (1, 1, 65)}, "block"),
        ({"grid": 1, "block": (32, 33)}, "1056 threads"),
        ({"grid": 1, "block": 0}, "block"),
        ({"grid": 1, "block": 1, "shared": 300 * 1024}, "307200 bytes of dynamic shared memory"),
    ]
    for options, match in refused:
        with pytest.raises(ArgumentError, match=match):
            cuda.launch(
                "scale",
                options["grid"],
                options["block"],
                x,
                x,
                1.0,
                8,
                shared=options.get("shared", 0),
            )
    with pytest.raises(ArgumentError, match="has 128 threads, the kernel's limit is 64"):
        cuda.launch(
            "bounded",
            1,
            128,
            xp.zeros(1, np.uint8),
            xp.zeros(1, np.int64),
            0,
            defines={"THREADS": 64},
        )


def test_arrays_past_int_offsets_need_a_kernel_with_wide_offsets(xp, monkeypatch):
    monkeypatch.setattr(launcher, "_MOST_ELEMENTS", 7)
    x = xp.zeros(8, np.uint8)
    with pytest.raises(ShapeError, match="the kernel's 32-bit offsets reach 7"):
        cuda.launch("narrow", 1, 1, x)
    cuda.launch("wide", 1, 1, x)
    assert x.get()[0] == 1
