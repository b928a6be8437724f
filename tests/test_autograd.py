import gc
import weakref

import numpy as np
import pytest

import gpucnn
from gpucnn import ops, optim
from gpucnn.autograd import Function, grad_enabled
from gpucnn.errors import GraphError, ShapeError


def leaf(*values):
    return gpucnn.tensor(list(values), requires_grad=True)


def test_gradients_of_leaves_accumulate_over_backward_passes():
    x = leaf(1.0, 2.0)
    (x * x).sum().backward()
    (x * x).sum().backward()
    assert np.array_equal(x.grad, [4, 8])
    x.zero_grad()
    assert x.grad is None


def test_a_tensor_used_twice_gets_the_sum_of_both_gradients():
    x = leaf(3.0)
    y = x * x + x * 2.0 + x
    y.backward()
    assert x.grad == [9.0]


def test_two_leaves_that_receive_one_gradient_do_not_share_memory_of_its_sum():
    a, b = leaf(1.0, 2.0), leaf(3.0, 4.0)
    (a + b).sum().backward()
    (a * 1.0).sum().backward()
    assert np.array_equal(a.grad, [2, 2])
    assert np.array_equal(b.grad, [1, 1])


def test_an_interior_gradient_is_kept_only_after_retain_grad():
    x = leaf(2.0)
    y, z = x * 3.0, x * 5.0
    y.retain_grad()
    (y * z).sum().backward()
    assert y.grad == [10.0]
    assert z.grad is None
    assert x.grad == [60.0]


def test_nothing_is_recorded_under_no_grad():
    x = leaf(1.0)
    with gpucnn.no_grad():
        y = x * 2.0
        assert not grad_enabled()
        with gpucnn.enable_grad():
            assert (x * 2.0).requires_grad
    assert grad_enabled()
    assert not y.requires_grad
    with pytest.raises(GraphError, match=r"no_grad\(\)"):
        y.backward()


def test_no_grad_decorates_and_survives_an_exception():
    @gpucnn.no_grad()
    def fail():
        raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert grad_enabled()


def test_detach_cuts_the_graph():
    x = leaf(2.0)
    (x * x.detach()).sum().backward()
    assert x.grad == [2.0]


def test_a_second_backward_over_a_freed_graph_is_an_error_that_says_what_to_do():
    x = leaf(2.0)
    y = (x * x).sum()
    y.backward()
    with pytest.raises(GraphError, match="retain_graph=True"):
        y.backward()
    assert x.grad == [4.0]


def test_a_retained_graph_can_be_walked_twice():
    x = leaf(2.0)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad == [8.0]


def test_backward_of_a_non_scalar_needs_a_gradient_of_its_shape():
    x = leaf(1.0, 2.0)
    y = x * 2.0
    with pytest.raises(GraphError, match=r"expected a scalar, got shape \(2,\)"):
        y.backward()
    with pytest.raises(ShapeError, match=r"expected a gradient of shape \(2,\), got \(3,\)"):
        y.backward(np.ones(3, np.float32))
    y.backward(np.array([1, 10], np.float32))
    assert np.array_equal(x.grad, [2, 20])


def test_an_optimizer_step_between_forward_and_backward_is_an_error():
    x = leaf(1.0)
    optimizer = optim.SGD([x], lr=0.1)
    y = (x * x).sum()
    x.grad = np.ones(1, np.float32)
    optimizer.step()
    with pytest.raises(GraphError, match="changed in place"):
        y.backward()


def test_backward_frees_each_saved_array_as_soon_as_it_was_used():
    alive = []

    class Probe(Function):
        def forward(self, x):
            saved = x + 1
            self.saved = (saved,)
            self.watch = weakref.ref(saved)
            probes.append(self)
            return x * 1

        def backward(self, dy):
            alive.append([probe.watch() is not None for probe in probes])
            return dy

    probes: list[Probe] = []
    x = leaf(1.0)
    y = Probe()(Probe()(Probe()(x)))
    y.backward()
    assert alive == [[True, True, True], [True, True, False], [True, False, False]]
    assert [probe.watch() for probe in probes] == [None] * 3


def test_a_graph_is_freed_with_its_last_tensor_without_the_garbage_collector():
    gc.disable()
    try:
        x = leaf(1.0)
        y = x * 2.0
        watch = weakref.ref(y)
        z = y + 1.0
        del y
        assert watch() is not None
        del z
        assert watch() is None
    finally:
        gc.enable()


def test_a_graph_deeper_than_the_recursion_limit_is_walked():
    x = leaf(1.0)
    y = x
    for _ in range(3000):
        y = y + 1.0
    y.backward()
    assert x.grad == [1.0]


def test_needs_is_true_only_for_inputs_that_require_a_gradient():
    asked = []

    class Probe(Function):
        def forward(self, a, b, c):
            return a + b + c

        def backward(self, dy):
            asked.append(self.needs)
            return dy, dy, None

    Probe()(leaf(1.0), gpucnn.tensor([1.0]), 3.0).backward()
    assert asked == [(True, False, False)]


def test_a_two_layer_network_learns_exclusive_or():
    x = gpucnn.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    rng = np.random.default_rng(1)
    w1 = gpucnn.tensor(rng.standard_normal((2, 8)), requires_grad=True, dtype="float32")
    w2 = gpucnn.tensor(rng.standard_normal((8, 2)), requires_grad=True, dtype="float32")
    b1 = gpucnn.tensor(np.zeros(8), requires_grad=True, dtype="float32")
    optimizer = optim.SGD([w1, b1, w2], lr=0.5, momentum=0.9)
    for _ in range(200):
        logits = ops.tanh(x @ w1 + b1) @ w2
        loss = ops.cross_entropy(logits, [0, 1, 1, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01
    assert logits.argmax(axis=1).tolist() == [0, 1, 1, 0]
