import gc
from contextlib import nullcontext

import numpy as np
import pytest
from devices import host, tensor
from fake_ranks import run
from given_gradients import SHAPES, Alone, backward, gradients_of, leaves, sgd

import gpucnn
from gpucnn import nn, ops, optim
from gpucnn.distributed import DistributedOptimizer
from gpucnn.errors import ArgumentError, GraphError, ShapeError


def network():
    gpucnn.manual_seed(7)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 5)
    )


# --- the mean ---


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("bucket_bytes", [1, 150, 25_000_000])
def test_every_gradient_is_the_mean_over_the_ranks(device, ranks, bucket_bytes):
    def program(comm):
        parameters = leaves(*SHAPES, device=device)
        optimizer = sgd(parameters, comm, bucket_bytes=bucket_bytes)
        backward(parameters, gradients_of(comm.rank, SHAPES))
        optimizer.reduce()
        return [host(p.grad) for p in parameters]

    found = run(ranks, program)
    exact = [
        np.mean(np.stack(g).astype(np.float64), axis=0)
        for g in zip(*(gradients_of(rank, SHAPES) for rank in range(ranks)), strict=True)
    ]
    for mine in found:
        for own, first, mean in zip(mine, found[0], exact, strict=True):
            assert np.array_equal(own, first)
            assert np.abs(own - mean).max() <= ranks * np.finfo(np.float32).eps
    again = run(ranks, program)
    assert all(np.array_equal(a, b) for a, b in zip(found[0], again[0], strict=True))


def test_ranks_with_a_part_of_the_batch_each_take_the_step_of_the_whole_batch(device):
    rng = np.random.default_rng(0)
    images = rng.standard_normal((12, 6, 6, 3)).astype(np.float32)
    labels = rng.integers(0, 5, 12)
    models = [network().to(device) for _ in range(5)]

    def train(model, optimizer, part):
        x = tensor(images[part], device)
        for _ in range(3):
            optimizer.zero_grad()
            ops.cross_entropy(model(x), labels[part]).backward()
            optimizer.step()
        return [host(p) for p in model.parameters()]

    whole = optim.SGD(models[4].parameters(), lr=0.1, momentum=0.9)
    expected = train(models[4], whole, slice(0, 12))

    def program(comm):
        model = models[comm.rank]
        inner = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        part = slice(comm.rank * 12 // comm.size, (comm.rank + 1) * 12 // comm.size)
        return train(model, DistributedOptimizer(inner, comm, bucket_bytes=600), part)

    found = run(4, program)
    for mine in found:
        for own, first, one_process in zip(mine, found[0], expected, strict=True):
            assert np.array_equal(own, first)
            np.testing.assert_allclose(own, one_process, rtol=1e-4, atol=1e-6)


def test_one_rank_trains_with_the_bits_of_the_optimizer_alone():
    def trained(distributed):
        model = network()
        optimizer = optim.Adam(model.parameters(), lr=0.01)
        if distributed:
            optimizer = DistributedOptimizer(optimizer, Alone(), bucket_bytes=600)
        x = tensor(np.random.default_rng(0).standard_normal((4, 6, 6, 3)), "cpu", np.float32)
        for _ in range(3):
            optimizer.zero_grad()
            ops.cross_entropy(model(x), np.array([0, 1, 2, 3])).backward()
            optimizer.step()
        return [host(p) for p in model.parameters()]

    assert all(np.array_equal(a, b) for a, b in zip(trained(True), trained(False), strict=True))


# --- buckets ---


def test_gradients_lie_in_one_flat_buffer_the_last_parameter_first():
    parameters = leaves((4, 4), (16,), (5,))
    optimizer = sgd(parameters, Alone(), bucket_bytes=128)
    backward(parameters, gradients_of(0, [(4, 4), (16,), (5,)]))
    optimizer.reduce()
    addresses = [p.grad.__array_interface__["data"][0] for p in parameters]
    assert [a - addresses[2] for a in addresses] == [128, 64, 0]


def test_a_bucket_ends_before_it_exceeds_bucket_bytes():
    shapes = [(16,), (16,), (100,), (16,)]  # 64, 64, 448 and 64 bytes, with alignment
    parameters, comm = leaves(*shapes), Alone()
    optimizer = sgd(parameters, comm, bucket_bytes=128)
    assert [list(bucket.views) for bucket in optimizer._buckets] == [[3], [2], [1, 0]]


def test_a_full_bucket_is_reduced_while_backward_goes_on_and_later_hooks_let_it_progress():
    parameters, comm = leaves((16,), (16,), (16,), (16,)), Alone()
    optimizer = sgd(parameters, comm, bucket_bytes=128)
    for i, p in enumerate(parameters):
        p.register_post_accumulate_grad_hook(lambda p, i=i: comm.calls.append(f"gradient {i}"))
    backward(parameters, gradients_of(0, [(16,)] * 4))
    during = list(comm.calls)
    optimizer.reduce()
    assert during == [
        "gradient 3", "start 0", "test 0", "gradient 2",
        "test 0", "gradient 1", "start 1", "test 0", "test 1", "gradient 0",
    ]  # fmt: skip
    assert comm.calls[len(during) :] == ["wait 0", "wait 1"]


def test_buckets_begin_in_one_order_whatever_order_the_gradients_come_in():
    def program(comm):
        shapes = [(16,), (32,), (48,)]
        parameters = leaves(*shapes)
        optimizer = sgd(parameters, comm, bucket_bytes=1)
        order = [0, 1, 2] if comm.rank else [2, 0, 1]
        gradients = gradients_of(comm.rank, shapes)
        backward([parameters[i] for i in order], [gradients[i] for i in order])
        optimizer.step()
        return comm.calls

    expected = [f"allreduce float32 ({size},)" for size in (48, 32, 16)]
    assert run(2, program) == [expected, expected]


# --- several backward passes ---


def test_passes_inside_no_sync_add_up_and_are_reduced_once():
    def program(comm):
        parameters = leaves(*SHAPES)
        optimizer = sgd(parameters, comm)
        first, second = gradients_of(comm.rank, SHAPES), gradients_of(10 + comm.rank, SHAPES)
        with optimizer.no_sync():
            backward(parameters, first)
            assert comm.calls == []
            assert np.array_equal(parameters[0].grad, first[0])
        backward(parameters, second)
        optimizer.reduce()
        assert len(comm.calls) == 1
        return [host(p.grad) for p in parameters], [
            a + b for a, b in zip(first, second, strict=True)
        ]

    found = run(2, program)
    for i in range(len(SHAPES)):
        mean = (found[0][1][i] + found[1][1][i]) / 2
        np.testing.assert_allclose(found[0][0][i], mean, rtol=1e-6, atol=1e-7)


def test_gradients_that_were_only_added_up_or_set_by_hand_are_reduced_by_step():
    def program(comm):
        a, b = leaves((3,), (2,))
        optimizer = sgd([a, b], comm, lr=1.0)
        start_a, start_b = host(a).copy(), host(b).copy()
        with optimizer.no_sync():
            backward([a], [np.full(3, 1 + comm.rank, np.float32)])
        b.grad = np.full(2, 4.0 * comm.rank, np.float32)
        optimizer.step()
        return (start_a - host(a)).tolist(), (start_b - host(b)).tolist()

    for a, b in run(2, program):
        np.testing.assert_allclose(a, [1.5] * 3, rtol=1e-6)
        np.testing.assert_allclose(b, [2] * 2, rtol=1e-6)


@pytest.mark.parametrize("synchronized", [True, False])
def test_a_second_backward_before_the_step_is_refused_with_a_way_out(synchronized):
    parameters = leaves(*SHAPES)
    optimizer = sgd(parameters, Alone())
    gradients = gradients_of(0, SHAPES)
    backward(parameters, gradients)
    message = r"parameter 3 .*\n.*step\(\).*zero_grad\(\).*no_sync\(\)"
    with (
        nullcontext() if synchronized else optimizer.no_sync(),
        pytest.raises(GraphError, match=message),
    ):
        backward(parameters, gradients)
    optimizer.zero_grad()  # the way out
    backward(parameters, gradients)
    optimizer.step()
    backward(parameters, gradients)  # without zero_grad: adds to the gradients of the step
    optimizer.reduce()
    assert np.array_equal(parameters[0].grad, 2 * gradients[0])


def test_a_second_backward_is_refused_although_its_bucket_still_waits_for_another_parameter():
    parameters = leaves((3,), (3,))
    optimizer = sgd(parameters, Alone())
    backward(parameters[:1], [np.ones(3)])
    with pytest.raises(GraphError, match="parameter 0 gets a gradient after"):
        backward(parameters[:1], [np.ones(3)])
    backward(parameters[1:], [np.ones(3)])  # its first
    optimizer.step()


def test_no_sync_ends_with_the_outermost_block():
    parameters, comm = leaves((3,)), Alone()
    optimizer = sgd(parameters, comm)
    with optimizer.no_sync():
        with optimizer.no_sync():
            pass
        backward(parameters, [np.ones(3)])
        assert comm.calls == []
    with pytest.raises(ZeroDivisionError), optimizer.no_sync():
        1 / 0  # noqa: B018
    backward(parameters, [np.ones(3)])
    assert comm.calls == ["start 0", "test 0"]


def test_a_retained_graph_may_run_backward_again_inside_no_sync():
    (x,) = leaves((3,))
    optimizer = sgd([x], Alone())
    y = (x * x).sum()
    with optimizer.no_sync():
        y.backward(retain_graph=True)
    y.backward()
    optimizer.reduce()
    np.testing.assert_allclose(x.grad, 4 * host(x), rtol=1e-6)


def test_zero_grad_waits_for_the_reductions_of_a_discarded_step():
    parameters, comm = leaves((16,), (16,)), Alone()
    optimizer = sgd(parameters, comm, bucket_bytes=1)
    backward(parameters, gradients_of(0, [(16,), (16,)]))
    optimizer.zero_grad()
    assert comm.calls[-2:] == ["wait 0", "wait 1"]
    assert [p.grad for p in parameters] == [None, None]


def test_reduce_before_step_is_done_once():
    def program(comm):
        parameters = leaves((3,))
        optimizer = sgd(parameters, comm, lr=1.0)
        before = host(parameters[0]).copy()
        backward(parameters, [np.full(3, 2.0 + comm.rank)])
        optimizer.reduce()
        parameters[0].grad *= 0.5  # as clip_grad_norm_ does
        optimizer.step()
        return comm.calls, before - host(parameters[0])

    for calls, moved in run(2, program):
        assert calls == ["allreduce float32 (16,)"]
        np.testing.assert_allclose(moved, [1.25] * 3, rtol=1e-6)


# --- mistakes ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": 3}, "expected an Optimizer, got an int"),
        ({"comm": None}, "expected a Communicator, got None"),
        ({"bucket_bytes": 0}, "bucket_bytes must be a positive integer, got 0"),
        ({"bucket_bytes": 1.5}, "bucket_bytes must be a positive integer, got 1.5"),
        ({"grad_dtype": "fp8"}, "expected grad_dtype fp32, fp16, bf16 or None, got 'fp8'"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    given = {"optimizer": optim.SGD(leaves((2,)), lr=1.0), "comm": Alone()} | options
    with pytest.raises(ArgumentError, match=message):
        DistributedOptimizer(**given)


def test_a_model_moved_after_the_optimizer_was_built_is_refused_during_backward():
    model = network()
    sgd(model.parameters(), Alone())
    optimizer = sgd(model.parameters(), Alone())
    model.astype(np.float64)
    x = tensor(np.zeros((1, 6, 6, 3)), "cpu", np.float64)
    with pytest.raises(GraphError, match=r"was replaced after the optimizer was built"):
        ops.cross_entropy(model(x), np.array([0])).backward()
    del optimizer


def test_a_gradient_set_by_hand_must_match_its_parameter():
    parameters = leaves((3,))
    optimizer = sgd(parameters, Alone())
    parameters[0].grad = np.zeros(4, np.float32)
    with pytest.raises(ShapeError, match=r"parameter 0: expected a gradient of shape \(3,\)"):
        optimizer.step()


# --- the wrapped optimizer ---


def test_state_and_hyperparameters_are_the_wrapped_optimizers():
    inner = optim.SGD(leaves((3,)), lr=0.5, momentum=0.9)
    optimizer = DistributedOptimizer(inner, Alone())
    optimizer.lr = 0.25
    assert (optimizer.lr, inner.lr) == (0.25, 0.25)
    assert optimizer.param_groups is inner.param_groups
    assert optimizer.parameters is inner.parameters
    backward(inner.parameters, [np.ones(3)])
    optimizer.step()
    state = optimizer.state_dict()
    assert state["steps"] == 1
    other = DistributedOptimizer(optim.SGD(leaves((3,)), lr=1.0, momentum=0.9), Alone())
    other.load_state_dict(state)
    assert (other.lr, other.optimizer.steps) == (0.25, 1)


def test_a_deleted_optimizer_leaves_no_hooks_and_no_memory_behind():
    parameters, comm = leaves((3,)), Alone()
    optimizer = sgd(parameters, comm)
    gc.disable()
    try:
        del optimizer
        assert not parameters[0]._hooks
    finally:
        gc.enable()
    backward(parameters, [np.ones(3)])
    assert comm.calls == []
