"""The dropout kernel draws NumPy's numbers, and leaves the generator where drawing would have."""

import numpy as np
import pytest
from kernel_cases import on_gpu

import gpucnn
from gpucnn import ops

pytestmark = pytest.mark.usefixtures("compiler")

SIZES = (1, 3, 4, 5, 16, 2, 63, 64, 65, 8, 4097, 7)


def generators(counter: int = 0) -> list[np.random.Generator]:
    return [np.random.Generator(np.random.Philox(key=9, counter=counter)) for _ in range(2)]


# The second counter carries into its highest word after a few draws, the third wraps to zero.
@pytest.mark.parametrize("counter", [0, (1 << 192) - 2, (1 << 256) - 2])
def test_masks_are_the_cpus_whatever_was_drawn_before(counter: int) -> None:
    mine, theirs = generators(counter)
    for number, size in enumerate(SIZES):
        x = np.ones(size, np.float32)
        on_cpu = ops.dropout(gpucnn.tensor(x), 0.3, True, theirs)
        np.testing.assert_array_equal(ops.dropout(on_gpu(x), 0.3, True, mine).numpy(), on_cpu.data)
        if number % 3 == 0:  # half of a 64-bit number is left over in the generators
            assert mine.integers(9, dtype=np.uint32) == theirs.integers(9, dtype=np.uint32)
        assert mine.random() == theirs.random()


def test_backward_draws_the_same_mask_again() -> None:
    x = on_gpu(np.ones((5, 7), np.float32), gradient=True)
    y = ops.dropout(x, 0.5, True, generators()[0])
    y.backward(on_gpu(np.ones((5, 7), np.float32)).data)
    np.testing.assert_array_equal(x.grad.get(), y.numpy())
    assert set(np.unique(y.numpy())) == {0, 2}


def test_a_generator_other_than_philox_gives_the_cpus_mask_too() -> None:
    x = np.ones(100, np.float32)
    masks = [
        ops.dropout(tensor, 0.3, True, np.random.default_rng(4)).numpy()
        for tensor in (on_gpu(x), gpucnn.tensor(x))
    ]
    np.testing.assert_array_equal(*masks)


def test_what_is_dropped_is_zero_even_where_x_was_infinite() -> None:
    y = ops.dropout(on_gpu(np.full(64, np.inf, np.float32)), 0.5, True, generators()[0]).numpy()
    assert set(y.tolist()) == {0.0, np.inf}
