"""Optimizer state resumes bit-identically on any device, or is refused with a reason."""

import numpy as np
import pytest
from devices import assert_close, host, in_both_dtypes, leaf, tensor

import gpucnn
from gpucnn import optim
from gpucnn.errors import CheckpointError

KINDS = pytest.mark.parametrize(
    ("kind", "settings"),
    [(optim.SGD, {"momentum": 0.9}), (optim.Adam, {}), (optim.AdamW, {"weight_decay": 0.1})],
    ids=["SGD", "Adam", "AdamW"],
)
SIZES = [4, 300, *[1] * 16]  # two launches, and more than one block


class Run:
    """Parameters and their optimizer; which have a gradient in a step is the same in every run."""

    def __init__(self, kind, settings, device, dtype=np.float32, like=None):
        start = [
            np.ones(n) if like is None else host(like.parameters[i]) for i, n in enumerate(SIZES)
        ]
        self.parameters = [leaf(x, device, dtype) for x in start]
        self.optimizer = kind(self.parameters, lr=0.1, **settings)

    def steps(self, numbers):
        for number in numbers:
            rng = np.random.default_rng(number)
            for p in self.parameters:
                gradient = rng.standard_normal(p.shape)
                p.grad = (
                    tensor(gradient, str(p.device), p.dtype).data if rng.random() < 0.6 else None
                )
            self.optimizer.step()


@in_both_dtypes
@KINDS
def test_a_loaded_state_continues_to_the_same_bits(kind, settings, dtype, device):
    whole = Run(kind, settings, device, dtype)
    whole.steps(range(8))
    first = Run(kind, settings, device, dtype)
    first.steps(range(3))
    state = {
        k: v.copy() if hasattr(v, "copy") else v for k, v in first.optimizer.state_dict().items()
    }
    second = Run(kind, settings, device, dtype, like=first)
    first.steps(range(3, 5))  # the state is a copy, which these steps do not change
    second.optimizer.load_state_dict(state)
    second.steps(range(3, 8))
    for p, q in zip(whole.parameters, second.parameters, strict=True):
        assert host(p).tobytes() == host(q).tobytes()
    assert second.optimizer.steps == 8


@KINDS
def test_a_state_can_be_loaded_on_another_device(kind, settings, gpu):
    for here, there in ((gpu, "cpu"), ("cpu", gpu)):
        whole, first = Run(kind, settings, "cpu"), Run(kind, settings, here)
        whole.steps(range(6))
        first.steps(range(3))
        second = Run(kind, settings, there, like=first)
        second.optimizer.load_state_dict(first.optimizer.state_dict())
        second.steps(range(3, 6))
        for p, q in zip(second.parameters, whole.parameters, strict=True):
            assert_close(p, q)


@pytest.mark.usefixtures("current")
def test_adams_counts_are_the_steps_of_each_parameter(device):
    a, b = leaf([1.0] * 700, device, np.float32), leaf([1.0], device, np.float32)
    optimizer = optim.Adam([a, b])
    for step in range(3):
        a.grad = a.data * 1
        b.grad = b.data * 1 if step == 1 else None
        optimizer.step()
    assert optimizer.state_dict()["counts"].tolist() == [3, 1]
    assert optimizer.steps == 3


def test_a_state_of_another_model_is_refused_and_changes_nothing():
    one = optim.SGD([gpucnn.tensor([1.0], requires_grad=True)], 0.1)
    other = optim.SGD([gpucnn.tensor(np.ones(20), requires_grad=True)], 0.2)
    with pytest.raises(CheckpointError, match="does not fit: expected velocity of shape"):
        one.load_state_dict(other.state_dict())
    assert one.lr == 0.1
    three = optim.Adam([gpucnn.tensor([1.0], requires_grad=True) for _ in range(3)], 0.1)
    state = {**three.state_dict(), "counts": np.ones(2, np.int64), "steps": 9}
    with pytest.raises(CheckpointError, match=r"expected counts of shape \(3,\), got \(2,\)"):
        three.load_state_dict(state)
    del state["counts"]
    with pytest.raises(CheckpointError, match=r"expected counts of shape \(3,\), got nothing"):
        three.load_state_dict(state)
    assert three.steps == 0


@pytest.mark.parametrize("lacking", ["steps", "param_groups", "velocity"])
def test_a_state_that_lacks_a_part_is_refused(lacking):
    optimizer = optim.SGD([gpucnn.tensor([1.0], requires_grad=True)], 0.1)
    state = optimizer.state_dict()
    del state[lacking]
    with pytest.raises(CheckpointError, match=f"does not fit: expected .*{lacking}"):
        optimizer.load_state_dict(state)
