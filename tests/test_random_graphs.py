"""Every op inside random graphs against PyTorch: values, and gradients of leaves and results."""

import numpy as np
import pytest
from devices import BOUNDS, in_both_dtypes
from hypothesis import given, settings
from hypothesis import strategies as st
from random_graphs import Graph
from random_ops import OPS

import gpucnn
from gpucnn import ops

NO_OPS = {  # arguments, settings, the long name of cross_entropy, and comparisons
    "MaxPool",
    "eq",
    "ge",
    "get_conv_algorithm",
    "gt",
    "le",
    "lt",
    "ne",
    "set_conv_algorithm",
    "softmax_cross_entropy",
}
STEPS = st.tuples(st.sampled_from(sorted(OPS)), st.integers(0, 9999))


@pytest.fixture(scope="module")
def _torch():
    """PyTorch and gpucnn with one thread each: the arrays are too small for more."""
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    before = gpucnn.get_num_threads(), torch.get_num_threads()
    gpucnn.set_num_threads(1)
    torch.set_num_threads(1)
    yield
    gpucnn.set_num_threads(before[0])
    torch.set_num_threads(before[1])


def check(dtype, program, seed):
    """Grow the graph of `program`; compare every result and gradient over two backward passes."""
    graph = Graph(dtype, seed)
    for name, choices in program:
        graph.grow(name, OPS[name], choices)
    for y in graph.results:
        y.ours.retain_grad()
        y.theirs.retain_grad()
    loss, expected = None, None
    graph.rng = np.random.default_rng(seed)
    for y in graph.results:
        weights = graph.constant(graph.rng.uniform(-1, 1, y.shape))
        ours, theirs = (y.ours * weights.ours).mean(), (y.theirs * weights.theirs).mean()
        # The scalar result is used twice.
        loss = ours if loss is None else loss + ours * (0.5 * loss)
        expected = theirs if expected is None else expected + theirs * (0.5 * expected)
    for _ in range(2):
        loss.backward(retain_graph=True)
        expected.backward(retain_graph=True)
    for (name, _), y in zip(program, graph.results, strict=True):
        _compare(f"the result of {name}", y.ours.data, y.value, graph.dtype)
    named = [(f"result of {name}", y) for (name, _), y in zip(program, graph.results, strict=True)]
    named += [(f"leaf {i} {p.shape}", p) for i, p in enumerate(graph.leaves)]
    for name, p in named:
        if p.theirs.grad is None:
            assert p.ours.grad is None, name
            continue
        assert p.ours.grad.dtype == p.ours.dtype, name
        rougher = min(graph.dtype, p.ours.dtype, key=lambda dtype: dtype.itemsize)
        _compare(f"the gradient of the {name}", p.ours.grad, p.theirs.grad.numpy(), rougher)


def _compare(what, ours, theirs, dtype):
    assert ours.shape == theirs.shape, what
    error = np.abs(ours - theirs).max(initial=0) / max(1, np.abs(theirs).max(initial=0))
    assert error <= BOUNDS[np.dtype(dtype)], f"{what} is off by {error:.1e}"


def test_every_public_op_is_in_the_random_graphs():
    assert set(OPS) == set(ops.__all__) - NO_OPS


@pytest.mark.usefixtures("_torch")
@in_both_dtypes
@pytest.mark.parametrize("name", OPS)
def test_an_op_inside_a_graph_has_pytorchs_values_and_gradients(name, dtype):
    others = sorted(OPS)
    for seed in range(5):
        rng = np.random.default_rng([seed, *name.encode()])
        around = [(others[i], int(rng.integers(10_000))) for i in rng.integers(len(others), size=4)]
        check(dtype, [*around[:2], (name, seed), *around[2:], (name, seed + 100)], seed)


@pytest.mark.usefixtures("_torch")
@in_both_dtypes
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.lists(STEPS, min_size=2, max_size=10), st.integers(0, 9999))
def test_random_graphs_have_pytorchs_values_and_gradients(dtype, program, seed):
    check(dtype, program, seed)
