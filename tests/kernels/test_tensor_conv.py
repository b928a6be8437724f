"""Convolutions on tensor cores: results, checked modes, masks, and the choice of kernel."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
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
    dtype_of,
    errors,
    forward,
    grad_input,
    plan,
    random_case,
    seeds,
    tiles,
)

import gpucnn
from gpucnn import cuda, ops
from gpucnn.autograd import Function
from gpucnn.commands.check.beside_cpu import relative
from gpucnn.cuda.card import Card
from gpucnn.ops.conv2d import cpu as conv2d_cpu
from gpucnn.ops.conv2d import cuda as conv2d_cuda
from gpucnn.ops.conv2d import tensor
from gpucnn.ops.geometry import Geometry

pytestmark = pytest.mark.usefixtures("compiler", "current")

QUICK = 25  # random geometries of each element in the default run
A100, H100, T4 = Card(80, 108), Card(90, 132), Card(75, 40)


@pytest.mark.parametrize(("seed", "element"), [s for e in ELEMENTS for s in seeds(e, QUICK)])
def test_results_are_right_to_two_units_on_random_geometry(
    seed: int, element: str, gpu: str
) -> None:
    rng = np.random.default_rng(seed)
    case = random_case(rng, element, plan(DEFAULT[element]) if seed < QUICK else None)
    found = errors(case, rng, gpu)
    assert max(found.values()) <= 1, (found, case)


# --- checked modes ---

# Groups, ragged tiles, phases of different sizes, and taps of two k-tiles, the second not full.
CHECKED = Geometry.of("test", (2, 9, 7, 3 * 40), (3, 2), (2, 1), ((1, 2), (0, 1)), (1, 2), groups=3)


@pytest.mark.parametrize(
    "mode", [MODES[0], *(pytest.param(m, marks=pytest.mark.slow) for m in MODES[1:])]
)
@pytest.mark.parametrize(("element", "chosen"), tiles())
def test_no_access_is_out_of_bounds_or_races_or_conflicts(
    mode: str, element: str, chosen: Any, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    monkeypatch.setenv("GPUCNN_CUDASIM", mode)
    case = Case(CHECKED, 3 * 72, element, chosen)
    found = errors(case, rng, "cudasim")
    assert max(found.values()) <= 1, found


# --- epilogues ---


def small(element: str = "half", oc: int = 24) -> Case:
    return Case(
        Geometry.of("test", (2, 6, 5, 16), 3, padding=1), oc, element, plan(DEFAULT[element])
    )


def test_relu_clips_and_lets_nan_through(gpu: str, rng: np.random.Generator) -> None:
    case = small()
    x, weight, bias, _ = case.operands(rng)
    bias[3] = np.nan
    y, clipped = (forward(case, x, weight, bias, gpu, relu) for relu in (False, True))
    np.testing.assert_array_equal(clipped, np.where(y < 0, 0, y))
    assert np.isnan(clipped[..., 3]).all()


def test_any_number_of_filters_is_stored(gpu: str, rng: np.random.Generator) -> None:
    x, weight, bias, _ = small().operands(rng)
    whole = forward(small(), x, weight, bias, gpu)
    part = forward(small(oc=13), x, weight[:13], bias[:13], gpu)
    np.testing.assert_array_equal(part, whole[..., :13])


def test_the_mask_scales_where_x_is_not_zero(gpu: str, rng: np.random.Generator) -> None:
    case = small()
    x, weight, _, dy = case.operands(rng)
    x[rng.random(x.shape) < 0.5] = 0
    x[0, 1, 2, 3], x[0, 1, 2, 4] = np.nan, -0.0
    dy[1, 2, 2, 0] = np.inf  # masked, it leaves no NaN
    plain = grad_input(case, dy, weight, gpu, result="tf32")
    masked = grad_input(case, dy, weight, gpu, mask=x, scale=2.0, result="tf32")
    np.testing.assert_array_equal(masked, np.where(x == 0, 0, 2 * plain))


def test_a_gradient_of_float32_images_is_not_rounded(gpu: str, rng: np.random.Generator) -> None:
    case = small()
    _, weight, _, dy = case.operands(rng)
    exact = slow_loops.conv2d(np.zeros((2, 6, 5, 16)), weight, np.zeros(24), dy, case.g)[1]
    assert relative(grad_input(case, dy, weight, gpu, result="tf32"), exact) <= 1e-6


# --- conv2d: which kernels run ---


@contextmanager
def precision(name: str) -> Iterator[None]:
    """float32 in TF32, or autocast."""
    before = gpucnn.precision._float32_precision
    gpucnn.set_float32_precision("high" if name == "tf32" else "highest")
    try:
        with nullcontext() if name in ("tf32", "float32") else gpucnn.autocast(name):
            yield
    finally:
        gpucnn.precision._float32_precision = before


def train(
    device: str, name: str, arrays: list[np.ndarray], **options: Any
) -> tuple[list[np.ndarray], list[str]]:
    """y and the gradients of x, weight and bias, as float32; the convolution kernels that ran."""
    leaves = [gpucnn.tensor(a, device, requires_grad=True) for a in arrays]
    with cuda.count_launches() as launches:
        with precision(name):
            y = ops.conv2d(*leaves, **options)
        dy = np.random.default_rng(3).standard_normal(y.shape, np.float32)
        y.backward(gpucnn.tensor(dy, device).astype(y.dtype).data)
        gradients = [gpucnn.Tensor(leaf.grad) for leaf in leaves]
    found = [t.astype(np.float32).numpy() for t in (y, *gradients)]
    return found, [kernel for kernel in launches if kernel.startswith("conv2d")]


# Channels, filters and options; the kernels of y and dx that run in half precision.
LAYERS = {
    "tensor cores": (16, 24, {"padding": 1, "stride": 2}, "tensor tensor"),
    "groups": (32, 16, {"groups": 2, "dilation": 2}, "tensor tensor"),
    "first layer": (3, 16, {"padding": 1}, "128x64_few plain"),
    "odd filters": (16, 13, {}, "tensor 128x64_scalar"),
    "odd channels": (12, 24, {}, "128x64_vector 128x64_vector"),
    "depthwise": (16, 16, {"groups": 16}, "plain plain"),
}
UNIT = {"float16": 2.0**-10, "bfloat16": 2.0**-7}


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        pytest.param(layer, name, marks=[] if layer in quick else pytest.mark.slow)
        for name, quick in (
            ("float16", ["tensor cores", "groups", "first layer"]),
            ("bfloat16", []),
        )
        for layer in LAYERS
    ],
)
def test_autocast_computes_what_the_cpu_computes(
    layer: str, name: str, gpu: str, rng: np.random.Generator
) -> None:
    c, oc, options, kernels = LAYERS[layer]
    shapes = (2, 7, 6, c), (oc, 3, 3, c // options.get("groups", 1)), (oc,)
    arrays = [rng.standard_normal(shape, np.float32) for shape in shapes]
    ours, launches = train(gpu, name, arrays, **options)
    theirs, _ = train("cpu", name, arrays, **options)
    forward_kernel, grad_input_kernel = kernels.split()
    assert f"conv2d_forward_{forward_kernel}" in launches
    assert f"conv2d_grad_input_{grad_input_kernel}" in launches
    bounds = [2 * UNIT[name], 1e-5, 1e-5, 1e-5]  # the gradients of float32 leaves are float32
    assert [relative(a, b) <= bound for a, b, bound in zip(ours, theirs, bounds, strict=True)] == [
        True
    ] * 4


def test_half_precision_tensors_need_no_autocast(gpu: str, rng: np.random.Generator) -> None:
    arrays = [
        rng.standard_normal(s).astype(np.float16) for s in ((2, 7, 6, 16), (24, 3, 3, 16), (24,))
    ]
    ours, launches = train(gpu, "float32", arrays)
    theirs, _ = train("cpu", "float32", arrays)
    assert {"conv2d_forward_tensor", "conv2d_grad_input_tensor"} < set(launches)
    assert max(map(relative, ours, theirs)) <= 2 * UNIT["float16"]


def test_float32_runs_on_tensor_cores_only_if_asked(gpu: str, rng: np.random.Generator) -> None:
    arrays = [rng.standard_normal(s, np.float32) for s in ((2, 7, 6, 16), (24, 3, 3, 16), (24,))]
    tf32, on_tensor_cores = train(gpu, "tf32", arrays)
    float32, on_cuda_cores = train(gpu, "float32", arrays)
    assert {"conv2d_forward_tensor", "conv2d_grad_input_tensor"} < set(on_tensor_cores)
    assert not any("tensor" in kernel for kernel in on_cuda_cores)
    assert 1e-5 < relative(tf32[0], float32[0]) < 4e-3


@pytest.mark.slow  # it compiles a file of its own
def test_an_image_that_is_not_aligned_takes_the_cuda_cores(
    gpu: str, rng: np.random.Generator
) -> None:
    x = rng.standard_normal((2, 5, 5, 16)).astype(np.float16)
    weight = gpucnn.tensor(rng.standard_normal((24, 3, 3, 16)).astype(np.float16), gpu)
    shifted = gpucnn.tensor(np.concatenate([[0], x.ravel()]).astype(np.float16), gpu).data[1:]
    with cuda.count_launches() as launches:
        y = ops.conv2d(gpucnn.Tensor(shifted.reshape(x.shape)), weight)
    aligned = ops.conv2d(gpucnn.tensor(x, gpu), weight)
    assert "conv2d_forward_tensor" not in launches
    assert relative(y.numpy(), aligned.numpy()) <= 2 * UNIT["float16"]


def test_a_copy_of_the_weight_is_made_once(rng: np.random.Generator) -> None:
    x, weight = (
        gpucnn.tensor(rng.standard_normal(shape, np.float32), "cudasim", requires_grad=True)
        for shape in ((2, 5, 5, 16), (24, 3, 3, 16))
    )
    with gpucnn.autocast("float16"):
        ops.conv2d(x, weight)
        copy = weight.cache()["half", np.dtype(np.float16)]
        ops.conv2d(x, weight)
    assert weight.cache()["half", np.dtype(np.float16)] is copy


def test_both_halves_take_the_same_arguments() -> None:
    assert str(inspect.signature(conv2d_cpu.forward)) == str(inspect.signature(conv2d_cuda.forward))


# --- the plan ---

LAYER = Geometry.of("test", (128, 8, 8, 256), 3, padding=1)  # conv4 of alexnet_cifar10


def test_a_card_gets_the_same_plan_every_time_and_one_line_says_why() -> None:
    for planned in (tensor.forward_plan, tensor.grad_input_plan):
        first = planned(LAYER, 256, "half", H100)
        planned.cache_clear()
        again = planned(replace(LAYER), 256, "half", H100)
        assert first == again
        assert first is not None
        line = first.explain()
        assert "\n" not in line
        assert str(first.tile) in line
        assert "sm90-132" in line


@pytest.mark.parametrize(
    ("change", "oc", "element"),
    [
        ({"c": 12}, 256, "half"),
        ({"c": 6}, 256, "tf32"),
        ({"kh": 16, "kw": 16}, 256, "half"),
        ({"h": 2**12, "w": 2**12}, 256, "tf32"),  # bytes of an image
        ({}, 4, "tf32"),  # a tile would be idle
    ],
)
def test_tensor_cores_refuse_what_their_kernels_cannot_compute(
    change: dict[str, int], oc: int, element: str
) -> None:
    assert tensor.forward_plan(LAYER, 256, element, A100) is not None
    assert tensor.forward_plan(replace(LAYER, **change), oc, element, A100) is None


def test_a_turing_card_gets_two_stages() -> None:
    chosen = tensor.forward_plan(LAYER, 256, "half", T4)
    assert chosen is not None
    assert chosen.stages == 2


# --- masks ---


def two_layers(
    gpu: str, name: str, retain: bool = False, twice: bool = False, pool: bool = False
) -> tuple[list[np.ndarray], list[str]]:
    """The gradients of two convolutions, the first with a ReLU, and the kernels of backward."""
    rng = np.random.default_rng(8)
    shapes = (2, 8, 8, 16), (24, 3, 3, 16), (24,), (16, 3, 3, 24)
    x, w, b, w2 = (
        gpucnn.tensor(rng.standard_normal(shape, np.float32), gpu, requires_grad=True)
        for shape in shapes
    )
    pooling = ops.MaxPool(2) if pool else None
    with precision(name):
        h = ops.conv2d(x, w, b, padding=1, relu=True, pool=pooling)
        if retain:
            h.retain_grad()
        y = ops.conv2d(h, w2, padding=1)
    if twice:
        y = y + ops.conv2d(h, w2[:, 1:2, 1:2]) if name == "float32" else y + h[..., :16]
    with cuda.count_launches() as launches:
        y.backward(y.data)
    arrays = [x.grad, w.grad, b.grad, w2.grad, *([h.grad] if retain else [])]
    return [gpucnn.Tensor(a).astype(np.float32).numpy() for a in arrays], list(launches)


@pytest.fixture
def without_masks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that lets no consumer mask."""
    return lambda: monkeypatch.setattr(Function, "mask", lambda self, i: None)


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "float32",
        "float16",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("tf32", "bfloat16")),
    ],
)
def test_a_gradient_that_the_consumer_masks_has_the_same_bits(
    name: str, pool: bool, gpu: str, without_masks: Any
) -> None:
    masked, launches = two_layers(gpu, name, pool=pool)
    without_masks()
    plain, more = two_layers(gpu, name, pool=pool)
    assert "relu_backward" not in launches
    assert pool or "relu_backward" in more  # a pooling masks in its own kernel
    for ours, theirs in zip(masked, plain, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("how", ["retain", "twice"])
def test_a_gradient_that_others_see_is_not_masked(how: str, gpu: str, without_masks: Any) -> None:
    given, launches = two_layers(gpu, "float32", **{how: True})
    assert "relu_backward" in launches
    without_masks()
    expected, _ = two_layers(gpu, "float32", **{how: True})
    for ours, theirs in zip(given, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_cuda_core_kernel_masks_every_kind_of_layer(gpu: str, rng: np.random.Generator) -> None:
    for c, oc in ((16, 24), (7, 9), (3, 8)):  # vector, scalar and plain
        g = Geometry.of("test", (2, 6, 5, c), 3, padding=1, stride=(2, 1))
        x = np.maximum(rng.standard_normal((2, 6, 5, c), np.float32), 0)
        weight = rng.standard_normal((oc, 3, 3, c), np.float32)
        dy = rng.standard_normal((2, g.oh, g.ow, oc), np.float32)
        images, filters, gradient = (gpucnn.tensor(a, gpu).data for a in (x, weight, dy))
        operands = conv2d_cuda.Operands(filters, np.dtype(np.float32), None, None)
        plain = gpucnn.Tensor(conv2d_cuda.grad_input(gradient, operands, images, g)).numpy()
        masked = gpucnn.Tensor(conv2d_cuda.grad_input(gradient, operands, images, g, 1.5)).numpy()
        np.testing.assert_array_equal(masked, np.where(x == 0, 0, np.float32(1.5) * plain))


def test_dtypes_of_the_elements() -> None:
    assert [dtype_of(e).name for e in ELEMENTS] == ["float16", "bfloat16", "float32"]
