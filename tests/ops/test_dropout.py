"""dropout and the random numbers behind it."""

import inspect

import numpy as np
import pytest
from devices import backward, host, in_both_dtypes, leaf, tensor

import gpucnn
from gpucnn import random
from gpucnn.errors import ArgumentError
from gpucnn.ops import dropout
from gpucnn.ops.dropout import _BlockedMask, _forward, _Mask


@pytest.fixture
def x(device):
    return leaf(np.ones((200, 500), np.float32), device)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_keeps_a_share_of_1_minus_p_and_the_mean(x, p):
    y = host(dropout(x, p, generator=np.random.default_rng(0)))
    kept = y != 0
    assert kept.mean() == pytest.approx(1 - p, abs=0.01)
    np.testing.assert_allclose(y[kept], 1 / (1 - p), rtol=1e-4)
    assert y.dtype == np.float32


def test_the_gradient_passes_where_the_value_passed(x):
    y = dropout(x, 0.3)
    backward(y, np.full(x.shape, 2))
    np.testing.assert_array_equal(host(x.grad), 2 * host(y))
    assert x.grad.dtype == np.float32


def test_returns_x_itself_outside_training_and_for_p_0(x):
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0.0) is x


def test_the_same_seed_gives_the_same_mask_for_any_number_of_threads(x, threads):
    masks = []
    for count in (1, 3):
        threads(count)
        gpucnn.manual_seed(7)
        masks.append(host(dropout(x, 0.5)))
    np.testing.assert_array_equal(*masks)
    assert (host(dropout(x, 0.5)) != masks[0]).any()  # the generator has advanced


def test_the_state_of_the_generator_can_be_saved_and_restored(x):
    gpucnn.manual_seed(1)
    dropout(x, 0.5)
    state = random.get_state()
    first = host(dropout(x, 0.5))
    gpucnn.manual_seed(2)
    random.set_state(state)
    np.testing.assert_array_equal(host(dropout(x, 0.5)), first)


def test_a_saved_state_does_not_advance_with_the_generator(x):
    gpucnn.manual_seed(1)
    state = random.get_state()
    first = host(dropout(x, 0.5))
    random.set_state(state)
    np.testing.assert_array_equal(host(dropout(x, 0.5)), first)


@pytest.mark.parametrize("bits", [np.random.PCG64, np.random.Philox])
@in_both_dtypes
def test_shape_order_and_device_of_the_input_do_not_matter(bits, dtype, device):
    values = np.arange(1, 61, dtype=dtype).reshape(3, 4, 5)
    y = [
        host(dropout(tensor(v, place), 0.5, generator=np.random.Generator(bits(0))))
        for v, place in ((values, "cpu"), (values, device), (np.asfortranarray(values), device))
    ]
    np.testing.assert_array_equal(y[1], y[0])
    np.testing.assert_array_equal(y[2], y[0])
    assert y[1].dtype == dtype
    assert dropout(tensor(values[:0], device), 0.5).shape == (0, 4, 5)


def generators(counter: int) -> list[np.random.Generator]:
    return [np.random.Generator(np.random.Philox(key=9, counter=counter)) for _ in range(2)]


# The second counter carries into its highest word after a few draws, the third wraps to zero.
@pytest.mark.parametrize("counter", [0, (1 << 192) - 2, (1 << 256) - 2])
def test_masks_on_a_gpu_equal_those_on_the_cpu_after_any_earlier_draws(counter, gpu):
    mine, theirs = generators(counter)
    for number, size in enumerate((1, 3, 4, 5, 16, 2, 63, 64, 65, 8, 4097, 7)):
        x = np.ones(size, np.float32)
        on_cpu = dropout(gpucnn.tensor(x), 0.3, True, theirs)
        np.testing.assert_array_equal(host(dropout(tensor(x, gpu), 0.3, True, mine)), on_cpu.data)
        if number % 3 == 0:  # leaves half of a 64-bit number in the generators
            assert mine.integers(9, dtype=np.uint32) == theirs.integers(9, dtype=np.uint32)
        assert mine.random() == theirs.random()


def test_dropped_elements_are_zero_on_a_gpu_even_where_x_was_infinite(gpu):
    y = host(dropout(tensor(np.full(64, np.inf, np.float32), gpu), 0.5, True, generators(0)[0]))
    assert set(y.tolist()) == {0.0, np.inf}


def test_numpy_half_equals_the_array_half():
    rng = np.random.default_rng(0)
    x, keep = rng.standard_normal((7, 9)), rng.random((7, 9)) > 0.5
    np.testing.assert_array_equal(_BlockedMask(keep, 2.0).apply(x), _Mask(keep, 2.0).apply(x))
    halves = [list(inspect.signature(half).parameters) for half in (_forward.cpu, _forward.cuda)]
    assert halves[0] == halves[1]


@pytest.mark.parametrize("p", [1.0, -0.1, float("nan")])
def test_mistakes_are_named(x, p):
    with pytest.raises(ArgumentError, match=r"\[0, 1\)"):
        dropout(x, p)
