"""The part of `gpucnn check` that runs NCCL, with the stand-in for NCCL."""

import io
import json

import fake_nccl
import numpy as np
import pytest
from devices import SECOND_CUDA
from nccl_ranks import cupy_with_fake_nccl, ranks

from gpucnn.commands.check import reductions
from gpucnn.commands.check.part import Reporter, Task


def findings(device):
    """[state, what, found] of each finding."""
    stream = io.StringIO()
    reductions.examine(Reporter(Task(device, True, "lenet5", 60.0), stream))
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    found = [event["finding"] for event in events if "finding" in event]
    return [[finding[key] for key in ("state", "what", "found")] for finding in found]


@pytest.fixture(params=[SECOND_CUDA])
def cupy(request, monkeypatch):
    cupy = cupy_with_fake_nccl(monkeypatch)
    monkeypatch.setattr(reductions, "_BUCKET", 40_000)
    x = cupy.zeros(1, np.int64)
    x += 0  # NVRTC's first compilation may fail if two threads begin it at once
    return cupy


@pytest.mark.usefixtures("compiler")
def test_the_simulator_skips_it():
    assert findings("cudasim") == [["skip", "NCCL", "the simulator is one device"]]


def test_one_gpu_skips_it(standin, monkeypatch):
    monkeypatch.setattr(standin.cuda.runtime, "getDeviceCount", lambda: 1)
    assert findings("cuda") == [["skip", "NCCL", "there is only one GPU"]]


def test_a_missing_nccl_skips_it_and_says_what_to_install(standin, monkeypatch):
    monkeypatch.setattr(fake_nccl, "available", False)
    ((state, what, reason),) = findings("cuda")
    assert (state, what) == ("skip", "NCCL")
    assert reason.endswith('pip install "nvidia-nccl-cu13"')


@pytest.mark.parametrize("examine", ["_small_integers", "_random_numbers", "_broadcast"])
def test_right_results_are_no_problem(standin, examine):
    assert ranks(2, getattr(reductions, examine)) == [[]] * 2


def test_a_wrong_sum_is_a_problem(standin, monkeypatch):
    monkeypatch.setattr(fake_nccl, "_sum", lambda parts, kind: parts[0])
    assert ranks(2, reductions._small_integers)[1][:2] == [
        "wrong sum of float16",
        "wrong sum of float32",
    ]
    assert "a sum of float32 is off by" in ranks(2, reductions._random_numbers)[0][0]


def test_a_rank_that_fails_ends_the_check_with_its_error(standin, monkeypatch):
    def program(comm):
        if comm.rank == 1:
            raise RuntimeError("this rank fails")
        comm.barrier()

    with pytest.raises(RuntimeError, match="this rank fails"):
        reductions._on_all_gpus(program)


def test_reductions_graphs_and_times_are_reported(cupy):
    reduced = findings("cuda")[0]
    assert reduced[:2] == ["ok", "NCCL"]
    assert "GPUs: sums of 9 dtypes, the same bits on each and twice" in reduced[2]


def test_a_graph_with_a_missing_reduction_is_reported(cupy, monkeypatch):
    monkeypatch.setattr(fake_nccl.NcclCommunicator, "_captured", lambda *args: None)
    assert findings("cuda")[:2] == [
        ["fail", "NCCL", "rank 0: wrong numbers from a captured graph"],
        ["fail", "NCCL", "rank 1: wrong numbers from a captured graph"],
    ]


def test_an_abort_that_ends_a_lone_reduction_is_reported(cupy, monkeypatch):
    reduce = fake_nccl.NcclCommunicator.allReduce

    def lone(self, *args):  # the stand-in would wait in the call; NCCL waits on the GPU
        if self._ranks is None:
            reduce(self, *args)

    monkeypatch.setattr(fake_nccl.NcclCommunicator, "allReduce", lone)
    assert findings("cuda")[-1] == [
        "ok",
        "NCCL abort",
        "ends a reduction that waits for a missing rank",
    ]
