"""Backward passes with given gradients, and a rank alone: for tests of what happens to them."""

import numpy as np
from devices import host, tensor

from gpucnn import optim
from gpucnn.distributed import Communicator, DistributedOptimizer, Work

SHAPES = [(3, 5), (17,), (2, 2, 3), (1,)]


def leaves(*shapes, device="cpu", dtype=np.float32):
    rng = np.random.default_rng(3)
    return [tensor(rng.standard_normal(shape), device, dtype, grad=True) for shape in shapes]


def gradients_of(rank, shapes):
    rng = np.random.default_rng(100 + rank)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def backward(parameters, gradients):
    """A backward pass that gives each parameter this gradient; the first parameter's is last."""
    total = None
    for p, g in zip(parameters, gradients, strict=True):
        term = (p * tensor(g, str(p.device), p.dtype)).sum()
        total = term if total is None else total + term
    total.backward()


def sgd(parameters, comm, lr=0.5, **options):
    return DistributedOptimizer(optim.SGD(parameters, lr=lr), comm, **options)


class Alone(Communicator):
    """The only rank; `calls` notes what happens to each reduction, in order."""

    rank = local_rank = 0
    size = 1

    def __init__(self):
        self.calls = []
        self.sent = []  # copies of the arrays

    def start_allreduce(self, x, wire=None):
        self.sent.append(host(x).copy())
        number = sum(call.startswith("start") for call in self.calls)
        self.calls.append(f"start {number}")
        return Noted(self.calls, number)


class Noted(Work):
    def __init__(self, calls, number):
        self.calls, self.number = calls, number

    def test(self):
        self.calls.append(f"test {self.number}")
        return False

    def wait(self):
        self.calls.append(f"wait {self.number}")
