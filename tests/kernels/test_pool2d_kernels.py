"""The pooling kernels beside the slow loops."""

import numpy as np
import pytest
import slow_loops
from kernel_cases import error_beside_cpu, geometry, on_gpu, random_window, relative

from gpucnn import ops
from gpucnn.ops.window import Padding, Size, Window

pytestmark = pytest.mark.usefixtures("compiler")

SEEDS = [pytest.param(seed, marks=[] if seed < 40 else pytest.mark.slow) for seed in range(300)]
SCHEDULES = ["lowest", pytest.param("highest", marks=pytest.mark.slow)]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("seed", SEEDS)
def test_pools_agree_with_the_slow_loops_on_random_geometry(
    seed: int, schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUCNN_CUDASIM", f"fast,schedule={schedule}")
    rng = np.random.default_rng(seed)
    v, _ = random_window(rng, pool=True)
    x = rng.integers(-5, 6, (v.n, v.h, v.w, v.c)).astype(np.float32)  # small integers: many ties
    dy = rng.standard_normal((v.n, v.oh, v.ow, v.c), np.float32)
    window = (v.kh, v.kw)
    counting = bool(seed % 2)
    expected = slow_loops.max_pool2d(x, dy, v), slow_loops.avg_pool2d(x, dy, v, counting)
    for pool, (y_expected, dx_expected) in zip((0, 1), expected, strict=True):
        leaf = on_gpu(x, gradient=True)
        if pool == 0:
            y = ops.max_pool2d(leaf, window, **geometry(v))
        else:
            y = ops.avg_pool2d(leaf, window, **geometry(v), count_padding=counting)
        y.backward(on_gpu(dy).data)
        assert relative(y.data, y_expected) <= (0 if pool == 0 else 1e-6), v
        assert relative(leaf.grad, dx_expected) <= 1e-6, v


@pytest.mark.parametrize(
    ("window", "stride", "padding"), [(3, 2, 0), (2, 3, 1), ((4, 3), (3, 2), ((1, 0), (2, 1)))]
)
def test_windows_that_hang_over_the_edge_agree_with_the_cpu(
    window: Size, stride: Size, padding: Padding, rng: np.random.Generator
) -> None:
    x = rng.standard_normal((2, 13, 12, 5))
    given = (window, stride, padding, True)
    for pool in (
        lambda _, t: ops.max_pool2d(t, *given),
        lambda _, t: ops.avg_pool2d(t, *given),
        lambda _, t: ops.avg_pool2d(t, *given, count_padding=False),
    ):
        assert error_beside_cpu(pool, x) <= 1e-6


def test_global_average_agrees_with_the_cpu(rng: np.random.Generator) -> None:
    x = rng.standard_normal((3, 7, 5, 19))
    assert error_beside_cpu(lambda _, t: ops.global_avg_pool2d(t), x) <= 1e-6


def test_a_nan_wins_and_takes_the_gradient() -> None:
    x = np.array([[5.0, np.nan], [7.0, np.nan]], np.float32).reshape(1, 2, 2, 1)
    leaf = on_gpu(x, gradient=True)
    y = ops.max_pool2d(leaf, 2)
    y.backward(on_gpu(np.ones((1, 1, 1, 1), np.float32)).data)
    assert np.isnan(y.numpy()).all()
    np.testing.assert_array_equal(leaf.grad.get().ravel(), [0, 1, 0, 0])


def test_more_images_than_a_grid_has_rows(rng: np.random.Generator) -> None:
    x = rng.standard_normal((65535 + 3, 2, 1, 1)).astype(np.float32)
    v = Window.of("test", x.shape, (2, 1), (2, 1), 0)
    y = ops.max_pool2d(on_gpu(x), (v.kh, v.kw))
    np.testing.assert_array_equal(y.numpy(), x.max(axis=1, keepdims=True))
