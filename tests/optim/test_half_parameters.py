"""Optimizers of parameters in half precision: the steps of float32, rounded."""

import numpy as np
import pytest
from devices import host, leaf, tensor

from gpucnn import optim
from gpucnn.optim.finite import step_if_finite

KINDS = {
    "SGD": lambda p: optim.SGD(p, 0.1, 0.9, weight_decay=0.01),
    "nesterov": lambda p: optim.SGD(p, 0.1, 0.9, nesterov=True),
    "Adam": lambda p: optim.Adam(p, 0.1, weight_decay=0.1),
    "AdamW": lambda p: optim.AdamW(p, 0.1),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "unit"), [("float16", 2**-10), ("bfloat16", 2**-7)])
def test_clipped_steps_are_those_of_float32_within_rounding(kind, dtype, unit, device):
    start, gradient = np.linspace(-1, 1, 7), np.linspace(1, 2, 7)
    found = []
    for kept in (dtype, np.float32):
        p = leaf(start, device, kept)
        optimizer = KINDS[kind]([p])
        for _ in range(3):
            p.grad = tensor(gradient, device, kept).data
            optim.clip_grad_norm_([p], 1.0)
            assert step_if_finite(optimizer) is None
        assert p.dtype == kept
        found.append(host(p).astype(np.float32))
    np.testing.assert_allclose(*found, atol=2 * unit)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_step_that_overflows_is_left_out(dtype, device):
    p = leaf([1.0, -1.0], device, dtype)
    optimizer = optim.SGD([p], 1.0)
    p.grad = tensor([1.0, np.inf], device, dtype).data
    assert step_if_finite(optimizer) is p
    assert host(p).tolist() == [1, -1]
