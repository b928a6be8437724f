"""What one of several processes of a training script does about its cores, its errors and its end.

tests/distributed and tests/reliability/test_ranks.py start real ones.
"""

import os
import platform

import pytest

from gpucnn.cpu import get_num_threads
from gpucnn.device import Device
from gpucnn.distributed import Communicator
from gpucnn.errors import ArgumentError
from gpucnn.train import processes
from gpucnn.train.processes import Processes


class Rank(Communicator):
    """Rank 1 of 2, whose other rank comes to the end or not."""

    rank = local_rank = 1
    size = local_size = 2

    def __init__(self, other_comes=True, gathered=()):
        self.other_comes, self.gathered = other_comes, list(gathered)

    def gather(self, value):
        return [value, *self.gathered]

    def close(self, seconds=None):
        return self.other_comes

    def abort(self, status):
        raise SystemExit(status)


def of(comm):
    found = Processes()
    found.comm = comm
    return found


def test_an_error_of_one_rank_names_it_and_ends_all(capsys):
    ranks = of(Rank())
    ranks.tell("error: no memory")
    assert capsys.readouterr().err == "rank 1: error: no memory\n"
    with pytest.raises(SystemExit) as ended:
        ranks.end(2)
    assert ended.value.code == 2


def test_an_error_of_the_only_rank_is_that_of_a_program_without_mpi(capsys):
    ranks = of(Rank())
    ranks.comm.rank, ranks.comm.size = 0, 1
    ranks.tell("error: no memory")
    ranks.end(2)  # without MPI's lines about an abort
    assert capsys.readouterr().err == "error: no memory\n"


def test_an_error_of_all_ranks_is_left_to_rank_0(capsys):
    ranks = of(Rank())
    ranks.comm.ending = True
    ranks.tell("error: the loss is nan")
    ranks.end(2)
    assert capsys.readouterr().err == ""


def test_an_error_that_only_this_rank_took_for_one_of_all_is_told_late_and_ends_all(capsys):
    ranks = of(Rank(other_comes=False))
    ranks.comm.ending = True
    ranks.tell("error: the loss is nan")
    with pytest.raises(SystemExit) as ended:
        ranks.end(2)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "rank 1: error: the loss is nan\n"


def test_processes_do_not_all_train_on_the_gpu_that_a_flag_names():
    with pytest.raises(ArgumentError, match=r"--device cuda:1: with --distributed each process"):
        of(Rank()).own_device(Device("cuda", 1), threads=get_num_threads())


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no affinity")
@pytest.mark.parametrize(
    ("own", "others", "threads"),
    [
        (range(8), range(8), 4),  # all cores are everyone's
        (range(4), range(4, 8), 4),  # srun --cpus-per-task=4
        (range(1), range(1), 1),
        (range(4), range(100, 108), 4),
    ],
)
def test_processes_share_the_cores_of_a_machine(own, others, threads, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(own))
    here, elsewhere = (platform.node(), set(others)), ("another machine", set(range(1000)))
    assert processes._share_of_cores(Rank(gathered=[here, elsewhere])) == threads
