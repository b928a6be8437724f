"""Every kernel beside the CPU, under each schedule and under the simulator's checks."""

from collections import Counter

import numpy as np
import pytest
from devices import CUDA
from every_kernel import run_all

from gpucnn import cuda

pytestmark = pytest.mark.usefixtures("tiles_for_all", "conv_algorithm")

# What each op is allowed: those that add up many numbers, or divide differences of them, more.
LOOSER = {"batch_norm": 1e-5, "conv2d": 1e-5, "Adam": 1e-5, "SGD": 1e-5}


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    "mode",
    [
        "fast",
        "fast,schedule=highest",
        "fast,schedule=random:3",
        "banks",  # no access to shared memory takes more than one turn
        pytest.param("address", marks=pytest.mark.slow),
        pytest.param("race", marks=pytest.mark.slow),
    ],
)
def test_every_kernel_runs_and_agrees_with_the_cpu(
    mode: str, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    monkeypatch.setenv("GPUCNN_CUDASIM", mode)
    check(*run_all(rng, "cudasim"))


@pytest.mark.parametrize("device", [CUDA])
def test_every_kernel_runs_on_the_gpu_and_agrees_with_the_cpu(
    device: str, rng: np.random.Generator
) -> None:
    check(*run_all(rng, device))


def check(errors: dict[str, float], launches: Counter[str]) -> None:
    bounds = {name: LOOSER.get(name.split()[0], 2e-6) for name in errors}
    assert {name: e for name, e in errors.items() if e > bounds[name]} == {}
    assert set(launches) == set(cuda.kernels())
