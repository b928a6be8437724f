"""`.grad` of scalars, its memory, and what an op's backward must return."""

import numpy as np
import pytest
from devices import host, in_both_dtypes, leaf, tensor

import gpucnn
from gpucnn import autograd, models, ops
from gpucnn.autograd import Function
from gpucnn.device import array_module, working_on
from gpucnn.errors import DeviceMismatch, DtypeError, GraphError, ShapeError
from gpucnn.graph_memory import saved_arrays

DTYPES = pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])


# --- scalars ---


@DTYPES
def test_a_scalar_result_may_be_used_twice(dtype, device):
    x = leaf([1.0, 2.0], device, dtype)
    s = x.sum()
    (s * s).backward()
    assert host(x.grad).tolist() == [6.0, 6.0]
    x.zero_grad()
    loss = (x * x).sum()
    (loss + loss * 0.5).backward()
    assert host(x.grad).tolist() == [3.0, 6.0]
    assert x.grad.dtype == dtype


@DTYPES
def test_a_leaf_without_axes_may_be_used_twice_and_over_two_passes(dtype, device):
    x = leaf(3.0, device, dtype)
    for passes in (1, 2):
        (x * x + x).backward()
        assert type(x.grad) is type(x.data)
        assert (x.grad.shape, x.grad.dtype) == ((), dtype)
        assert host(x.grad) == 7 * passes


@DTYPES
def test_a_retained_scalar_adds_up_uses_and_passes(dtype, device):
    x = leaf([1.0, 2.0], device, dtype)
    s = x.sum().retain_grad()
    y = s * s + s
    for passes in (1, 2):
        y.backward(retain_graph=True)
        assert type(s.grad) is type(s.data)
        assert (s.grad.dtype, host(s.grad)) == (dtype, 7 * passes)


def test_a_scalars_gradient_may_be_given_as_a_numpy_scalar():
    x = leaf([1.0, 2.0], "cpu", np.float32)
    x.sum().backward(np.float32(3))
    assert x.grad.tolist() == [3, 3]


# --- memory ---


class Same(Function):
    """Returns change(self, dy), by default dy itself, for each of its inputs."""

    name = "same"

    def __init__(self, change=lambda op, dy: dy):
        self.change = change

    def forward(self, *arrays):
        self.saved = (arrays[0] * 2,)
        return sum(arrays[1:], arrays[0])

    def backward(self, dy):
        return (self.change(self, dy),) * len(self.inputs)


def share(*arrays):
    """Whether any two of the arrays share memory."""
    meets = array_module(arrays[0]).may_share_memory
    return any(meets(a, b) for i, a in enumerate(arrays) for b in arrays[:i])


CHANGES = {
    "dy itself": lambda op, dy: dy,
    "a view of dy": lambda op, dy: dy.reshape(-1).reshape(dy.shape),
    "dy turned": lambda op, dy: dy.swapaxes(0, 1),
    "one number for all": lambda op, dy: array_module(dy).broadcast_to(dy[:1, :1], dy.shape),
    "a saved array": lambda op, dy: op.saved[0],
    "a view of a saved array": lambda op, dy: op.saved[0].reshape(-1).reshape(dy.shape),
    "an input": lambda op, dy: op.inputs[0].data,
    "a view of an input": lambda op, dy: op.inputs[0].data.reshape(-1).reshape(dy.shape),
    "one new array": lambda op, dy: dy * 2,
    "one new array in another order": lambda op, dy: (dy * 2).swapaxes(0, 1),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@in_both_dtypes
@pytest.mark.usefixtures("current")
def test_gradients_of_leaves_share_no_memory_whatever_an_op_returns(change, dtype, device):
    a, b = (leaf(np.ones((3, 3)), device, dtype) for _ in "ab")
    given = tensor(np.arange(9.0).reshape(3, 3), device, dtype).data
    before = host(given).copy()
    y = Same(change)(a, b)
    y.backward(given, retain_graph=True)
    first = host(a.grad).copy()
    assert not share(a.grad, b.grad, given, a.data, b.data)
    for p in (a, b):
        assert p.grad.flags.c_contiguous
        p.grad[...] = -1
    assert host(given).tolist() == before.tolist()
    for p in (a, b):
        p.zero_grad()
    y.backward(given)
    assert host(a.grad).tolist() == host(b.grad).tolist() == first.tolist()


class Engine:
    """Saved state that knows its backward, with the array to return inside a container."""

    def __init__(self, array):
        self.state = {"parts": [array], "owner": self}

    def backward(self, dy):
        return self.state["parts"][0][...]


class WithEngine(Function):
    name = "with_engine"

    def forward(self, x):
        self.saved = Engine(x * 2)
        return x * 1

    def backward(self, dy):
        return self.saved.backward(dy)


def test_a_gradient_that_views_an_engines_saved_array_is_a_copy_while_the_graph_is_kept(device):
    x = leaf([1.0, 2.0], device, np.float32)
    y = WithEngine()(x)
    with working_on(y.device):
        dy = array_module(y.data).ones_like(y.data)
    y.backward(dy, retain_graph=True)
    (saved,) = saved_arrays(y._node)
    assert not share(x.grad, saved)
    with working_on(x.device):
        x.grad[...] = -1
    x.zero_grad()
    y.backward(dy)
    assert host(x.grad).tolist() == [2, 4]
    assert list(saved_arrays(y._node)) == []  # freed with the graph
    with pytest.raises(GraphError, match="already freed"):
        y.backward(dy)


PASSING_ON = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "reshape": lambda a, b: a.reshape(4, 1) + b.reshape(4, 1),
    "reshape and add": lambda a, b: (a + b).reshape(2, 2).reshape(4),
    "transpose": lambda a, b: (a.reshape(2, 2).T.T + b.reshape(2, 2)).flatten(),
    "getitem": lambda a, b: a[:] + b[0:4],
    "pad": lambda a, b: ops.pad(a, ((0, 0),)) + b,
    "concatenate": lambda a, b: ops.concatenate([a.reshape(1, 4), b.reshape(1, 4)]),
    "where": lambda a, b: ops.where([True] * 4, a, b),
    "to another dtype": lambda a, b: a.astype(a.dtype) + b.astype(np.float64).astype(a.dtype),
    "one times": lambda a, b: a * 1.0 + b / 1.0,
    "dropout of nothing": lambda a, b: ops.dropout(a, 0.0) + b,
}


@pytest.mark.parametrize("build", PASSING_ON.values(), ids=PASSING_ON.keys())
@pytest.mark.usefixtures("current")
def test_no_gradient_shares_memory_with_another_or_with_the_callers(build, device):
    a, b = (leaf(np.ones(4), device, np.float32) for _ in "ab")
    z = build(a, b).retain_grad()
    y = z.reshape(z.shape).retain_grad()
    given = array_module(y.data).ones_like(y.data)
    y.backward(given)
    assert not share(a.grad, b.grad, z.grad, y.grad, given)


def test_a_leaf_that_is_the_root_keeps_a_copy_of_the_gradient_it_is_given(device):
    x = leaf([1.0, 2.0], device, np.float32)
    given = tensor([3.0, 4.0], device, np.float32).data
    x.backward(given)
    assert not share(x.grad, given)
    assert host(x.grad).tolist() == [3, 4]


def test_changing_one_gradient_in_place_does_not_change_another():
    a, b = leaf([1.0], "cpu"), leaf([1.0], "cpu")
    (a + b).sum().backward()
    a.grad *= 10
    assert b.grad.tolist() == [1]


@pytest.mark.parametrize("name", ["alexnet_cifar10", "resnet18_cifar"])
def test_a_training_step_copies_no_gradient(name, monkeypatch):
    copies = []
    copy = autograd._copy
    monkeypatch.setattr(autograd, "_copy", lambda x: copies.append(x.shape) or copy(x))
    model = models.build(name)
    x = gpucnn.tensor(np.zeros((2, *models.input_shape(name)), np.float32))
    ops.cross_entropy(model(x), [1, 2]).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert copies == []
    a, b = leaf([1.0], "cpu"), leaf([1.0], "cpu")
    (a + b).backward()
    assert copies == [(1,), (1,)]  # the count does see copies


def test_a_retained_graph_is_walked_twice_to_the_same_gradients(conv_algorithm, rng):
    conv_algorithm("winograd")  # whose backward overwrites its saved arrays at the last use
    x, w = (leaf(rng.standard_normal((16, 6, 6, 16)), "cpu"), leaf(np.ones((16, 3, 3, 16)), "cpu"))
    y = ops.conv2d(x, w, padding=1)
    dy = rng.standard_normal(y.shape)
    y.backward(dy, retain_graph=True)
    first = [p.grad.copy() for p in (x, w)]
    y.backward(dy)
    for p, once in zip((x, w), first, strict=True):
        np.testing.assert_allclose(p.grad, 2 * once, rtol=1e-12)


def test_last_use_tells_an_op_whether_its_saved_arrays_are_needed_again():
    seen = []

    class Probe(Same):
        def backward(self, dy):
            seen.append(self.last_use)
            return dy

    y = Probe()(leaf([1.0], "cpu"))
    y.backward(retain_graph=True)
    y.backward()
    assert seen == [False, True]


# --- what backward must return ---

WRONG = [
    (lambda dy: dy, GraphError, "op: expected backward to return 2 gradients.*got 1"),
    (lambda dy: (dy, dy, dy), GraphError, "op: expected backward to return 2 gradients.*got 3"),
    (lambda dy: [dy, dy], GraphError, "op: expected backward to return 2 gradients.*got 1"),
    (lambda dy: (dy, [1.0]), GraphError, "op: backward, input 1: expected .* array, got list"),
    (lambda dy: (dy, 1.0), GraphError, "op: backward, input 1: expected .* array, got float"),
    (lambda dy: (gpucnn.Tensor(dy), dy), GraphError, "input 0: expected .* array, got Tensor"),
    (
        lambda dy: (dy, dy[:1]),
        ShapeError,
        r"op: backward, input 1: expected a gradient of shape \(2,\), got \(1,\)",
    ),
    (
        lambda dy: (dy.reshape(2, 1), dy),
        ShapeError,
        r"op: backward, input 0: expected a gradient of shape \(2,\), got \(2, 1\)",
    ),
    (
        lambda dy: (dy, dy.astype(np.float64)),
        DtypeError,
        r"op: backward, input 1: expected .* of float32, got float64\n.*astype\('float32'\)",
    ),
    (lambda dy: (dy.astype(np.int32), dy), DtypeError, "expected .* float32, got int32"),
]


@pytest.mark.parametrize(("given", "error", "match"), WRONG)
def test_a_wrong_gradient_is_an_error_that_names_the_op(given, error, match, device):
    class Op(Function):
        name = "op"

        def forward(self, a, b):
            return a + b

        def backward(self, dy):
            return given(dy)

    a, b = (leaf([1.0, 2.0], device, np.float32) for _ in "ab")
    with pytest.raises(error, match=match):
        Op()(a, b).sum().backward()
    assert a.grad is None
    assert b.grad is None


def test_a_gradient_on_another_device_is_an_error_that_names_the_op(gpu):
    class Op(Function):
        name = "op"

        def forward(self, x):
            return x * 1

        def backward(self, dy):
            return dy.get()

    x = leaf([1.0, 2.0], gpu, np.float32)
    with pytest.raises(DeviceMismatch, match=r"op: backward, input 0: .* on cuda.*, got .* on cpu"):
        Op()(x).sum().backward()


def test_backward_may_return_none_and_anything_for_an_input_without_gradient():
    class Op(Function):
        def forward(self, a, b, c):
            return a + b + c

        def backward(self, dy):
            return None, dy, "nobody asked for it"

    a, b = leaf([1.0], "cpu"), leaf([1.0], "cpu")
    Op()(a, b, gpucnn.tensor([1.0])).backward()
    assert a.grad is None
    assert b.grad.tolist() == [1]


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ([1.0, 2.0], GraphError, "backward: expected a gradient as an array, got list"),
        (np.ones(2), DtypeError, "backward: expected a gradient of float32, got float64"),
        (np.ones((2, 1), np.float32), ShapeError, r"expected a gradient of shape \(2,\)"),
    ],
)
def test_a_given_gradient_must_match_the_tensor(given, error, match):
    x = leaf([1.0, 2.0], "cpu", np.float32)
    for y in (x, x * 2.0):
        with pytest.raises(error, match=match):
            y.backward(given)
    assert x.grad is None


def test_an_array_of_a_subclass_may_be_a_gradient(tmp_path):
    memory = np.memmap(tmp_path / "x", np.float32, "w+", shape=(2,))
    x = gpucnn.Tensor(memory, requires_grad=True)
    (x * x + x).sum().backward()
    assert x.grad.tolist() == [1, 1]


def test_a_frozen_leaf_keeps_the_gradient_it_has(device):
    a, b = leaf([2.0], device), leaf([3.0], device)
    (a * b).sum().backward()
    a.requires_grad = False
    (a * b).sum().backward()
    assert host(a.grad).tolist() == [3]
    assert host(b.grad).tolist() == [4]
