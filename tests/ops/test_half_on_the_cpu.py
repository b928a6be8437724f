"""Half precision on the CPU, the reference of a GPU's: computed in float32, rounded once."""

import numpy as np
import pytest
from devices import leaf
from test_half_kernels import DTYPES, check

import gpucnn
from gpucnn import ops

pytestmark = pytest.mark.parametrize("dtype", DTYPES, ids=["float16", "bfloat16"])


def test_results_are_the_float64_ones_rounded_once(dtype, rng):
    x, gamma = rng.standard_normal((2, 6, 5, 7)), rng.standard_normal(7)
    for op in (
        lambda _, t: ops.relu(t),
        lambda _, t: ops.leaky_relu(t, 0.3),
        lambda _, t: ops.dropout(t, 0.3, True, np.random.Generator(np.random.Philox(7))),
        lambda _, t: ops.max_pool2d(t, 3, 2, 1),
        lambda _, t: ops.max_pool2d(t, 2),
        lambda _, t: ops.avg_pool2d(t, 3, 2, 1),
        lambda _, t: ops.global_avg_pool2d(t),
        lambda _, t: ops.adaptive_avg_pool2d(t, (4, 3)),
        lambda _, t: ops.local_response_norm(t, 5, 0.3, 0.75, 1.5),
    ):
        check(op, "cpu", dtype, x)
    for training in (True, False):

        def batch_norm(_: str, t: gpucnn.Tensor, g: gpucnn.Tensor) -> gpucnn.Tensor:
            running = np.zeros(7, g.dtype), np.full(7, 2, g.dtype)
            return ops.batch_norm(t, g, g, *running, training=training)  # noqa: B023

        check(batch_norm, "cpu", dtype, x, gamma)


def test_the_loss_is_float32_under_autocast_and_its_gradient_in_half_precision(dtype, rng):
    logits = leaf(rng.standard_normal((5, 3)), "cpu", dtype)
    with gpucnn.autocast(dtype):
        loss = ops.cross_entropy(logits, np.array([0, 2, 1, 1, 0]))
    loss.backward()
    assert (loss.dtype, logits.grad.dtype) == (np.float32, dtype)
