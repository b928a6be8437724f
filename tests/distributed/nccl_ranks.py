"""Ranks as threads, each with a NcclCommunicator on the stand-in for NCCL."""

import sys

import fake_nccl
import numpy as np
import pytest
from fake_ranks import run

from gpucnn.device import working_on
from gpucnn.distributed import NcclCommunicator


def cupy_with_fake_nccl(monkeypatch):
    """CuPy, whose module for NCCL is the stand-in."""
    import cupy

    monkeypatch.setitem(sys.modules, "cupy.cuda.nccl", fake_nccl)
    monkeypatch.setattr(cupy.cuda, "nccl", fake_nccl, raising=False)
    return cupy


def ranks(size, program):
    """program(comm) on each rank, with its GPU as the current one."""

    def body(host):
        comm = NcclCommunicator(host)
        with working_on(comm.device):
            return program(comm)

    return run(size, body)


def numbers(rank, dtype="float32", n=7):
    return (np.arange(n) * (rank + 1)).astype(dtype)


class Ended(Exception):
    """What the host communicator of these tests raises in place of ending the process."""


def error_of(program, *args):
    with pytest.raises((RuntimeError, ValueError, TypeError, ImportError, Ended)) as caught:
        program(*args)
    return caught.value
