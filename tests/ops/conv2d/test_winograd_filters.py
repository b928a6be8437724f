"""The filters' transforms that are kept between calls without gradients."""

import gc

import numpy as np
import pytest

from gpucnn import Tensor, no_grad, ops, tensor
from gpucnn.ops.conv2d import winograd_filters as _winograd_filters


@pytest.fixture(autouse=True)
def _winograd_for_all(conv_algorithm):
    conv_algorithm("winograd")


@pytest.fixture
def count(monkeypatch):
    """How many transforms of transposed filters there were."""
    calls = []
    transposed = _winograd_filters.transposed

    def counting(w, kg):
        calls.append(w.shape)
        return transposed(w, kg)

    monkeypatch.setattr(_winograd_filters, "transposed", counting)
    return lambda: len(calls)


def _layer(rng) -> tuple[Tensor, Tensor]:
    x = tensor(rng.standard_normal((2, 8, 8, 16), np.float32))
    return x, tensor(rng.standard_normal((32, 3, 3, 16), np.float32), requires_grad=True)


def test_filters_that_stay_are_transformed_twice_at_most(rng, count):
    x, w = _layer(rng)
    with no_grad():
        results = [ops.conv2d(x, w, padding=1).data for _ in range(4)]
    assert count() == 2  # the second time they are kept
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("value", [np.float32(3.0), np.float32(-0.0), np.float32(np.nan)])
def test_filters_that_anybody_changed_are_transformed_again(rng, count, value):
    x, w = _layer(rng)
    w.data[5, 1, 1, 7] = 0
    with no_grad():
        for _ in range(3):
            ops.conv2d(x, w, padding=1)
        w.data[5, 1, 1, 7] = value  # behind the tensor's back
        changed = [ops.conv2d(x, w, padding=1).data for _ in range(2)]
        assert count() == 3
        fresh = ops.conv2d(x, tensor(w.data.copy()), padding=1).data
    for result in changed:
        np.testing.assert_array_equal(result, fresh)


def test_nothing_is_kept_for_training_or_of_filters_that_are_gone(rng, count):
    before = len(_winograd_filters._known)
    x, w = _layer(rng)
    for _ in range(3):
        ops.conv2d(x, w, padding=1).sum().backward()
    assert count() == 3
    assert len(_winograd_filters._known) == before
    with no_grad():
        for _ in range(3):
            ops.conv2d(x, w, padding=1)
    assert len(_winograd_filters._known) == before + 1
    ops.conv2d(x, w, padding=1)  # a step of training: they will change
    assert len(_winograd_filters._known) == before
    for calls in (1, 3):
        x, w = _layer(rng)
        with no_grad():
            for _ in range(calls):
                ops.conv2d(x, w, padding=1)
        assert len(_winograd_filters._known) == before + 1
        del w
        gc.collect()
        assert len(_winograd_filters._known) == before


def test_tiles_of_two_sizes_have_transforms_of_their_own(rng, count):
    x, w = _layer(rng)
    small = tensor(x.data[:, :2, :2].copy())  # one tile of 2 x 2, the others are of 4 x 4
    with no_grad():
        for _ in range(4):
            ops.conv2d(x, w, padding=1)
            ops.conv2d(small, w, padding=1)
    assert count() == 4
