"""Training on 1, 2, 3 and 4 ranks that mpiexec starts."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mpiexec import ROOT, finish, mpiexec, run_ranks, start_ranks

from gpucnn.checkpoint import read_checkpoint

PROGRAM = Path(__file__).parent / "training_run.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """run(ranks, **arguments of training_run.main): (tensors, history, skipped steps)."""
    done = {}

    def start(ranks, again=0, **arguments):
        key = json.dumps([ranks, again, arguments])
        if key not in done:
            out = tmp_path_factory.mktemp("run")
            process = start_ranks(ranks, PROGRAM, json.dumps({"out": str(out), **arguments}))
            _, err = finish(process)
            assert process.returncode == 0, err
            done[key] = out
        said = json.loads((done[key] / "history.json").read_text())
        tensors = read_checkpoint(done[key] / "last.safetensors").tensors
        return tensors, said["history"], said["skipped"], done[key] / "last.safetensors"

    return start


def assert_close(one, other, tolerance=1e-5):
    assert one[0].keys() == other[0].keys()
    for name, array in one[0].items():
        np.testing.assert_allclose(array, other[0][name], rtol=tolerance, atol=tolerance)
    for a, b in zip(one[1], other[1], strict=True):
        for what in ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "lr"):
            assert a[what] == pytest.approx(b[what], rel=10 * tolerance), what


def assert_same(one, other):
    assert all(np.array_equal(array, other[0][name]) for name, array in one[0].items())


slow = pytest.mark.slow


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=slow), pytest.param(4, marks=slow)])
def test_ranks_train_as_one_process_does_with_the_whole_batches(ranks, run):
    assert_close(run(ranks), run(1))


@slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_on_the_simulator_train_as_one_process_does(ranks, run, compiler):
    assert_close(run(ranks, device="cudasim"), run(1, device="cudasim"))


@slow
@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("arguments", [{}, {"norm": "rank"}, {"norm": "sync"}])
def test_a_run_repeats_bit_for_bit(ranks, arguments, run):
    assert_same(run(ranks, again=1, **arguments), run(ranks, **arguments))


@slow
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_synchronised_batch_norm_makes_ranks_equal_one_process_too(ranks, run):
    assert_close(run(ranks, norm="sync"), run(1, norm="sync"), 1e-4)


@slow
def test_batch_norm_of_each_rank_has_statistics_of_its_own_batches_and_one_running_mean(run):
    tensors, history, _, _ = run(3, norm="rank")  # the program compares the ranks
    one = run(1, norm="rank")
    assert history[-1]["train_loss"] == pytest.approx(one[1][-1]["train_loss"], rel=0.5)
    np.testing.assert_allclose(
        tensors["model.1.running_mean"], one[0]["model.1.running_mean"], atol=0.1
    )


@slow
@pytest.mark.parametrize("own_generator", [True, False])
def test_a_stopped_run_resumes_with_another_number_of_ranks(own_generator, run):
    """In the middle of an epoch, from 2 to 4 ranks, and from there to 1."""
    common = {"epochs": 3, "own_generator": own_generator}
    first = run(2, stop=4, **common)
    second = run(4, stop=9, resume=str(first[3]), **common)
    third = run(1, resume=str(second[3]), **common)
    assert_close(third, run(1, **common))


@slow
def test_a_stopped_run_resumes_to_the_bits_of_one_never_stopped(run):
    first = run(2, stop=4)
    assert_same(run(2, resume=str(first[3])), run(2))


@slow
@pytest.mark.parametrize(("grad_dtype", "tolerance"), [("fp16", 1e-3), ("bf16", 1e-2)])
def test_gradients_may_travel_in_half_precision(grad_dtype, tolerance, run):
    found, exact = run(2, grad_dtype=grad_dtype), run(2)
    assert not np.array_equal(found[0]["model.0.weight"], exact[0]["model.0.weight"])
    for name in ("model.0.weight", "model.6.weight"):
        np.testing.assert_allclose(found[0][name], exact[0][name], atol=tolerance)


@slow
@pytest.mark.parametrize("device", ["cpu", "cudasim"])
def test_nan_on_one_rank_is_skipped_by_all(device, run, compiler):
    assert run(3, bad=[2, 3], device=device)[2] == 1


@slow
def test_ranks_that_replay_their_steps_have_the_bits_of_eager_ones(run, compiler):
    common = {"device": "cudasim", "norm": "rank", "own_generator": False}
    eager, replayed = run(2, **common), run(2, graph=True, **common)
    assert_same(replayed, eager)
    assert [a["train_loss"] for a in replayed[1]] == [b["train_loss"] for b in eager[1]]
    said = [json.loads((one[3].parent / "history.json").read_text()) for one in (eager, replayed)]
    assert [text["replays"] for text in said] == [0, 10]  # six whole batches in each of two epochs


@slow
def test_a_rank_with_another_model_is_named(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "from mpi4py import MPI\n"
        "from training_run import main\n"
        "main(out=sys.argv[1], width=4 + MPI.COMM_WORLD.rank)\n"
    )
    process = start_ranks(2, program, tmp_path / "out")
    _, err = finish(process)
    assert process.returncode == 1
    assert "DistributedError: fit: rank 1 cannot start from rank 0's model" in err


@slow
def test_the_program_of_the_page_runs_on_two_processes(tmp_path):
    page = (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```py\n(.*?)```", page, re.DOTALL)
    (tmp_path / "program.py").write_text(program)
    process = start_ranks(2, tmp_path / "program.py")
    out, err = finish(process)
    assert process.returncode == 0, err
    first, second, accuracy = out.splitlines()  # of rank 0
    assert (first[:9], second[:9]) == ("epoch 1/2", "epoch 2/2")
    assert 0 < float(accuracy) <= 1


@slow
def test_the_readme_example_runs_on_two_processes(tmp_path):
    script = ROOT / "examples" / "train_alexnet_cifar10.py"
    flags = "--distributed --dataset synthetic --limit 64 --epochs 1 --batch-size 16".split()
    done = subprocess.run(
        [mpiexec(), "-n", "2", sys.executable, "-m", "mpi4py", script, *flags, "--device", "cpu"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.count("test accuracy") == 1
    assert done.stdout.count("out: runs/") == 1
    (folder,) = (tmp_path / "runs").iterdir()
    assert len((folder / "metrics.csv").read_text().splitlines()) == 2


def test_an_error_of_the_only_rank_is_printed_once():
    done = run_ranks(
        1,
        """
from gpucnn.train.script import Script

def run(job):
    raise RuntimeError("of the program")

script = Script("my_script", "Train what I want.", epochs=1, batch_size=8, lr=0.02)
script.main(run, ["--distributed", "--device", "cpu"])
""",
    )
    assert done.returncode == 1
    assert done.stderr.count("RuntimeError: of the program") == 1


@slow
def test_a_rank_that_wrongly_takes_its_error_for_one_of_all_ends_them_with_its_message():
    done = run_ranks(
        2,
        """
from gpucnn.train import processes

processes._PATIENCE = 0.5
ranks = processes.Processes()
ranks.connect(distributed=True)
if ranks.rank == 1:
    ranks.comm.ending = True
    ranks.tell("error: the loss is nan")
    ranks.end(2)
ranks.comm.gather("the next step")
""",
    )
    assert done.returncode == 2
    assert "rank 1: error: the loss is nan" in done.stderr
