"""The kernels' tests run on the simulated device."""

import pytest

from gpucnn import cudasim
from gpucnn.errors import DeviceError
from gpucnn.ops import _conv2d_cuda


@pytest.fixture(scope="session")
def compiler() -> None:
    try:
        cudasim.require_compiler()
    except DeviceError as error:
        pytest.skip(f"no C++ compiler: {error}")


@pytest.fixture
def large_tiles(tiles_for_all: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiles of 128 x 128 too, which want many blocks."""
    monkeypatch.setattr(_conv2d_cuda, "_tile", lambda rows, columns, products: (128, 128))
