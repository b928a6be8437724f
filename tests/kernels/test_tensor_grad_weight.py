"""The filters' and the bias' gradient on tensor cores: results, checked modes, splits and plan."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import slow_loops
from tensor_cases import (
    DEFAULT,
    ELEMENTS,
    MODES,
    Case,
    excess,
    host,
    on,
    plan,
    random_case,
    seeds,
    tiles,
)

from gpucnn import cuda
from gpucnn.cuda import nvrtc, sass
from gpucnn.cuda.card import Card
from gpucnn.cuda.tensor_plan import BYTES, Plan
from gpucnn.device import Device
from gpucnn.errors import DeviceError, KernelError
from gpucnn.ops.conv2d import grad_weight
from gpucnn.ops.geometry import Geometry
from gpucnn.precision import bfloat16

pytestmark = pytest.mark.usefixtures("compiler", "current")

QUICK = 25  # random geometries of each element in the default run
SPLITS = (1, 2, 3, 4, 5, 7, 16, 17)


def run(
    case: Case, x: np.ndarray, dy: np.ndarray, device: str, bias: bool = True
) -> tuple[np.ndarray, np.ndarray | None]:
    """dweight and dbias by the kernel."""
    given = on(device, x, case.element), on(device, dy, case.element)
    dweight, dbias = grad_weight.on_tensor_cores(*given, case.g, bias, case.element, case.plan)
    return host(dweight), None if dbias is None else host(dbias)


def errors(case: Case, rng: np.random.Generator, device: str) -> list[float]:
    """The `excess` of dweight and of dbias: at most 1 for right ones."""
    x, weight, bias, dy = case.operands(rng)
    found = run(case, x, dy, device)
    exact = slow_loops.conv2d(x, weight, bias, dy, case.g)[2:]
    sizes = slow_loops.conv2d(abs(x), abs(weight), abs(bias), abs(dy), case.g)[2:]
    steps = case.g.n * case.g.oh * case.g.ow // 8 + case.plan.splits + 2
    return [
        excess(*arrays, steps, "tf32")  # results are float32
        for arrays in zip(found, exact, sizes, strict=True)
    ]


@pytest.mark.parametrize(("seed", "element"), [s for e in ELEMENTS for s in seeds(e, QUICK)])
def test_a_gradient_of_the_filters_is_right_to_two_units_on_random_geometry(
    seed: int, element: str, gpu: str
) -> None:
    rng = np.random.default_rng(seed)
    case = random_case(rng, element, plan(DEFAULT[element]) if seed < QUICK else None)
    case = replace(case, plan=replace(case.plan, splits=int(rng.choice(SPLITS))))
    found = errors(case, rng, gpu)
    assert max(found) <= 1, (found, case)


def test_all_bits_of_a_tf32_gradient_count_in_the_bias(gpu: str, rng: np.random.Generator) -> None:
    g = Geometry.of("test", (2, 5, 5, 8), 3)
    case = Case(g, 8, "tf32", plan("128x64"))
    x = np.zeros((2, 5, 5, 8), np.float32)
    dy = rng.standard_normal((2, 3, 3, 8), np.float32)
    _, dbias = run(case, x, dy, gpu)
    np.testing.assert_allclose(dbias, dy.astype(np.float64).sum((0, 1, 2)), rtol=1e-6, atol=1e-6)


def test_a_convolution_without_bias_has_the_same_filters_gradient(
    gpu: str, rng: np.random.Generator
) -> None:
    case = Case(CHECKED, 3 * 72, "half", replace(plan("64x64"), splits=3))
    x, _, _, dy = case.operands(rng)
    without, nothing = run(case, x, dy, gpu, bias=False)
    with_bias, _ = run(case, x, dy, gpu)
    assert nothing is None
    np.testing.assert_array_equal(without, with_bias)


# --- checked modes ---

# Groups, ragged tiles, several carries in a k-tile, and a last split that is not full.
CHECKED = Geometry.of("test", (3, 9, 7, 3 * 40), (3, 2), (2, 1), ((1, 2), (0, 1)), (1, 2), groups=3)


@pytest.mark.parametrize(
    "mode", [MODES[1], *(pytest.param(m, marks=pytest.mark.slow) for m in MODES[::2])]
)
@pytest.mark.parametrize(("element", "chosen"), tiles())
def test_a_gradient_of_the_filters_has_no_bad_access_race_or_conflict(
    mode: str, element: str, chosen: Plan, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    monkeypatch.setenv("GPUCNN_CUDASIM", mode)
    case = Case(CHECKED, 3 * 72, element, replace(chosen, splits=5))
    found = errors(case, rng, "cudasim")
    assert max(found) <= 1, found


# --- splits ---

IMAGES = Geometry.of("test", (21, 8, 4, 16), 3, padding=1)  # an image is a k-tile of 32 pixels


@pytest.mark.parametrize("splits", [2, 5, 21])
def test_the_order_in_which_splits_finish_does_not_change_a_bit(
    splits: int, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    case = Case(IMAGES, 24, "half", replace(plan("64x64"), splits=splits))
    x, _, _, dy = case.operands(rng)
    orders = ["lowest", "highest", *(f"random:{seed}" for seed in range(6))]
    found = []
    for order in orders:
        monkeypatch.setenv("GPUCNN_CUDASIM", f"fast,threads=1,schedule={order}")
        found.append(run(case, x, dy, "cudasim"))
    for dweight, dbias in found[1:]:
        np.testing.assert_array_equal(dweight, found[0][0])
        np.testing.assert_array_equal(dbias, found[0][1])


def tree(parts: list[np.ndarray]) -> np.ndarray:
    """The sum of float32 parts, four at a time and then four of these sums."""
    while len(parts) > 1:
        fours = [parts[i : i + 4] for i in range(0, len(parts), 4)]
        parts = [sum(four, np.zeros_like(four[0])) for four in fours]
    return parts[0]


@pytest.mark.parametrize("splits", [2, 4, 5, 21])
def test_splits_are_added_in_order_four_at_a_time(
    splits: int, gpu: str, rng: np.random.Generator
) -> None:
    case = Case(replace(IMAGES, n=splits), 24, "half", replace(plan("64x64"), splits=splits))
    x, _, _, dy = case.operands(rng)
    one = replace(case, g=replace(IMAGES, n=1), plan=plan("64x64"))
    parts = [run(one, x[i : i + 1], dy[i : i + 1], gpu) for i in range(splits)]
    dweight, dbias = run(case, x, dy, gpu)
    np.testing.assert_array_equal(dweight, tree([part[0] for part in parts]))
    assert dbias is not None
    np.testing.assert_array_equal(dbias, tree([part[1] for part in parts if part[1] is not None]))


def test_the_counters_are_zero_after_a_launch(gpu: str, rng: np.random.Generator) -> None:
    case = Case(IMAGES, 24, "half", replace(plan("64x64"), splits=21))
    x, _, _, dy = case.operands(rng)
    first, second = (run(case, x, dy, gpu) for _ in range(2))
    assert not cuda.counters(Device.parse(gpu), 1).any()
    np.testing.assert_array_equal(first[0], second[0])


def test_a_launch_that_fails_leaves_no_counts_behind(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    case = Case(IMAGES, 24, "half", replace(plan("64x64"), splits=21))
    x, _, _, dy = case.operands(rng)
    expected, _ = run(case, x, dy, "cudasim")
    given = on("cudasim", x, "half"), on("cudasim", dy, "half")
    monkeypatch.setenv("GPUCNN_CUDASIM", "address,schedule=highest")
    short = given[0][:3]  # the last blocks run first
    with pytest.raises(KernelError, match="reads"):
        grad_weight.on_tensor_cores(short, given[1], IMAGES, True, "half", case.plan)
    monkeypatch.setenv("GPUCNN_CUDASIM", "fast")
    found, _ = run(case, x, dy, "cudasim")
    np.testing.assert_array_equal(found, expected)


# --- which kernel runs ---

LAYER = Geometry.of("test", (2, 6, 5, 16), 3, padding=1)


def launched(g: Geometry, oc: int, x_type: Any, dy_type: Any, gpu: str, shift: int = 0) -> str:
    device = Device.parse(gpu)
    size = g.n * g.h * g.w * g.c
    x = device.xp.zeros(size + shift, np.float32).astype(x_type)[shift:]
    dy = device.xp.zeros((g.n, g.oh, g.ow, oc), np.float32).astype(dy_type)
    with cuda.count_launches() as launches:
        dweight, dbias = grad_weight.grad_weight(
            x.reshape(g.n, g.h, g.w, g.c), dy, g, bias=True, plain=False, min_split=256
        )
    assert dweight.dtype == np.float32
    assert dbias is not None
    assert dbias.dtype == np.float32
    return " ".join(launches).removeprefix("conv2d_grad_weight_")


@pytest.mark.parametrize(
    ("change", "oc", "types", "kernel"),
    [
        ({}, 24, ("float16", "float16"), "tensor"),
        ({}, 24, ("float32", "float16"), "128x64"),
        ({}, 20, ("float16", "float16"), "128x64"),
        ({"c": 12}, 24, ("float16", "float16"), "128x64"),
        ({"c": 3}, 24, ("float32", "float16"), "32x64_vector"),
        ({"c": 7}, 9, ("float32", "float32"), "32x64_scalar"),
        ({}, 24, ("float32", "float32"), "128x64"),  # the tests' precision is "highest"
    ],
)
def test_one_launch_computes_both_gradients(
    change: dict[str, int], oc: int, types: tuple[str, str], kernel: str, gpu: str
) -> None:
    assert launched(replace(LAYER, **change), oc, *types, gpu) == kernel


@pytest.mark.slow  # it compiles files of its own
def test_bfloat16_and_unaligned_images_choose_too(gpu: str) -> None:
    assert launched(LAYER, 24, bfloat16(), bfloat16(), gpu) == "tensor"
    assert launched(LAYER, 24, "float16", "float16", gpu, shift=1) == "32x64_vector"


@pytest.mark.parametrize(
    ("change", "reaches"),
    [
        ({}, True),
        ({"w": 2**15}, False),
        ({"oh": 2**14, "stride_h": 2}, False),
        ({"n": 2**20, "w": 64}, True),
        ({"n": 2**21, "w": 64}, False),  # more chunks than 31-bit offsets reach, with padding
    ],
)
def test_places_beyond_the_reach_of_packed_offsets_take_the_cuda_cores(
    change: dict[str, int], reaches: bool
) -> None:
    assert grad_weight.Walk.reaches(replace(LAYER, **change), 24, 8) == reaches


def test_a_plan_splits_a_small_result_over_the_multiprocessors() -> None:
    g = Geometry.of("test", (128, 16, 16, 64), 3, padding=1)  # conv2 of alexnet_cifar10
    chosen = grad_weight.tensor_plan(g, 192, "half", Card(90, 132))
    tiles = -(-192 // chosen.tile.m) * -(-576 // chosen.tile.n)
    assert 0.95 * 132 <= tiles * chosen.splits <= 132 * 4
    assert "\n" not in chosen.explain()


def test_elements_have_the_sizes_that_the_walk_assumes() -> None:
    assert BYTES == {"half": 2, "bfloat16": 2, "tf32": 4}


# --- machine code ---


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize(("element", "share"), [("half", 0.36), ("bfloat16", 0.36), ("tf32", 0.30)])
def test_the_main_loop_of_a_filters_gradient_keeps_the_tensor_cores_busy(
    element: str, share: float, arch: int
) -> None:
    """CUTLASS's reach 0.19 and 0.17, and 86 and 82 % of peak with one warp: kernel_mix.py."""
    file = "conv2d_grad_weight_tensor.cu"
    options = cuda.options(tuple(plan("128x128").defines(element).items()))
    try:
        binary = nvrtc.compile_source(
            cuda.assemble(file), file, arch, (*options, *nvrtc.CUPY_OPTIONS)
        )
        loop = sass.main_loops(binary.cubin)["conv2d_grad_weight_tensor"]
    except DeviceError as error:
        pytest.skip(str(error))
    assert loop.multiply_adds == 64
    assert loop.share >= share
    assert loop.efficiency(arch) >= (0.95 if arch == 80 else 0.86)
