"""Every op inside random graphs, against PyTorch: values, and gradients of leaves and results."""

import numpy as np
import pytest
from devices import in_both_dtypes
from hypothesis import given, settings
from hypothesis import strategies as st
from random_graphs import OPS, check

import gpucnn
from gpucnn import ops

NO_OPS = {"get_conv_algorithm", "set_conv_algorithm"}  # settings, not ops
STEPS = st.tuples(st.sampled_from(sorted(OPS)), st.integers(0, 9999))


@pytest.fixture(scope="module")
def _torch():
    """PyTorch, with one thread as gpucnn: more would only wait for each other over tiny arrays."""
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    before = gpucnn.get_num_threads(), torch.get_num_threads()
    gpucnn.set_num_threads(1)
    torch.set_num_threads(1)
    yield
    gpucnn.set_num_threads(before[0])
    torch.set_num_threads(before[1])


def test_every_public_op_is_in_the_random_graphs():
    assert set(OPS) == set(ops.__all__) - NO_OPS


@pytest.mark.usefixtures("_torch")
@in_both_dtypes
@pytest.mark.parametrize("name", OPS)
def test_an_op_in_the_middle_of_a_graph_gives_pytorchs_values_and_gradients(name, dtype):
    others = sorted(OPS)
    for seed in range(6):
        rng = np.random.default_rng([seed, *name.encode()])
        around = [(others[i], int(rng.integers(10_000))) for i in rng.integers(len(others), size=4)]
        check(dtype, [*around[:2], (name, seed), *around[2:], (name, seed + 100)], seed)


@pytest.mark.usefixtures("_torch")
@in_both_dtypes
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.lists(STEPS, min_size=2, max_size=10), st.integers(0, 9999))
def test_random_graphs_give_pytorchs_values_and_gradients(dtype, program, seed):
    check(dtype, program, seed)
