"""No array of a training step becomes float64 by accident."""

import numpy as np
import pytest

import gpucnn
from gpucnn import autograd, models, ops, optim


@pytest.mark.parametrize("build", [models.alexnet_cifar10, models.alexnet_cifar10_bn])
@pytest.mark.parametrize("kind", [optim.SGD, optim.AdamW])
def test_every_array_of_a_step_is_float32(build, kind, rng, monkeypatch):
    seen = []
    call = autograd.Function.__call__

    def watched(self, *inputs):
        result = call(self, *inputs)
        backward = self.backward

        def watched_backward(dy):
            given = backward(dy)
            seen.append((self.name, "dy", dy.dtype))
            for g in given if isinstance(given, tuple) else (given,):
                if g is not None:
                    seen.append((self.name, "gradient", g.dtype))
            return given

        self.backward = watched_backward
        seen.append((self.name, "result", result.dtype))
        for saved in autograd.saved_arrays(self):
            if saved.dtype.kind == "f":
                seen.append((self.name, "saved", saved.dtype))
        return result

    monkeypatch.setattr(autograd.Function, "__call__", watched)
    model = build()
    optimizer = kind(model.parameters(), 0.01)
    x = gpucnn.tensor(rng.standard_normal((2, 32, 32, 3), dtype=np.float32))
    loss = ops.cross_entropy(model(x), np.array([1, 2]), label_smoothing=0.1)
    loss.backward()
    optimizer.step()
    assert len(seen) > 60
    assert {dtype for _, _, dtype in seen} == {np.dtype(np.float32)}, seen
    assert {p.grad.dtype for p in model.parameters()} == {np.dtype(np.float32)}
    assert {v.dtype for v in model.state_dict().values()} == {np.dtype(np.float32)}
