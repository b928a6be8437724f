"""Inference caches the transformed filters of a weight until the weight changes."""

import threading

import numpy as np
import pytest

from gpucnn import Tensor, nn, no_grad, ops, optim, tensor
from gpucnn.ops.conv2d import winograd_filters


@pytest.fixture(autouse=True)
def _winograd_for_all(conv_algorithm):
    conv_algorithm("winograd")


@pytest.fixture
def count(monkeypatch):
    """How many times filters were transformed for a forward pass."""
    calls = []
    transposed = winograd_filters.transposed

    def counting(weight, kg):
        calls.append(weight.shape)
        return transposed(weight, kg)

    monkeypatch.setattr(winograd_filters, "transposed", counting)
    return lambda: len(calls)


def _draw(rng) -> tuple[Tensor, Tensor]:
    x = tensor(rng.standard_normal((2, 8, 8, 16), np.float32))
    return x, tensor(rng.standard_normal((32, 3, 3, 16), np.float32), requires_grad=True)


def _infer(x, weight, calls=1):
    with no_grad():
        return [ops.conv2d(x, weight, padding=1).data for _ in range(calls)]


def test_unchanged_filters_are_transformed_at_most_twice(rng, count):
    x, weight = _draw(rng)
    results = _infer(x, weight, 4)
    assert count() == 2  # the second result is cached
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def _through_data(weight, values):
    weight.data[...] = values


def _set_data(weight, values):
    weight.data = values


def _step(weight, values):
    weight.grad = weight.data - values
    optim.SGD([weight], lr=1.0).step()


def _load(weight, values):
    layer = nn.Conv2d(16, 32, 3, bias=False)
    layer.weight = weight
    layer.load_state_dict({"weight": values})


@pytest.mark.parametrize("write", [_through_data, _set_data, _step, _load])
def test_a_changed_weight_is_transformed_again(write, rng, count):
    x, weight = _draw(rng)
    weight = nn.Parameter(weight.data)
    _infer(x, weight, 3)
    before = count()
    write(weight, rng.standard_normal(weight.shape, np.float32))
    changed = _infer(x, weight, 3)
    assert count() == before + 2
    fresh = _infer(x, tensor(weight.data.copy()))[0]
    for result in changed:
        np.testing.assert_array_equal(result, fresh)


def test_a_new_tensor_of_a_changed_array_gives_fresh_results(rng):
    x, weight = _draw(rng)
    array = weight.data.copy()
    _infer(x, tensor(array), 3)
    array[5] = 0
    np.testing.assert_array_equal(
        _infer(x, tensor(array), 3)[-1], _infer(x, tensor(array.copy()))[0]
    )


def test_training_caches_nothing_and_frees_what_inference_cached(rng, count):
    x, weight = _draw(rng)
    for _ in range(3):
        ops.conv2d(x, weight, padding=1).sum().backward()
    assert count() == 3
    assert not weight.cache()
    _infer(x, weight, 3)
    assert [u_t.nbytes for u_t in weight.cache().values()] == [4 * weight.data.nbytes]


def test_the_first_training_step_frees_what_inference_cached(rng):
    x, weight = _draw(rng)
    _infer(x, weight, 3)
    assert weight.cache()
    ops.conv2d(x, weight, padding=1)
    assert not weight.cache()


def test_the_result_of_an_op_is_not_cached(rng, count):
    x, weight = _draw(rng)
    doubled = weight * 2
    _infer(x, doubled, 3)
    assert count() == 3
    assert not doubled.cache()


def test_tiles_of_two_sizes_are_cached_separately(rng, count):
    x, weight = _draw(rng)
    small = tensor(x.data[:, :2, :2].copy())  # one tile of 2 x 2; x has tiles of 4 x 4
    for _ in range(4):
        _infer(x, weight)
        _infer(small, weight)
    assert count() == 4


def test_threads_that_share_a_weight_get_the_same_result(rng):
    x, weight = _draw(rng)
    expected = _infer(x, weight)[0]
    weight.data = weight.data.copy()  # nothing is cached
    results = []

    def infer():
        results.extend(_infer(x, weight, 5))

    workers = [threading.Thread(target=infer) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 20
    for result in results:
        np.testing.assert_array_equal(result, expected)
