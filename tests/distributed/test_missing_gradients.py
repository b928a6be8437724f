import numpy as np
import pytest
from devices import host
from fake_ranks import run
from given_gradients import Alone, backward, gradients_of, leaves, sgd

from gpucnn import optim
from gpucnn.distributed import DistributedOptimizer
from gpucnn.errors import GraphError


def test_frozen_and_unused_parameters_keep_no_gradient_and_do_not_move(device):
    def program(comm):
        used, unused, frozen = leaves((16,), (16,), (16,), device=device)
        optimizer = DistributedOptimizer(
            optim.SGD([used, unused, frozen], lr=1.0, weight_decay=0.1, momentum=0.9), comm
        )
        for p in (used, unused, frozen):
            p.grad = None
        backward([used, unused, frozen], gradients_of(comm.rank, [(16,)] * 3))
        optimizer.step()  # leaves other values in the flat buffer
        optimizer.zero_grad()
        frozen.requires_grad_(False)
        before = [host(p).copy() for p in (unused, frozen)]
        backward([used, frozen], gradients_of(comm.rank, [(16,)] * 2))
        optimizer.reduce()
        assert used.grad is not None
        assert unused.grad is None
        assert frozen.grad is None
        optimizer.step()
        for p, values in zip((unused, frozen), before, strict=True):
            assert np.array_equal(host(p), values)
        frozen.requires_grad_()
        optimizer.zero_grad()
        backward([used, unused, frozen], gradients_of(comm.rank, [(16,)] * 3))
        optimizer.reduce()
        return [host(p.grad) for p in (used, unused, frozen)]

    found = run(2, program)
    for own, *each in zip(found[0], *(gradients_of(r, [(16,)] * 3) for r in (0, 1)), strict=True):
        assert np.array_equal(own, each[0] / 2 + each[1] / 2)


def test_a_parameter_without_a_gradient_is_sent_as_zeros():
    parameters, comm = leaves((16,), (16,)), Alone()
    optimizer = sgd(parameters, comm)
    backward(parameters, gradients_of(0, [(16,)] * 2))
    optimizer.step()
    optimizer.zero_grad()
    backward(parameters[:1], gradients_of(0, [(16,)]))
    optimizer.step()
    assert np.array_equal(comm.sent[1], np.concatenate([np.zeros(16), parameters[0].grad]))


def test_a_gradient_left_from_before_its_parameter_was_frozen_is_applied_as_without_ranks():
    def program(comm):
        parameters = leaves((16,), (16,))
        optimizer = sgd(parameters, comm, lr=1.0, bucket_bytes=1)
        gradients = gradients_of(comm.rank, [(16,)] * 2)
        backward(parameters, gradients)
        optimizer.step()
        parameters[1].requires_grad_(False)
        before = host(parameters[1]).copy()
        backward(parameters, gradients)
        optimizer.step()
        return before - host(parameters[1]), gradients[1]

    (moved, a), (too, b) = run(2, program)
    assert np.array_equal(moved, too)
    np.testing.assert_allclose(moved, a / 2 + b / 2, rtol=1e-5, atol=1e-6)


def test_a_parameter_frozen_between_forward_and_backward_is_refused():
    a, b = leaves((16,), (16,))
    optimizer = sgd([a, b], Alone(), bucket_bytes=1)
    y = (a * 1.0 * b).sum()
    a.requires_grad_(False)
    with pytest.raises(GraphError, match="parameter 0 gets a gradient after"):
        y.backward()
    optimizer.zero_grad()


def test_a_bucket_of_frozen_parameters_is_not_sent():
    def program(comm):
        parameters = leaves((16,), (32,), (48,))
        optimizer = sgd(parameters, comm, bucket_bytes=1)
        parameters[1].requires_grad_(False)
        backward(parameters, gradients_of(comm.rank, [(16,), (32,), (48,)]))
        early = list(comm.calls)
        optimizer.step()
        return early, comm.calls

    expected = ["allreduce float32 (48,)", "allreduce float32 (16,)"]
    assert run(2, program) == [(expected, expected)] * 2


def test_a_parameter_that_is_used_twice_is_reduced_once_with_both_gradients():
    def program(comm):
        x, y = leaves((16,), (16,))
        optimizer = sgd([x, y], comm, bucket_bytes=1)
        a, b, c = gradients_of(comm.rank, [(16,)] * 3)
        backward([x, y, x], [a, b, c])
        optimizer.reduce()
        return comm.calls, host(x.grad), a + c

    (calls, first, a), (_, second, b) = run(2, program)
    assert len(calls) == 2
    assert np.array_equal(first, second)
    assert np.array_equal(first, a / 2 + b / 2)
