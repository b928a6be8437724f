"""The dtype of every array of a training step: none becomes float64 by accident, and autocast makes
activations half precision and nothing else."""

from typing import NamedTuple

import numpy as np
import pytest

import gpucnn
from gpucnn import autograd, models, ops, optim
from gpucnn.graph_memory import saved_arrays
from gpucnn.precision import bfloat16, is_floating

F32 = np.dtype(np.float32)


class Seen(NamedTuple):
    """An array of an operation."""

    name: str
    what: str  # "result", "saved", "dy", "gradient of a leaf" or "gradient"
    dtype: np.dtype


@pytest.fixture
def seen(monkeypatch):
    """The arrays of all operations, as they run."""
    found = []
    call = autograd.Function.__call__

    def watched(self, *inputs):
        result = call(self, *inputs)
        backward, inputs = self.backward, self.inputs

        def watched_backward(dy):
            given = backward(dy)
            found.append(Seen(self.name, "dy", dy.dtype))
            for x, g in zip(inputs, given if isinstance(given, tuple) else (given,), strict=True):
                if g is not None:
                    leaf = " of a leaf" if x.is_leaf else ""
                    found.append(Seen(self.name, "gradient" + leaf, g.dtype))
            return given

        self.backward = watched_backward
        found.append(Seen(self.name, "result", result.dtype))
        for saved in saved_arrays(self):
            if is_floating(saved.dtype):
                found.append(Seen(self.name, "saved", saved.dtype))
        return result

    monkeypatch.setattr(autograd.Function, "__call__", watched)
    return found


def step(build, kind, rng, half=None):
    """A step with two images; the model and its loss."""
    model = build()
    optimizer = kind(model.parameters(), 0.01)
    x = gpucnn.tensor(rng.standard_normal((2, 32, 32, 3), dtype=np.float32))
    with gpucnn.autocast(half or "float16", enabled=half is not None):
        loss = ops.cross_entropy(model(x), np.array([1, 2]), label_smoothing=0.1)
    loss.backward()
    optimizer.step()
    return model, loss


@pytest.mark.parametrize("build", [models.alexnet_cifar10, models.alexnet_cifar10_bn])
@pytest.mark.parametrize("kind", [optim.SGD, optim.AdamW])
def test_every_array_of_a_step_is_float32(build, kind, rng, seen):
    model, _ = step(build, kind, rng)
    assert len(seen) > 60
    assert {array.dtype for array in seen} == {F32}, seen
    assert {p.grad.dtype for p in model.parameters()} == {F32}
    assert {v.dtype for v in model.state_dict().values()} == {F32}


@pytest.mark.parametrize("build", [models.alexnet_cifar10, models.resnet18_cifar])
@pytest.mark.parametrize("half", [np.dtype(np.float16), bfloat16()], ids=str)
def test_under_autocast_activations_and_their_gradients_are_half_and_the_rest_float32(
    build, half, rng, seen
):
    model, loss = step(build, optim.SGD, rng, half)
    assert loss.dtype == F32
    assert np.isfinite(loss.item())
    assert len(seen) > 60
    for array in seen:
        if array.what == "saved":  # float32 statistics, sums and rounded operands
            assert array.dtype in (F32, half), array
        elif array.what == "gradient of a leaf" or (array.name, array.what) in (
            ("cross_entropy", "result"),
            ("cross_entropy", "dy"),
        ):
            assert array.dtype == F32, array
        else:
            assert array.dtype == half, array
    assert {p.grad.dtype for p in model.parameters()} == {F32}
    assert {v.dtype for v in model.state_dict().values()} == {F32}


@pytest.mark.parametrize("build", [models.alexnet_cifar10, models.resnet18_cifar])
@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_a_model_in_half_precision_keeps_it_in_a_step_without_autocast(build, half, rng, seen):
    x = gpucnn.tensor(rng.standard_normal((2, 32, 32, 3)), dtype=half)
    model = build().astype(half)
    optimizer = optim.SGD(model.parameters(), 0.01)
    loss = ops.cross_entropy(model(x), np.array([1, 2]))
    loss.backward()
    optimizer.step()
    dtype = model.parameters()[0].dtype
    assert dtype == half
    assert {array.dtype for array in seen if array.what != "saved"} == {dtype}
    assert {v.dtype for v in model.state_dict().values()} == {dtype}
