import json

import pytest
from devices import CUDASIM
from mpiexec import run_ranks

THROUGH_MPI = """
import hashlib, json, sys
import numpy as np
import gpucnn
from devices import host, tensor
from gpucnn import optim
from gpucnn.distributed import DistributedOptimizer, MPICommunicator
from gpucnn.distributed.communicator import DTYPES
from gpucnn.errors import DtypeError

comm = MPICommunicator()
device = sys.argv[1]
shapes = [(64, 33), (50_000,), (7,)]

def train(wire):
    "The largest error of a gradient, relative to the sum of magnitudes; the parameters' hash."
    rng, error = np.random.default_rng(comm.rank), 0.0
    make = lambda shape: tensor(rng.standard_normal(shape), device, np.float32)
    parameters = [make(shape).requires_grad_() for shape in shapes]
    for p in parameters:
        comm.broadcast(p.data)
    inner = optim.SGD(parameters, lr=0.5, momentum=0.9)
    optimizer = DistributedOptimizer(inner, comm, bucket_bytes=10_000, grad_dtype=wire)
    for _ in range(3):
        optimizer.zero_grad()
        gradients = [make(shape) for shape in shapes]
        sum((p * g).sum() for p, g in zip(parameters, gradients)).backward()
        optimizer.reduce()
        for p, g in zip(parameters, gradients):
            parts = np.stack(comm.gather(host(g))).astype(np.float64)
            scale = np.abs(parts).sum(0) + 2.0**-13  # below, fp16 has fewer bits
            error = max(error, float((np.abs(host(p.grad) - parts.mean(0)) / scale).max()))
        optimizer.step()
    hashed = hashlib.sha256(b"".join(host(p).tobytes() for p in parameters)).hexdigest()
    assert len(set(comm.gather(hashed))) == 1, "the ranks differ"
    return error, hashed

found = {str(wire): train(wire) for wire in (None, "fp16", "bf16")}
assert found == {str(wire): train(wire) for wire in (None, "fp16", "bf16")}, "not repeatable"
for dtype in DTYPES:
    x = np.full(3, comm.rank + 1, dtype)
    comm.allreduce(x)
    assert (x == sum(range(comm.size + 1))).all(), dtype
for dtype, wire in (("uint16", None), ("float32", "bf16"), (">f4", None)):
    x = np.ones(3, dtype)
    try:
        comm.start_allreduce(x, wire)
        raise AssertionError(f"{x.dtype} as {wire} was reduced")
    except DtypeError as error:
        assert f"or uint16 as bf16, got {x.dtype}" in str(error)
if comm.rank == 0:
    print(json.dumps(found))
"""


@pytest.mark.parametrize(
    ("ranks", "device"),
    [
        (3, "cpu"),
        *(pytest.param(n, "cpu", marks=pytest.mark.slow) for n in (1, 2, 4)),
        pytest.param(2, "cudasim", marks=[*CUDASIM.marks, pytest.mark.slow]),
    ],
)
def test_through_mpi_all_ranks_get_the_mean_and_training_repeats_bit_for_bit(ranks, device):
    done = run_ranks(ranks, THROUGH_MPI, device)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    for name, bits in {"None": 24, "fp16": 11, "bf16": 8}.items():
        assert found[name][0] <= (1 + ranks) * 2.0**-bits


@pytest.mark.slow
def test_through_mpi_two_runs_end_with_the_same_bits():
    first, second = (run_ranks(3, THROUGH_MPI, "cpu") for _ in range(2))
    assert first.returncode == 0
    assert first.stdout == second.stdout
