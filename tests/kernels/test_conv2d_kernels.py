"""The convolution kernels compared with slow loops, and the tiled ones with the plain ones."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import slow_loops
from devices import relative
from kernel_cases import on_gpu, options, random_geometry

import gpucnn
from gpucnn import cuda, ops
from gpucnn.ops.conv2d import cuda as conv2d_cuda
from gpucnn.ops.geometry import Geometry

pytestmark = pytest.mark.usefixtures("compiler")

SEEDS = [pytest.param(seed, marks=[] if seed < 40 else pytest.mark.slow) for seed in range(300)]
SCHEDULES = ["lowest", pytest.param("highest", marks=pytest.mark.slow)]
Arrays = list[np.ndarray]


def operands(g: Geometry, oc: int, rng: np.random.Generator) -> Arrays:
    """x, weight, bias and dy."""
    shapes = [
        (g.n, g.h, g.w, g.c),
        (oc, g.kh, g.kw, g.c // g.groups),
        (oc,),
        (g.n, g.oh, g.ow, oc),
    ]
    return [rng.standard_normal(shape, np.float32) for shape in shapes]


def run(g: Geometry, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, dy: np.ndarray) -> Arrays:
    """y, dx, dweight and dbias by the kernels."""
    leaves = [on_gpu(array, gradient=True) for array in (x, weight, bias)]
    y = ops.conv2d(*leaves, **options(g), dilation=(g.dilation_h, g.dilation_w), groups=g.groups)
    y.backward(on_gpu(dy).data)
    return [y.numpy(), *(leaf.grad.get() for leaf in leaves)]


def errors(g: Geometry, arrays: Arrays) -> list[float]:
    """The relative errors of y, dx, dweight and dbias against the slow loops."""
    expected = slow_loops.conv2d(*arrays, g)
    return [relative(a, e) for a, e in zip(run(g, *arrays), expected, strict=True)]


@pytest.mark.usefixtures("tiles_for_all")
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("seed", SEEDS)
def test_tiled_kernels_agree_with_the_slow_loops_on_random_geometry(
    seed: int, schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUCNN_CUDASIM", f"fast,schedule={schedule}")
    rng = np.random.default_rng(seed)
    g, oc = random_geometry(rng)
    assert max(errors(g, operands(g, oc, rng))) <= 1e-5, (g, oc)


@pytest.mark.parametrize("seed", range(1000, 1006))
def test_plain_kernels_agree_with_the_slow_loops_on_random_geometry(
    seed: int, conv_algorithm: Callable[[str], None]
) -> None:
    conv_algorithm("plain")
    rng = np.random.default_rng(seed)
    g, oc = random_geometry(rng)
    with cuda.count_launches() as launches:
        assert max(errors(g, operands(g, oc, rng))) <= 1e-5, (g, oc)
    assert {name for name in launches if name.startswith("conv2d")} == {
        "conv2d_forward_plain",
        "conv2d_grad_input_plain",
        "conv2d_grad_weight_plain",
    }


# Channels and filters that select each kind of load, and the kernels that then run.
LOADS = {
    "vector": (16, 136, "128x128_vector 128x128_vector 128x64"),
    "scalar": (67, 33, "128x64_scalar 128x64_scalar 32x64_scalar"),
    "few": (3, 20, "128x64_few 128x64_scalar 32x64_vector"),
}


@pytest.mark.usefixtures("large_tiles")
@pytest.mark.parametrize("loads", LOADS)
def test_tiled_kernels_agree_with_the_plain_ones(
    loads: str, conv_algorithm: Callable[[str], None], rng: np.random.Generator
) -> None:
    c, oc, names = LOADS[loads]
    g = Geometry.of(
        "test", (3, 14, 13, c), 3, stride=(2, 1), padding=((1, 0), (2, 1)), dilation=(1, 2)
    )
    arrays = operands(g, oc, rng)
    with cuda.count_launches() as launches:
        tiled = run(g, *arrays)
    forward, grad_input, grad_weight = names.split()
    assert {f"conv2d_forward_{forward}", f"conv2d_grad_input_{grad_input}"} < set(launches)
    assert f"conv2d_grad_weight_{grad_weight}" in launches
    conv_algorithm("plain")
    plain = run(g, *arrays)
    assert max(map(relative, tiled, plain)) <= 2e-6


def test_images_that_are_not_16_byte_aligned_take_scalar_loads(
    rng: np.random.Generator,
) -> None:
    g = Geometry.of("test", (2, 5, 5, 16), 3, padding=1)
    x, weight, bias, dy = operands(g, 8, rng)
    shifted = on_gpu(np.concatenate([[0], x.ravel()]).astype(np.float32)).data[1:].reshape(x.shape)
    with cuda.count_launches() as launches:
        y = ops.conv2d(gpucnn.Tensor(shifted), on_gpu(weight), on_gpu(bias), padding=1)
    assert list(launches) == ["conv2d_forward_128x64_few"]
    assert relative(y.data, slow_loops.conv2d(x, weight, bias, dy, g)[0]) <= 1e-6


@pytest.mark.parametrize("kernel", ["plain", "128x128_vector", "128x64_vector", "128x64_few"])
def test_the_epilogue_adds_the_bias_clips_and_lets_nan_through(
    kernel: str, rng: np.random.Generator
) -> None:
    g = Geometry.of("test", (2, 5, 5, 8), 3, padding=1)
    x, weight, bias, dy = operands(g, 12, rng)
    expected = np.maximum(slow_loops.conv2d(x, weight, bias, dy, g)[0], 0)
    bias[3] = np.nan
    expected[..., 3] = np.nan
    y = on_gpu(np.empty(dy.shape, np.float32)).data
    given = [on_gpu(a).data for a in (x, weight, bias)]
    if kernel == "plain":
        cuda.launch("conv2d_forward_plain", 5, 256, *given, y, g, 12, True)
    else:
        threads = 256 if "128x128" in kernel else 128
        cuda.launch(f"conv2d_forward_{kernel}", (1, 1, 1), threads, *given, y, g, 8, 12, True)
    np.testing.assert_allclose(y.get(), expected, rtol=1e-5, atol=1e-5)


def test_a_geometry_larger_than_the_tables_takes_the_plain_kernels(
    rng: np.random.Generator,
) -> None:
    g = Geometry.of("test", (1, 30, 12, 8), (28, 4))
    with cuda.count_launches() as launches:
        assert max(errors(g, operands(g, 8, rng))) <= 1e-5
    assert "conv2d_forward_plain" in launches
    assert "conv2d_grad_weight_plain" in launches


@pytest.mark.parametrize(
    "change",
    [
        {"n": 2**21, "oh": 32, "ow": 32},
        {"h": 2**14, "w": 2**14, "c": 8},
        {"kh": 16, "kw": 16},
        {"stride_h": 300, "stride_w": 300},
    ],
)
def test_offsets_beyond_31_bits_take_the_plain_kernels(
    change: dict[str, int],
) -> None:
    small = Geometry.of("test", (1, 8, 8, 8), 3, padding=1)
    assert conv2d_cuda._tiled(small, 8)
    assert not conv2d_cuda._tiled(replace(small, **change), 8)


def test_arrays_beyond_the_reach_of_vector_offsets_take_scalar_loads() -> None:
    def array(size: int) -> SimpleNamespace:
        return SimpleNamespace(size=size, data=SimpleNamespace(ptr=1 << 20))

    assert conv2d_cuda._loads(array(2**32), array(64), 4) == "vector"
    assert conv2d_cuda._loads(array(2**32 + 4), array(64), 4) == "scalar"


def test_a_weight_gradient_has_the_same_bits_every_time(rng: np.random.Generator) -> None:
    g = Geometry.of("test", (8, 16, 16, 8), 3, padding=1)
    arrays = operands(g, 16, rng)
    first, second = run(g, *arrays), run(g, *arrays)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
