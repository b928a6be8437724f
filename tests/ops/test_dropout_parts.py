"""dropout inside of batch_part: the parts of a batch draw the masks of the whole batch."""

import threading
from itertools import pairwise

import numpy as np
import pytest
from devices import backward, host, leaf, tensor

import gpucnn
from gpucnn import nn, ops
from gpucnn.errors import ArgumentError, ShapeError
from gpucnn.random import BatchPart, batch_part, current_part

GENERATORS = {
    "Philox": lambda: np.random.Generator(np.random.Philox(3)),
    "PCG64": lambda: np.random.Generator(np.random.PCG64(3)),
    "MT19937": lambda: np.random.Generator(np.random.MT19937(3)),
    "Philox at an odd number": lambda: advanced(np.random.Generator(np.random.Philox(3))),
}
ignore_slow = "ignore:.*float16 on a GPU is slow"
every_generator = pytest.mark.parametrize("make", GENERATORS.values(), ids=GENERATORS)


def advanced(generator):
    generator.integers(9, dtype=np.uint32)  # leaves half of a 64-bit number
    generator.random(6)
    return generator


def parts(total, ranks):
    """(start, count) of each rank's slice."""
    starts = [total * rank // ranks for rank in range(ranks + 1)]
    return [(a, b - a) for a, b in pairwise(starts)]


def of_parts(x, p, make, ranks, device, rows=1):
    """The results of all ranks, concatenated, and what each rank's generator draws afterwards."""
    results, following = [], []
    for start, count in parts(len(x) // rows, ranks):
        generator = make()
        mine = x[start * rows : (start + count) * rows] if count else x[:rows]
        with batch_part(start, count, len(x) // rows):
            y = host(ops.dropout(tensor(mine, device), p, True, generator))
        assert y.dtype == x.dtype
        results.append(y if count else y[:0])
        following.append(generator.random())
    return np.concatenate(results), following


@every_generator
@pytest.mark.filterwarnings(ignore_slow)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_masks_of_all_parts_are_that_of_the_whole_batch(make, dtype, device):
    for shape in ((7, 3), (6, 5, 5, 3), (5, 1), (9, 16), (4, 2, 2, 4)):
        x = np.ones(shape, dtype)
        generator = make()
        whole = host(ops.dropout(tensor(x, device), 0.4, True, generator))
        after = generator.random()
        for ranks in (2, 3, 4):
            together, following = of_parts(x, 0.4, make, ranks, device)
            np.testing.assert_array_equal(together, whole)
            assert following == [after] * ranks


@every_generator
def test_an_image_may_have_several_rows(make, device):
    x = np.ones((5 * 3, 7), np.float32)
    generator = make()
    whole = host(ops.dropout(tensor(x, device), 0.5, True, generator))
    together, following = of_parts(x, 0.5, make, 2, device, rows=3)
    np.testing.assert_array_equal(together, whole)
    assert following == [generator.random()] * 2


@every_generator
def test_a_filler_advances_the_generator_as_an_image_does(make, device):
    x = np.ones((2, 7), np.float32)  # fewer images than ranks
    generator = make()
    whole = host(ops.dropout(tensor(x, device), 0.5, True, generator))
    together, following = of_parts(x, 0.5, make, 5, device)
    np.testing.assert_array_equal(together, whole)
    last = make()
    with batch_part(2, 0, 2):
        assert host(ops.dropout(tensor(x[:1], device), 0.5, True, last)).shape == (1, 7)
    assert [*following, last.random()] == [generator.random()] * 6


def test_the_gradient_passes_where_the_value_passed(device):
    x = leaf(np.ones((3, 7), np.float32), device)
    with batch_part(2, 3, 8):
        y = ops.dropout(x, 0.5)
    backward(y, np.full(x.shape, 2))  # outside of the block
    np.testing.assert_array_equal(host(x.grad), 2 * host(y))


def test_a_network_with_several_dropouts_needs_no_change(device):
    def model():
        gpucnn.manual_seed(5)
        return nn.Sequential(nn.Dropout(0.3), nn.Flatten(), nn.Dropout(0.6)).to(device)

    x = np.ones((5, 3, 3, 3), np.float32)
    whole = host(model()(tensor(x, device)))
    together = []
    for start, count in parts(5, 3):
        with batch_part(start, count, 5):
            together.append(host(model()(tensor(x[start : start + count], device))))
    np.testing.assert_array_equal(np.concatenate(together), whole)


def test_blocks_of_the_cpu_and_of_the_kernel_draw_the_same_parts(gpu):
    x = np.ones((11, 1501), np.float32)  # offsets that are no multiple of four numbers
    for start, count in ((0, 4), (1, 5), (3, 7), (10, 1)):
        with batch_part(start, count, 11):
            mine, theirs = (
                host(ops.dropout(tensor(x[:count], place), 0.3, True, GENERATORS["Philox"]()))
                for place in (gpu, "cpu")
            )
        np.testing.assert_array_equal(mine, theirs)


def test_a_part_holds_for_its_thread_and_its_block_alone():
    seen = []
    with batch_part(1, 2, 6):
        thread = threading.Thread(target=lambda: seen.append(current_part()))
        thread.start()
        thread.join()
        with batch_part(0, 3, 3):
            seen.append(current_part())
        part = current_part()
        assert part == BatchPart(1, 2, 6)
        with pytest.raises(ZeroDivisionError), batch_part(0, 1, 2):
            raise ZeroDivisionError
        assert current_part() == part
    assert seen == [None, None]
    assert current_part() is None


@pytest.mark.parametrize("part", [(-1, 1, 2), (0, -1, 2), (1, 2, 2), (0, 0, 0)])
def test_a_part_outside_of_its_batch_is_refused(part):
    with pytest.raises(ArgumentError, match="a part of a batch"), batch_part(*part):
        pass


def test_an_input_without_the_images_of_the_part_is_refused(device):
    for shape in ((7, 4), ()):
        x = tensor(np.ones(shape, np.float32), device)
        with batch_part(0, 3, 6), pytest.raises(ShapeError, match=r"the 3 images of batch_part"):
            ops.dropout(x, 0.5)
        with batch_part(0, 3, 6):
            assert ops.dropout(x, 0.5, training=False) is x


def test_outside_of_a_part_the_numbers_have_not_changed(device):
    """Fixed numbers: a checkpoint of an earlier version must go on with the same masks."""
    generator = np.random.Generator(np.random.Philox(key=5))
    kept = host(ops.dropout(tensor(np.ones(24, np.float32), device), 0.5, True, generator)) != 0
    draws = np.random.Generator(np.random.Philox(key=5)).bit_generator.random_raw(6)
    np.testing.assert_array_equal(kept, draws.astype("<u8").view("<u2") >= 1 << 15)
