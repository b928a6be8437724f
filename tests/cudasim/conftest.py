"""The fixture `simulate`, which compiles and launches a few lines of CUDA."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gpucnn import cudasim


@pytest.fixture(scope="session", autouse=True)
def _needs_compiler(compiler: None) -> None:
    """All tests in this folder need a C++ compiler."""


Simulate = Callable[..., Any]


@pytest.fixture
def simulate(monkeypatch: pytest.MonkeyPatch) -> Simulate:
    """simulate(code, name, grid, block, *args, mode="fast", shared=0) launches kernel `name`.

    NumPy arrays in args are copied to the device, and back afterwards.
    """

    def run(
        code: str, name: str, grid: Any, block: Any, *args: Any, mode: str = "fast", shared: int = 0
    ) -> None:
        monkeypatch.setenv("GPUCNN_CUDASIM", mode)
        module = cudasim.RawModule(code=code)
        sizes = [size if isinstance(size, tuple) else (size,) for size in (grid, block)]
        given = [cudasim.asarray(arg) if isinstance(arg, np.ndarray) else arg for arg in args]
        module.get_function(name)(*sizes, tuple(given), shared_mem=shared)
        for host, array in zip(args, given, strict=True):
            if isinstance(host, np.ndarray):
                host[...] = array.get()

    return run
