"""The pooling kernels compared with slow loops."""

import numpy as np
import pytest
import slow_loops
from devices import relative
from kernel_cases import on_gpu, options, random_geometry

from gpucnn import ops

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
    g, _ = random_geometry(rng, pool=True)
    x = rng.integers(-5, 6, (g.n, g.h, g.w, g.c)).astype(np.float32)  # small integers: many ties
    dy = rng.standard_normal((g.n, g.oh, g.ow, g.c), np.float32)
    kernel_size = (g.kh, g.kw)
    counting = bool(seed % 2)
    expected = slow_loops.max_pool2d(x, dy, g), slow_loops.avg_pool2d(x, dy, g, counting)
    for pool, (y_expected, dx_expected) in zip((0, 1), expected, strict=True):
        leaf = on_gpu(x, gradient=True)
        if pool == 0:
            y = ops.max_pool2d(leaf, kernel_size, **options(g))
        else:
            y = ops.avg_pool2d(leaf, kernel_size, **options(g), count_include_pad=counting)
        y.backward(on_gpu(dy).data)
        assert relative(y.data, y_expected) <= (0 if pool == 0 else 1e-6), g
        assert relative(leaf.grad, dx_expected) <= 1e-6, g
