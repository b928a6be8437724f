"""Every kernel beside the CPU, under each schedule and under the simulator's checks."""

import numpy as np
import pytest
from every_kernel import run_all

from gpucnn import cuda

pytestmark = pytest.mark.usefixtures("compiler", "tiles_for_all", "conv_algorithm")

# What each op is allowed: batch normalisation divides differences of large sums.
LOOSER = {"batch_norm": 2e-5, "conv2d": 1e-5, "Adam": 1e-5, "SGD": 1e-5}


@pytest.mark.parametrize(
    "mode",
    [
        "fast",
        "fast,schedule=highest",
        "fast,schedule=random:3",
        pytest.param("address", marks=pytest.mark.slow),
        pytest.param("race", marks=pytest.mark.slow),
    ],
)
def test_every_kernel_runs_and_agrees_with_the_cpu(
    mode: str, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    monkeypatch.setenv("GPUCNN_CUDASIM", mode)
    errors, launches = run_all(rng)
    bounds = {name: LOOSER.get(name.split()[0], 2e-6) for name in errors}
    assert {name: e for name, e in errors.items() if e > bounds[name]} == {}
    assert set(launches) == set(cuda.kernels())
