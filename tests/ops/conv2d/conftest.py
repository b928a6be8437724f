"""Restores the convolution algorithm and the number of threads after each test."""

from collections.abc import Iterator

import pytest

import gpucnn


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    algorithm, threads = gpucnn.get_conv_algorithm(), gpucnn.get_num_threads()
    yield
    gpucnn.set_conv_algorithm(algorithm)
    gpucnn.set_num_threads(threads)
