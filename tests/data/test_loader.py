import gc
import itertools
import json
import threading
import time
import warnings

import numpy as np
import pytest

import gpucnn
from gpucnn import data
from gpucnn.errors import CheckpointError, DataError, ShapeError


def numbered(n, classes=7):
    """Images whose first pixel is their index."""
    images = np.zeros((n, 8, 8, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(n)
    return data.Dataset(images, np.arange(n) % classes, tuple("abcdefg"[:classes]))


class Items:
    """The images of numbered(), loaded one by one."""

    def __init__(self, n):
        self.all = numbered(n)
        self.threads = set()

    def __len__(self):
        return len(self.all)

    def __getitem__(self, index):
        self.threads.add(threading.current_thread().name)
        return self.all[index]


def numbers(batches):
    return [images[:, 0, 0, 0].tolist() for images, _ in batches]


def flat(lists):
    return list(itertools.chain.from_iterable(lists))


def noisy(images, generator):
    return images + generator.random(images.shape, np.float32)


def assert_same(batches, others):
    assert len(batches) == len(others)
    for (images, labels), (other_images, other_labels) in zip(batches, others, strict=True):
        np.testing.assert_array_equal(images, other_images)
        np.testing.assert_array_equal(labels, other_labels)


def loader_threads():
    return [t for t in threading.enumerate() if t.name.startswith("gpucnn-loader")]


# --- batches ---


@pytest.mark.parametrize("prefetch", [0, 1, 2, 5])
@pytest.mark.parametrize("workers", [1, 3])
def test_batches_come_in_order_whatever_is_prefetched(prefetch, workers):
    loader = data.DataLoader(numbered(11), 4, prefetch=prefetch, num_workers=workers)
    assert numbers(loader) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]


@pytest.mark.parametrize(
    ("n", "drop_last", "sizes"),
    [(8, False, [4, 4]), (9, False, [4, 4, 1]), (9, True, [4, 4]), (3, False, [3])],
)
def test_last_batch_is_kept_or_dropped_and_len_says_so(n, drop_last, sizes):
    loader = data.DataLoader(numbered(n), 4, drop_last=drop_last)
    assert [len(labels) for _, labels in loader] == sizes
    assert len(loader) == len(sizes)


def test_shuffling_yields_every_image_once_in_a_new_order_each_epoch():
    loader = data.DataLoader(numbered(50), 8, shuffle=True)
    first, second = (flat(numbers(loader)) for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(50))
    assert len({tuple(range(50)), tuple(first), tuple(second)}) == 3


def test_labels_stay_with_their_images():
    for images, labels in data.DataLoader(numbered(50), 8, shuffle=True):
        np.testing.assert_array_equal(images[:, 0, 0, 0] % 7, labels)
        assert labels.dtype == np.int64


def test_the_order_depends_only_on_the_seed():
    def order(seed):
        return numbers(data.DataLoader(numbered(50), 8, shuffle=True, seed=seed))

    assert order(3) == order(3)
    assert order(3) != order(4)
    np.random.seed(0)  # noqa: NPY002  must have no influence
    assert order(3) == order(3)
    assert order(np.random.default_rng(5)) == order(np.random.default_rng(5))


def test_a_batch_is_a_copy_of_the_data_set():
    dataset = numbered(4)
    for images, labels in data.DataLoader(dataset, 4):
        images += 1
        labels += 1
    np.testing.assert_array_equal(dataset.images, numbered(4).images)
    np.testing.assert_array_equal(dataset.labels, numbered(4).labels)


def test_item_data_sets_give_the_same_batches_as_arrays():
    arguments = {"shuffle": True, "transform": noisy, "num_workers": 2}
    items = Items(23)
    assert_same(
        list(data.DataLoader(items, 5, **arguments)),
        list(data.DataLoader(items.all, 5, **arguments)),
    )
    assert all(name.startswith("gpucnn-loader") for name in items.threads)


def test_items_that_are_none_are_left_out_and_an_empty_batch_too():
    class Holes(Items):
        def __getitem__(self, index):
            return None if index in (1, 4, 5, 6, 7) else self.all[index]

    loader = data.DataLoader(Holes(10), 4, transform=noisy)
    assert [np.floor(row).tolist() for row in numbers(loader)] == [[0, 2, 3], [8, 9]]


def test_items_of_two_shapes_in_a_batch_are_an_error():
    class Uneven(Items):
        def __getitem__(self, index):
            return np.zeros((8, 8 + index, 3), np.uint8), 0

    with pytest.raises(ShapeError, match=r"shapes \(8, 8, 3\) and \(8, 9, 3\)"):
        list(data.DataLoader(Uneven(2), 2))


def test_a_loader_with_a_device_yields_tensors():
    loader = data.DataLoader(numbered(5), 4, device="cpu")
    images, labels = next(iter(loader))
    assert isinstance(images, gpucnn.Tensor)
    assert isinstance(labels, gpucnn.Tensor)
    assert (images.shape, labels.shape) == ((4, 8, 8, 3), (4,))
    assert labels.data.dtype == np.int64


# --- resuming ---


@pytest.mark.parametrize("stop", [1, 3, 6, 7, 10, 14])
@pytest.mark.parametrize("prefetch", [0, 3])
def test_resuming_in_the_middle_gives_the_same_bits(stop, prefetch):
    def loader(prefetch=prefetch, seed=9):
        return data.DataLoader(
            numbered(50), 8, shuffle=True, transform=noisy, seed=seed, prefetch=prefetch
        )

    def three_epochs(loader):
        for _ in range(3):
            yield from loader

    unbroken = list(three_epochs(loader()))
    assert len(unbroken) == 21
    stopped = loader()
    batches = three_epochs(stopped)
    for _ in range(stop):
        next(batches)
    state = json.loads(json.dumps(stopped.state_dict()))

    resumed = loader(prefetch=1, seed=0)  # the state also restores the seed
    resumed.load_state_dict(state)
    rest = []
    while resumed.epoch < 3:
        rest += list(resumed)
    assert_same(rest, unbroken[stop:])


def test_the_state_counts_batches_yielded_not_prefetched():
    loader = data.DataLoader(numbered(50), 5, prefetch=4)
    assert (loader.epoch, loader.batch) == (0, 0)
    for count, _ in enumerate(loader, start=1):
        assert (loader.epoch, loader.batch) == (0, count)
    assert (loader.epoch, loader.batch) == (1, 0)


def test_resuming_after_the_last_batch_yields_nothing_more_of_that_epoch():
    loader = data.DataLoader(numbered(10), 5)
    for _ in loader:
        state = loader.state_dict()
    other = data.DataLoader(numbered(10), 5)
    other.load_state_dict(state)
    assert list(other) == []
    assert other.epoch == 1
    assert len(list(other)) == 2


def test_an_epoch_left_early_is_over():
    loader = data.DataLoader(numbered(50), 8, shuffle=True)
    for _ in loader:
        break
    assert sorted(flat(numbers(loader))) == list(range(50))
    assert loader.epoch == 2
    reference = data.DataLoader(numbered(50), 8, shuffle=True)
    list(reference)
    assert loader.state_dict() != reference.state_dict()
    list(reference)
    assert loader.state_dict() == reference.state_dict()


def test_an_epoch_that_was_resumed_and_left_early_is_over_too():
    loader = data.DataLoader(numbered(50), 8, shuffle=True)
    batches = iter(loader)
    next(batches), next(batches)
    state = loader.state_dict()
    second_epoch = numbers(loader)
    resumed = data.DataLoader(numbered(50), 8, shuffle=True)
    resumed.load_state_dict(state)
    next(iter(resumed))
    assert (resumed.epoch, resumed.batch) == (0, 3)
    assert numbers(resumed) == second_epoch
    assert resumed.epoch == 2


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"dataset": numbered(9)}, "images 10, this loader 9"),
        ({"batch_size": 3}, "batch_size 5, this loader 3"),
        ({"shuffle": True}, "shuffle False"),
        ({"drop_last": True}, "drop_last"),
    ],
)
def test_state_of_another_loader_is_refused(change, word):
    state = data.DataLoader(numbered(10), 5).state_dict()
    other = data.DataLoader(**({"dataset": numbered(10), "batch_size": 5} | change))
    with pytest.raises(CheckpointError, match=word):
        other.load_state_dict(state)


@pytest.mark.parametrize(
    "bad",
    [
        {"epoch": -1},
        {"batch": "2"},
        {"seed": None},
        {"epoch": 1.5},
        {"batch": 3},
        {"seed": 2**128},
    ],
)
def test_damaged_state_is_refused(bad):
    loader = data.DataLoader(numbered(10), 5)
    with pytest.raises(CheckpointError, match=r"DataLoader\.(epoch|batch|seed): expected an int"):
        loader.load_state_dict(loader.state_dict() | bad)
    with pytest.raises(CheckpointError):
        loader.load_state_dict({})


def test_a_seed_of_128_bits_is_restored():
    saved = data.DataLoader(numbered(50), 8, shuffle=True, seed=2**128 - 1)
    loader = data.DataLoader(numbered(50), 8, shuffle=True)
    loader.load_state_dict(saved.state_dict())
    assert numbers(loader) == numbers(saved)


# --- threads ---


def test_a_loop_left_early_leaves_no_thread():
    for _ in data.DataLoader(numbered(50), 2, prefetch=3, num_workers=3):
        assert loader_threads()
        break
    assert not loader_threads()


def test_a_loop_ended_by_an_error_leaves_no_thread():
    def failing():
        for _ in data.DataLoader(numbered(50), 2, prefetch=3, num_workers=3):
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    gc.collect()
    assert not loader_threads()


def test_a_finished_loop_leaves_no_thread():
    assert len(list(data.DataLoader(numbered(50), 2, prefetch=3, num_workers=3))) == 25
    assert not loader_threads()


def test_an_iterator_that_is_never_used_starts_no_thread():
    iterator = iter(data.DataLoader(numbered(50), 2))
    assert not loader_threads()
    del iterator


@pytest.mark.parametrize("refusal", [RuntimeError("can't start new thread"), MemoryError()])
@pytest.mark.parametrize("allowed", [0, 1])
def test_no_batch_is_lost_where_the_system_refuses_threads(monkeypatch, refusal, allowed):
    start, started = threading.Thread.start, []

    def limited(thread):
        if len(started) == allowed:
            raise refusal
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    loader = data.DataLoader(numbered(50), 4, prefetch=3, num_workers=3)
    assert flat(numbers(loader)) == list(range(50))
    assert not loader_threads()


def test_prefetching_is_bounded():
    made = []

    def record(images, generator):
        made.append(int(images[0, 0, 0, 0]))
        return images

    loader = data.DataLoader(numbered(100), 1, transform=record, prefetch=3, num_workers=2)
    for handed_out, _ in enumerate(loader, start=1):
        time.sleep(0.001)
        assert len(made) <= handed_out + 3
    assert len(made) == 100


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_error_arrives_at_its_batch_in_the_loop(prefetch):
    def fail_at_five(images, generator):
        if images[0, 0, 0, 0] == 5:
            raise ZeroDivisionError("five")
        return images

    seen = []
    batches = iter(data.DataLoader(numbered(10), 1, transform=fail_at_five, prefetch=prefetch))
    with pytest.raises(ZeroDivisionError, match="five"):
        seen.extend(int(images[0, 0, 0, 0]) for images, _ in batches)
    assert seen == [0, 1, 2, 3, 4]
    assert not loader_threads()


def test_two_loops_over_one_loader_at_once_are_an_error():
    loader = data.DataLoader(numbered(10), 2)
    with pytest.raises(DataError, match="another loop"):
        list(zip(loader, loader, strict=True))
    outer = iter(loader)
    next(outer)
    assert len(list(loader)) == 5
    with pytest.raises(DataError, match="another loop"):
        next(outer)


def test_two_loaders_over_one_data_set_at_once_are_fine():
    dataset = numbered(10)
    pairs = zip(data.DataLoader(dataset, 2), data.DataLoader(dataset, 2), strict=True)
    for (images, _), (other, _) in pairs:
        np.testing.assert_array_equal(images, other)


def test_iterating_gives_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(data.DataLoader(numbered(10), 3, device="cpu"))
