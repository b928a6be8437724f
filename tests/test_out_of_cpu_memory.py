"""Out of memory on the CPU: NumPy's error becomes one that names layer, op and a batch size."""

import gc
import sys
import weakref

import numpy as np
import pytest

import gpucnn
from gpucnn import nn, optim, out_of_memory
from gpucnn.autograd import Function
from gpucnn.cpu import parallel
from gpucnn.data import DataLoader


def images(n):
    return np.zeros((n, 16, 16, 3), np.float32)


class Allocation(Function):
    """Fails as NumPy does: in the forward pass, the backward pass or a worker's piece."""

    name = "allocation"

    def __init__(self, when):
        self.when = when

    def forward(self, x):
        if self.when == "piece":
            parallel(lambda _: np.empty(1 << 60, np.uint8), range(4))
        if self.when == "forward":
            np.empty((1 << 30, 1 << 30), np.uint8)
        self.saved = (np.empty(x.size, np.uint8),)
        return x * 1

    def backward(self, dy):
        if self.when == "backward":
            raise MemoryError
        return dy


class Allocating(nn.Module):
    def __init__(self, when):
        self.when = when

    def forward(self, x):
        return Allocation(self.when)(x)


def allocating(when):
    return nn.Sequential(nn.Flatten(), nn.Linear(16 * 16 * 3, 8), Allocating(when), nn.Linear(8, 4))


@pytest.mark.parametrize("when", ["forward", "piece"])
def test_on_the_cpu_the_error_names_layer_op_bytes_and_a_batch(when):
    with pytest.raises(gpucnn.OutOfMemory) as caught:
        allocating(when)(gpucnn.tensor(images(64)))
    error = caught.value
    assert error.where == "allocation in layer 2 (Allocating)"
    assert error.requested == 1 << 60
    assert error.images == 64
    assert error.device == "cpu"
    assert isinstance(error.__cause__, MemoryError)
    if sys.platform == "linux":
        assert error.batch_size == 0
        assert "cannot allocate 1073741824.0 GiB on cpu: " in str(error)
        assert "not even one image would fit" in str(error)


def test_on_the_cpu_the_estimate_counts_what_grows_with_the_batch(monkeypatch):
    monkeypatch.setattr(out_of_memory, "free_memory", lambda: 0)
    loss = allocating("backward")(gpucnn.tensor(images(64))).sum()
    with pytest.raises(gpucnn.OutOfMemory) as caught:
        loss.backward()
    error = caught.value
    assert error.where == "the gradient of allocation in layer 2 (Allocating)"
    assert error.requested == 0
    assert str(error).startswith(f"{error.where}: cannot allocate memory on cpu: 0 bytes free, ")
    kept = 64 * (16 * 16 * 3 * 4 + 8 * 4 + 8 + 8 * 4)  # the batch, linear's result, saved, result
    parameters = (16 * 16 * 3 * 8 + 8) * 4  # without a gradient so far: those of layer 1
    assert error.batch_size == (kept - parameters) * 64 // kept


def test_a_failed_step_on_the_cpu_leaves_nothing_behind():
    model = allocating("forward")
    x = gpucnn.tensor(images(64))
    kept = weakref.ref(x.data)
    gc.collect()
    gc.disable()  # reference counts must free everything
    try:
        with pytest.raises(gpucnn.OutOfMemory):
            model(x)
        del x
        assert kept() is None
    finally:
        gc.enable()


def test_on_the_cpu_optimizer_and_loader_are_named_too():
    class Items:
        def __len__(self):
            return 8

        def __getitem__(self, i):
            return np.empty(1 << 60, np.uint8), 0

    for prefetch in (0, 2):
        with pytest.raises(gpucnn.OutOfMemory, match=r"^the next batch: cannot allocate"):
            next(iter(DataLoader(Items(), 4, prefetch=prefetch)))

    parameter = nn.Parameter(np.ones(3, np.float32))
    optimizer = optim.SGD([parameter], 0.1)
    parameter.grad = parameter.data
    optimizer.update = lambda *_: lambda *_: np.empty(1 << 60, np.uint8)
    with pytest.raises(gpucnn.OutOfMemory, match=r"^a step of SGD: cannot allocate"):
        optimizer.step()


def test_a_layers_own_arrays_are_those_of_its_forward_pass():
    class Hungry(nn.Module):
        def forward(self, x):
            return np.empty(1 << 60, np.uint8)

    with pytest.raises(gpucnn.OutOfMemory, match=r"^the forward pass in layer 1 \(Hungry\): "):
        nn.Sequential(nn.Flatten(), Hungry())(gpucnn.tensor(images(4)))


def test_another_librarys_error_is_not_called_the_cpus():
    class OutOfMemoryError(MemoryError):
        __module__ = "cupy.cuda.memory"

    class Elsewhere(nn.Module):
        def forward(self, x):
            raise OutOfMemoryError

    with pytest.raises(OutOfMemoryError):
        Elsewhere()(gpucnn.tensor(images(1)))
