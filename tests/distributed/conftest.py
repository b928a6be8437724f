"""Fixtures for tests of several processes."""

import fake_nccl
import lazy_cuda
import pytest


@pytest.fixture
def standin(monkeypatch):
    """The stand-in for CuPy, with that for NCCL."""
    return lazy_cuda.modules(monkeypatch, fake_nccl)
