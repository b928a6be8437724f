"""Shared by all tests."""

import numpy as np
import pytest

import gpucnn


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)


@pytest.fixture(autouse=True)
def _default_generator_starts_anew() -> None:
    gpucnn.manual_seed(0)
