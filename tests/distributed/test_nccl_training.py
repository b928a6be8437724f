"""Training on two GPUs through NcclCommunicator, with the stand-in for NCCL."""

import numpy as np
import pytest
from devices import SECOND_CUDA, host, tensor
from nccl_ranks import cupy_with_fake_nccl, ranks

import gpucnn
from gpucnn import nn, ops, optim
from gpucnn.distributed import DistributedOptimizer


def network():
    gpucnn.manual_seed(7)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))


def train(model, optimizer, images, labels, part, device):
    x = tensor(images[part], device)
    for _ in range(3):
        optimizer.zero_grad()
        ops.cross_entropy(model(x), labels[part]).backward()
        optimizer.step()
    return [host(p) for p in model.parameters()]


@pytest.mark.parametrize("grad_dtype", [None, "bf16"])
@pytest.mark.parametrize("gpu", [SECOND_CUDA])
def test_two_gpus_take_the_steps_of_the_whole_batch(gpu, grad_dtype, rng, monkeypatch):
    cupy_with_fake_nccl(monkeypatch)
    images = rng.standard_normal((12, 6, 6, 3)).astype(np.float32)
    labels = rng.integers(0, 5, 12)
    models = [network() for _ in range(3)]
    whole = models[2].to("cuda:0")  # also compiles the kernels, in one thread
    sgd = optim.SGD(whole.parameters(), lr=0.1, momentum=0.9)
    expected = train(whole, sgd, images, labels, slice(0, 12), "cuda:0")

    def program(comm):
        model = models[comm.rank].to(comm.device)
        sgd = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        optimizer = DistributedOptimizer(sgd, comm, bucket_bytes=400, grad_dtype=grad_dtype)
        part = slice(6 * comm.rank, 6 * comm.rank + 6)
        return train(model, optimizer, images, labels, part, str(comm.device))

    first, second = ranks(2, program)
    for mine, other, one_gpu in zip(first, second, expected, strict=True):
        assert np.array_equal(mine, other)
        tolerance = 1e-6 if grad_dtype is None else 5e-3
        np.testing.assert_allclose(mine, one_gpu, rtol=1e-4, atol=tolerance)
