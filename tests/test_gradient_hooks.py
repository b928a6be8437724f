import copy
import gc
import pickle
import weakref

import numpy as np
import pytest
from devices import CUDA, CUDASIM, host, tensor

import gpucnn
from gpucnn import autograd, nn, ops, optim
from gpucnn.autograd import Function
from gpucnn.device import _state
from gpucnn.errors import GraphError


def leaf(*values):
    return gpucnn.tensor(list(values), requires_grad=True)


def watched(*leaves):
    """The (leaf's number, its gradient) of each call of a hook, in order."""
    calls = []
    for i, x in enumerate(leaves):
        x.register_post_accumulate_grad_hook(
            lambda x, i=i: calls.append((i, host(x.grad).tolist()))
        )
    return calls


def test_a_hook_sees_the_complete_gradient_of_its_leaf(device):
    x = tensor([1.0, 2.0], device, np.float32, grad=True)
    calls = watched(x)
    (x * x).sum().backward()
    assert calls == [(0, [2, 4])]


def test_a_hook_sees_what_earlier_backward_passes_have_added():
    x = leaf(1.0)
    calls = watched(x)
    (x * 2.0).backward()
    (x * 3.0).backward()
    assert calls == [(0, [2]), (0, [5])]


def test_a_leaf_used_several_times_calls_its_hook_once_after_the_last_use():
    x, other = leaf(3.0), leaf(1.0)
    calls = watched(x, other)
    y = x * 2.0  # visited last
    (y * other + x * x + x).backward()
    assert calls == [(1, [6]), (0, [2 + 6 + 1])]


def test_a_leaf_used_twice_by_one_operation_calls_its_hook_once():
    x = leaf(3.0)
    calls = watched(x)
    (x * x).backward()
    assert calls == [(0, [6])]


def test_hooks_run_while_the_backward_pass_goes_on_newest_leaf_first():
    a, b, c = leaf(2.0), leaf(3.0), leaf(5.0)
    seen = []
    b.register_post_accumulate_grad_hook(lambda b: seen.append((a.grad, b.grad, c.grad)))
    (a * 1.0 * b * c).backward()
    assert seen == [(None, [10], [6])]
    assert a.grad == [15]


def test_the_leaf_that_is_differentiated_itself_calls_its_hook():
    x = leaf(3.0)
    calls = watched(x)
    x.backward()
    assert calls == [(0, [1])]


def test_a_leaf_that_gets_no_gradient_calls_no_hook():
    class First(Function):
        name = "first"

        def forward(self, a, b):
            return a + b

        def backward(self, dy):
            return dy, None

    a, b, outside, frozen = leaf(1.0), leaf(2.0), leaf(3.0), leaf(4.0)
    frozen.requires_grad_(False)
    calls = watched(a, b, outside, frozen)
    (First()(a, b) * frozen).backward()
    assert calls == [(0, [4])]


@pytest.mark.parametrize("behind", [False, True])
def test_a_use_that_passes_no_gradient_on_does_not_keep_the_hook_from_running(behind):
    """The use itself, or an operation behind it that the pass therefore never visits."""

    class Blocked(Function):
        name = "blocked"

        def forward(self, a):
            return a + 1

        def backward(self, dy):
            return None

    a, b = leaf(2.0), leaf(7.0)
    calls = watched(a, b)
    blocked = Blocked()(a * 3.0 if behind else a)
    (blocked * b + a * 5.0).backward()
    assert sorted(calls) == [(0, [5]), (1, host(blocked).tolist())]


def test_in_random_graphs_each_hook_runs_once_with_the_final_gradient(rng):
    for _ in range(40):
        leaves = [leaf(float(value)) for value in rng.integers(1, 4, 5)]
        calls = watched(*leaves)
        values = list(leaves)
        for _ in range(rng.integers(1, 15)):
            a, b = (values[i] for i in rng.integers(0, len(values), 2))
            values.append(a * 0.5 + b if rng.integers(2) else a * b * 0.25)
        values[-1].backward()
        found = {i: x.grad.tolist() for i, x in enumerate(leaves) if x.grad is not None}
        assert len(calls) == len(found)
        assert dict(calls) == found


def test_a_retained_graph_calls_the_hook_in_each_pass():
    x = leaf(1.0)
    calls = watched(x)
    y = x * x + x
    y.backward(retain_graph=True)
    y.backward()
    assert calls == [(0, [3]), (0, [6])]


def test_a_hook_may_replace_the_gradient():
    x = leaf(1.0, 2.0)

    def halve(x):
        x.grad = x.grad / 2

    x.register_post_accumulate_grad_hook(halve)
    (x * x).sum().backward()
    assert np.array_equal(x.grad, [1, 2])


def test_a_hook_may_update_its_parameter_and_so_free_the_gradient_at_once():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    twin = copy.deepcopy(model)
    steppers = {id(p): optim.SGD([p], lr=0.1) for p in model.parameters()}

    def step(p):
        steppers[id(p)].step()
        p.grad = None

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step)
    x = gpucnn.tensor(np.arange(6, dtype=np.float32).reshape(2, 3))
    whole = optim.SGD(twin.parameters(), lr=0.1)
    for _ in range(2):
        model(x).sum().backward()
        whole.zero_grad()
        twin(x).sum().backward()
        whole.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert p.grad is None
        assert np.array_equal(p.data, q.data)


def test_hooks_run_in_the_order_of_registration_until_removed():
    x, calls = leaf(1.0), []
    first = x.register_post_accumulate_grad_hook(lambda x: calls.append(1))
    with x.register_post_accumulate_grad_hook(lambda x: calls.append(2)):
        (x * 2.0).backward()
    (x * 2.0).backward()
    first.remove()
    first.remove()
    (x * 2.0).backward()
    assert calls == [1, 2, 1]


def test_a_hook_may_remove_itself():
    x, calls = leaf(1.0), []

    def once(x):
        calls.append(1)
        handle.remove()

    handle = x.register_post_accumulate_grad_hook(once)
    (x * 2.0).backward()
    (x * 2.0).backward()
    assert calls == [1]


def test_an_exception_in_a_hook_ends_the_backward_pass():
    a, b = leaf(2.0), leaf(3.0)

    def fail(b):
        raise RuntimeError("from the hook")

    b.register_post_accumulate_grad_hook(fail)
    with pytest.raises(RuntimeError, match="from the hook"):
        (a * 1.0 * b).backward()
    assert a.grad is None


def test_a_backward_pass_inside_a_hook_is_one_of_its_own():
    a, b = leaf(2.0), leaf(3.0)
    calls = watched(a)
    b.register_post_accumulate_grad_hook(lambda b: (a * 10.0).backward())
    (a * 1.0 * b).backward()
    assert calls == [(0, [10]), (0, [13])]


def test_a_frozen_leaf_keeps_its_hook_until_it_is_trained_again():
    x, other = leaf(2.0), leaf(3.0)
    x.requires_grad_(False)
    calls = watched(x)
    (x * other).backward()
    x.requires_grad_()
    (x * other).backward()
    assert calls == [(0, [3])]


def test_only_leaves_take_hooks():
    y = leaf(1.0) * 2.0
    with pytest.raises(
        GraphError, match=r"expected a leaf, got the result of multiply\n.*retain_grad"
    ):
        y.register_post_accumulate_grad_hook(print)


def test_copies_and_pickles_of_a_leaf_have_no_hooks():
    model = nn.Linear(2, 2)
    calls = watched(*model.parameters())
    x = leaf(1.0, 2.0)
    x.register_post_accumulate_grad_hook(lambda x: calls.append(1))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(x))):
        y = twin(gpucnn.tensor([[1.0, 2.0]])) if isinstance(twin, nn.Module) else twin * 2.0
        y.sum().backward()
    assert calls == []


def test_a_hook_that_refers_to_its_leaf_does_not_keep_it_alive():
    def gone():
        x = leaf(1.0)
        x.register_post_accumulate_grad_hook(lambda _: x.grad)
        return weakref.ref(x)

    x = gone()
    gc.collect()
    assert x() is None


def test_hooks_do_not_change_the_bits_of_a_backward_pass(device):
    def gradients(hooked):
        gpucnn.manual_seed(1)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)).to(
            device
        )
        calls = watched(*model.parameters()) if hooked else []
        x = tensor(np.random.default_rng(0).standard_normal((2, 6, 6, 3)), device, np.float32)
        ops.cross_entropy(model(x), np.array([1, 4])).backward()
        assert [i for i, _ in calls] == ([2, 3, 0, 1] if hooked else [])
        return [host(p.grad) for p in model.parameters()]

    for a, b in zip(gradients(False), gradients(True), strict=True):
        assert np.array_equal(a, b)


def test_a_backward_pass_without_hooks_counts_no_uses(monkeypatch):
    walks = []
    found = autograd._behind
    monkeypatch.setattr(autograd, "_behind", lambda nodes: walks.append(1) or found(nodes))
    x, y = leaf(1.0), leaf(2.0)
    (x * x * y).backward()
    assert walks == []
    watched(x)
    (x * x * y).backward()
    assert walks == [1]


@pytest.mark.parametrize("gpu", [CUDASIM, CUDA])
def test_a_hook_works_on_the_device_of_its_leaf(gpu):
    x = tensor([1.0, 2.0], "cpu", np.float32, grad=True)
    y = tensor([3.0, 4.0], gpu, np.float32, grad=True)
    calls = watched(x, y)
    y.register_post_accumulate_grad_hook(lambda y: calls.append(_state.working_on))
    (x * y.to("cpu")).sum().backward()
    assert calls == [(0, [3, 4]), (1, [1, 2]), y.device]
