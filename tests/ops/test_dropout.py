"""dropout and the random numbers behind it."""

import inspect

import numpy as np
import pytest

import gpucnn
from gpucnn import random
from gpucnn.errors import ArgumentError
from gpucnn.ops import dropout
from gpucnn.ops.dropout import _masked


@pytest.fixture
def x():
    return gpucnn.tensor(np.ones((200, 500), np.float32), requires_grad=True)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_keeps_its_share_and_the_mean(x, p):
    y = dropout(x, p, generator=np.random.default_rng(0)).data
    kept = y != 0
    assert kept.mean() == pytest.approx(1 - p, abs=0.01)
    np.testing.assert_allclose(y[kept], 1 / (1 - p), rtol=1e-4)
    assert y.dtype == np.float32


def test_the_gradient_passes_where_the_value_passed(x):
    y = dropout(x, 0.3)
    y.backward(np.full(x.shape, 2, np.float32))
    np.testing.assert_array_equal(x.grad, 2 * y.data)
    assert x.grad.dtype == np.float32


def test_does_nothing_outside_training_or_for_p_0(x):
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0.0) is x


def test_the_same_seed_gives_the_same_mask_for_any_number_of_threads(x):
    before, masks = gpucnn.get_num_threads(), []
    for threads in (1, 3):
        gpucnn.set_num_threads(threads)
        gpucnn.manual_seed(7)
        masks.append(dropout(x, 0.5).data)
    gpucnn.set_num_threads(before)
    np.testing.assert_array_equal(*masks)
    assert (dropout(x, 0.5).data != masks[0]).any()  # the generator went on


def test_the_state_of_the_generator_can_be_kept_and_put_back(x):
    gpucnn.manual_seed(1)
    dropout(x, 0.5)
    state = random.get_state()
    first = dropout(x, 0.5).data
    gpucnn.manual_seed(2)
    random.set_state(state)
    np.testing.assert_array_equal(dropout(x, 0.5).data, first)


def test_a_kept_state_does_not_follow_the_generator(x):
    gpucnn.manual_seed(1)
    state = random.get_state()
    first = dropout(x, 0.5).data
    random.set_state(state)
    np.testing.assert_array_equal(dropout(x, 0.5).data, first)


def test_shape_and_order_of_the_input_do_not_matter():
    values = np.arange(1, 61, dtype=np.float64).reshape(3, 4, 5)
    y = [
        dropout(gpucnn.tensor(v), 0.5, generator=np.random.default_rng(0)).data
        for v in (values, np.asfortranarray(values))
    ]
    np.testing.assert_array_equal(*y)
    assert dropout(gpucnn.tensor(values[:0]), 0.5).shape == (0, 4, 5)


def test_numpy_half_equals_the_array_half():
    rng = np.random.default_rng(0)
    x, keep = rng.standard_normal((7, 9)), rng.random((7, 9)) > 0.5
    np.testing.assert_array_equal(_masked.cpu(x, keep, 2.0), _masked.cuda(x, keep, 2.0))
    assert inspect.signature(_masked.cpu) == inspect.signature(_masked.cuda)


@pytest.mark.parametrize("p", [1.0, -0.1, float("nan")])
def test_mistakes_are_named(x, p):
    with pytest.raises(ArgumentError, match=r"\[0, 1\)"):
        dropout(x, p)
