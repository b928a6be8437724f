"""The kernels' tests run on the simulated device."""

from collections.abc import Callable, Iterator

import pytest

import gpucnn
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
def tiles_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiled kernels and split sums for shapes that are too small to be worth them."""
    monkeypatch.setattr(_conv2d_cuda, "_LEAST", 1)
    monkeypatch.setattr(_conv2d_cuda, "_SPLIT", 8)


@pytest.fixture
def large_tiles(tiles_for_all: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiles of 128 x 128 too, which want many blocks."""
    monkeypatch.setattr(_conv2d_cuda, "_tile", lambda rows, columns, products: (128, 128))


@pytest.fixture
def conv_algorithm() -> Iterator[Callable[[str], None]]:
    """Sets the algorithm, for this test alone."""
    before = gpucnn.get_conv_algorithm()
    yield gpucnn.set_conv_algorithm
    gpucnn.set_conv_algorithm(before)
