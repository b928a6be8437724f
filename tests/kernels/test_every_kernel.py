"""Every kernel compared with the CPU, in each schedule and each checked mode of the simulator."""

from collections import Counter

import numpy as np
import pytest
from devices import CUDA
from every_kernel import run_all

from gpucnn import cuda
from gpucnn.commands.check import kernels
from gpucnn.commands.check.kernels import bound


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    "mode",
    [
        "fast",
        "fast,schedule=highest",
        "fast,schedule=random:3",
        # no access to shared memory takes more than one pass
        pytest.param("banks", marks=pytest.mark.slow),
        pytest.param("address", marks=pytest.mark.slow),
        pytest.param("race", marks=pytest.mark.slow),
    ],
)
def test_every_kernel_runs_and_agrees_with_the_cpu(
    mode: str, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    monkeypatch.setenv("GPUCNN_CUDASIM", mode)
    check(*run_all(rng, "cudasim"))


@pytest.mark.parametrize("all_tiles", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("device", [CUDA])
def test_every_kernel_runs_on_the_gpu_and_agrees_with_the_cpu(
    device: str, all_tiles: bool, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    monkeypatch.setattr(kernels, "_all_tiles", lambda gpu: all_tiles)
    check(*run_all(rng, device))


def check(errors: dict[str, float], launches: Counter[str]) -> None:
    assert {name: e for name, e in errors.items() if not e <= bound(name)} == {}
    assert set(launches) == set(cuda.kernels())
