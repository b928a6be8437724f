"""Gradients that their consumer masks: Function.positive, keeps_zeros, mask and masked."""

from typing import Any

import numpy as np
import pytest
from devices import host, leaf, tensor

import gpucnn
from gpucnn import cuda, ops
from gpucnn.autograd import Function, may_be_masked
from gpucnn.device import Array, array_module

pytestmark = pytest.mark.usefixtures("current")


class Consumer(Function):
    """y = 3 x, whose backward masks its gradient if it may, as a convolution's does."""

    name = "consumer"

    def __init__(self, masks: bool = True) -> None:
        self.masks = masks
        self.factor: float | None = None

    def forward(self, x: Array) -> Array:
        self.saved = (x,)
        return x * x.dtype.type(3)

    def backward(self, dy: Array) -> Array:
        (x,) = self.saved
        self.factor = self.mask(0) if self.masks else None
        dx = dy * dy.dtype.type(3)
        if self.factor is None:
            return dx
        kept = (x != 0).astype(dx.dtype)
        return array_module(x).where(
            x != 0, dx * dx.dtype.type(self.factor), dx.dtype.type(0) * kept
        )


def relu(x: gpucnn.Tensor) -> gpucnn.Tensor:
    return ops.relu(x)


def pooled(x: gpucnn.Tensor) -> gpucnn.Tensor:
    return ops.max_pool2d(ops.relu(x), 3, 2)


def pooled_side_by_side(x: gpucnn.Tensor) -> gpucnn.Tensor:
    return ops.max_pool2d(ops.relu(x), 2)


def dropped(x: gpucnn.Tensor) -> gpucnn.Tensor:
    return ops.dropout(ops.relu(x), 0.25)


def flattened(x: gpucnn.Tensor) -> gpucnn.Tensor:
    return ops.flatten(ops.dropout(ops.max_pool2d(ops.relu(x), 2), 0.5))


def pooled_after_dropout(x: gpucnn.Tensor) -> gpucnn.Tensor:
    return ops.max_pool2d(ops.dropout(ops.relu(x), 0.5), 2)


CHAINS = [relu, pooled, pooled_side_by_side, dropped, flattened, pooled_after_dropout]
# numbers of which many are 0 after the ReLU, and NaN
X = np.random.default_rng(4).integers(-3, 4, (2, 6, 6, 8)).astype(np.float32)
X[0, 1, 2, 3] = np.nan


def gradient(
    chain: Any, device: str, masks: bool, dtype: Any = np.float32
) -> tuple[np.ndarray, Consumer, Any]:
    """The gradient of X through the chain and a consumer, the consumer, and backward's launches."""
    gpucnn.manual_seed(3)
    x, consumer = leaf(X, device, dtype), Consumer(masks)
    y = consumer(chain(x))
    dy = np.random.default_rng(5).standard_normal(y.shape).astype(np.float32)
    with cuda.count_launches() as launches:
        y.backward(tensor(dy, device, dtype).data)
    return host(x.grad), consumer, launches


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("chain", CHAINS)
def test_a_masked_gradient_is_the_unmasked_one_and_the_relu_launches_nothing(chain, dtype, gpu):
    expected, _, _ = gradient(chain, gpu, False, dtype)
    found, consumer, launches = gradient(chain, gpu, True, dtype)
    assert consumer.factor is not None
    assert not {"relu_backward", "dropout"} & set(launches)
    assert (found == 0).sum() > found.size // 3  # the ReLU kills half of them
    bound = 0 if dtype == np.float32 else 2e-3  # one rounding less
    np.testing.assert_allclose(found, expected, rtol=bound, atol=0)


@pytest.mark.parametrize("chain", CHAINS)
def test_the_gradient_without_a_masking_consumer_is_the_cpus(chain, gpu):
    for masks in (False, True):
        found, _, _ = gradient(chain, gpu, masks)
        expected, consumer, _ = gradient(chain, "cpu", True)
        assert consumer.factor is None  # nothing is masked on the CPU
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_a_pooling_that_is_not_masked_masks_for_the_relu_before_it(gpu):
    _, _, launches = gradient(pooled, gpu, False)
    assert dict(launches) == {"max_pool2d_backward": 1}
    _, _, launches = gradient(pooled_side_by_side, gpu, False)
    assert dict(launches) == {"max_pool2d_backward_cells": 1}


def test_a_dropout_that_is_not_masked_masks_for_the_relu_before_it_in_one_launch(gpu):
    _, _, launches = gradient(dropped, gpu, False)
    assert dict(launches) == {"relu_backward": 1}  # with a scale; the ReLU itself launches none


def test_the_factor_is_the_product_of_the_dropouts_scales(gpu):
    _, consumer, _ = gradient(lambda x: ops.dropout(ops.dropout(ops.relu(x), 0.5), 0.75), gpu, True)
    assert consumer.factor == 8


def test_nan_passes_the_gradient_on(gpu):
    found, _, _ = gradient(relu, gpu, True)
    assert found[0, 1, 2, 3] != 0


@pytest.mark.parametrize("chain", [pooled, dropped, flattened])
def test_a_tensor_that_two_ops_read_is_not_masked(chain, gpu):
    def twice(x: gpucnn.Tensor) -> gpucnn.Tensor:
        h = ops.relu(x)
        other = h * 2.0  # a consumer that masks nothing
        y = chain_after(chain, h)
        return y + other.sum()

    found, _, _ = gradient(twice, gpu, True)
    expected, _, _ = gradient(twice, "cpu", True)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def chain_after(chain: Any, h: gpucnn.Tensor) -> gpucnn.Tensor:
    """The chain after its ReLU: that of a positive tensor is the identity."""
    if chain is pooled:
        return ops.max_pool2d(h, 3, 2)
    return ops.dropout(h, 0.25) if chain is dropped else ops.flatten(h)


@pytest.mark.parametrize("between", [lambda t: t, ops.flatten, lambda t: ops.dropout(t, 0.5)])
def test_a_retained_gradient_is_that_of_the_whole_tensor(between, gpu):
    found = []
    for device in (gpu, "cpu"):
        gpucnn.manual_seed(3)
        x = leaf(X, device)
        h = ops.relu(x)
        h.retain_grad()
        y = Consumer()(between(h))
        y.backward(tensor(np.ones(y.shape, np.float32), device).data)
        found.append((host(h.grad), host(x.grad)))
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert (found[0][0][X < 0] != 0).any()


def test_a_kept_graph_may_be_walked_again_from_another_place(gpu):
    x = leaf(X, gpu)
    h = ops.relu(x)
    y = Consumer()(h)
    ones = tensor(np.ones(X.shape, np.float32), gpu).data
    y.backward(ones, retain_graph=True)
    masked = host(x.grad)
    x.grad = None
    h.backward(ones, retain_graph=True)  # not through the consumer
    np.testing.assert_array_equal(host(x.grad) * 3, masked)
    x.grad = None
    y.backward(ones)
    np.testing.assert_array_equal(host(x.grad), masked)


def test_only_what_follows_a_relu_on_a_gpu_may_be_masked(gpu):
    for device, expected in (("cpu", False), (gpu, True)):
        h = ops.relu(leaf(X, device))
        results = [h, ops.flatten(h), ops.max_pool2d(h, 2), ops.dropout(h, 0.5), h * 1.0, h.sum()]
        assert [may_be_masked(t) for t in results] == [expected] * 4 + [False] * 2
        assert not may_be_masked(ops.flatten(leaf(X, device)))


def test_the_default_gradient_of_a_loss_costs_no_launch(gpu):
    logits = leaf(np.random.default_rng(0).standard_normal((4, 3)), gpu, np.float32)
    labels = np.array([0, 2, 1, 1])
    with cuda.count_launches() as launches:
        ops.cross_entropy(logits, labels).backward()
    assert dict(launches) == {"cross_entropy": 1}
    first, logits.grad = host(logits.grad), None
    loss = ops.cross_entropy(logits, labels)
    with cuda.count_launches() as launches:
        loss.backward(tensor(np.float32(1), gpu).data)
    assert dict(launches) == {"scale_gradient": 1}
    np.testing.assert_array_equal(host(logits.grad), first)


def test_a_backward_pass_that_fails_leaves_no_gradient_marked_as_masked(gpu):
    """The kept graph is walked again, from a tensor whose consumer has no say then."""

    class Fails(Consumer):
        def backward(self, dy: Array) -> Array:
            super().backward(dy)
            raise RuntimeError("out of luck")

    x = leaf(X, gpu)
    y = ops.relu(x)
    z = Fails()(y)
    with pytest.raises(RuntimeError, match="out of luck"):
        z.backward(array_module(z.data).ones_like(z.data), retain_graph=True)
    y.backward(array_module(y.data).ones_like(y.data))
    np.testing.assert_array_equal(host(x.grad), ~(X <= 0))
