"""Parts of a loader: what the ranks of one training run load is what one process would load."""

import itertools
import json
import threading

import numpy as np
import pytest

from gpucnn import data
from gpucnn.data.loader import DataLoader
from gpucnn.errors import ArgumentError, DataError, ShapeError

RANKS = (1, 2, 3, 4, 7)
NORMALIZE = data.Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.1))
CROP_AND_FLIP = [data.RandomCrop(8, 2), data.RandomHorizontalFlip()]
COLORS = np.array([[0.9, 0.4, 0.1], [-0.2, 0.3, 0.1], [0.05, 0.01, -0.1]], np.float32)


def own(images, generator):
    """A transform for which a part is not enough: it mixes the images of a batch."""
    others = generator.permutation(len(images))
    return (images + images[others].astype(np.float32)) / 2 + generator.random()


class OwnCrop(data.RandomCrop):
    def __call__(self, images, generator):
        return super().__call__(images, generator)[::-1]


class Darken(data.PerImageTransform):
    def transform_part(self, images, generator, rows, total):
        return images * generator.random((total, 1, 1, 1), np.float32)[rows]


TRANSFORMS = {
    "none": None,
    "crop, flip, normalize": data.Compose([*CROP_AND_FLIP, NORMALIZE]),
    "colors": data.Compose([*CROP_AND_FLIP, data.ColorNoise(COLORS), NORMALIZE]),
    "nested": data.Compose([data.Compose(CROP_AND_FLIP), data.Compose([NORMALIZE])]),
    "alternating flip": data.Compose([CROP_AND_FLIP[0], data.AlternatingFlip(), NORMALIZE]),
    "alternating flip, then a function": data.Compose([data.AlternatingFlip(), own]),
    "a function": own,
    "a function in the middle": data.Compose([CROP_AND_FLIP[1], own, CROP_AND_FLIP[0], NORMALIZE]),
    "a subclass with a call of its own": data.Compose([OwnCrop(8, 1), NORMALIZE]),
    "a subclass with a part of its own": data.Compose([Darken(), *CROP_AND_FLIP]),
}


def random_set(n=29):
    rng = np.random.default_rng(4)
    return data.Dataset(rng.integers(0, 256, (n, 8, 8, 3), np.uint8), np.arange(n) % 2, ("a", "b"))


class Items:
    """A data set that leaves out some images, and counts those that were loaded."""

    def __init__(self, n, without=()):
        self.all, self.without, self.loaded = random_set(n), without, []

    def __len__(self):
        return len(self.all)

    def __getitem__(self, index):
        self.loaded.append(index)
        return None if index in self.without else self.all[index]


def host(batch):
    return tuple(x if isinstance(x, np.ndarray) else x.numpy() for x in batch)


def batches(loader, epochs=1):
    """(images, labels, whether a filler) of each batch."""
    return [(*host(batch), loader.filled) for _ in range(epochs) for batch in loader]


def together(parts):
    """The parts' batches, each a list as from batches(), one rank after the other."""
    for of_ranks in zip(*parts, strict=True):
        real = [batch for batch in of_ranks if not batch[2]]
        assert all(len(labels) == 1 for _, labels, filled in of_ranks if filled)
        yield [np.concatenate(arrays) for arrays in list(zip(*real, strict=True))[:2]]


def assert_parts_equal(whole, parts):
    found = list(together(parts))
    assert len(found) == len(whole)
    for (images, labels), (whole_images, whole_labels, filled) in zip(found, whole, strict=True):
        assert not filled
        assert images.dtype == whole_images.dtype
        np.testing.assert_array_equal(images, whole_images)
        np.testing.assert_array_equal(labels, whole_labels)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_the_parts_of_all_ranks_are_the_whole_batch_bit_for_bit(transform, ranks):
    def loader(prefetch=0, workers=1):
        return DataLoader(
            random_set(), 6, True, transform=transform, prefetch=prefetch, num_workers=workers
        )

    parts = [batches(loader(rank, 1 + rank % 3).part(rank, ranks), 2) for rank in range(ranks)]
    assert_parts_equal(batches(loader(), 2), parts)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("transform", ["crop, flip, normalize", "a function in the middle"])
def test_the_parts_are_the_whole_batch_on_each_device_too(device, transform, ranks):
    def loader():
        return DataLoader(
            random_set(), 6, True, transform=TRANSFORMS[transform], device=device, prefetch=1
        )

    parts = [batches(loader().part(rank, ranks), 2) for rank in range(ranks)]
    assert_parts_equal(batches(loader(), 2), parts)


def test_ranks_of_different_devices_load_the_same(gpu):
    def part(rank, device):
        transform = TRANSFORMS["crop, flip, normalize"]
        return DataLoader(random_set(), 6, True, transform=transform, device=device).part(rank, 2)

    whole = DataLoader(random_set(), 6, True, transform=TRANSFORMS["crop, flip, normalize"])
    assert_parts_equal(batches(whole), [batches(part(0, gpu)), batches(part(1, "cpu"))])


@pytest.mark.parametrize("n", [1, 5, 6, 7, 13])
def test_part_sizes_differ_by_at_most_one_and_drop_last_drops_the_same_batch(n):
    loaders = [DataLoader(random_set(13), n, drop_last=True).part(rank, 3) for rank in range(3)]
    sizes = [[0 if filled else len(labels) for _, labels, filled in batches(x)] for x in loaders]
    assert {len(x) for x in loaders} == {13 // n} == {len(of_rank) for of_rank in sizes}
    for of_batch in zip(*sizes, strict=True):
        assert sum(of_batch) == n
        assert max(of_batch) - min(of_batch) <= 1


@pytest.mark.parametrize("transform", ["none", "colors", "a function in the middle"])
@pytest.mark.parametrize("items", [False, True])
def test_a_rank_without_images_yields_one_that_does_not_count(items, transform):
    dataset = Items(9) if items else random_set(9)
    whole = DataLoader(dataset, 2, True, transform=TRANSFORMS[transform])
    parts = [batches(whole.part(rank, 5)) for rank in range(5)]
    assert [sum(not filled for *_, filled in of) for of in zip(*parts, strict=True)] == [2] * 4 + [
        1
    ]
    assert_parts_equal(batches(whole), parts)


def test_filled_tells_of_the_latest_batch_only(gpu):
    part = DataLoader(
        random_set(10), 4, transform=TRANSFORMS["crop, flip, normalize"], device=gpu, prefetch=3
    ).part(0, 4)
    assert not part.filled
    assert [(part.filled, len(labels)) for _, labels in part] == [(False, 1), (False, 1), (True, 1)]
    assert [part.filled for _ in part] == [False, False, True]


# --- images left out ---


@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_a_function_sees_the_whole_batch_also_where_images_are_left_out(ranks):
    def loader():
        return DataLoader(Items(20, without=(1, 4, 10, 11, 17)), 5, transform=transform)

    transform = TRANSFORMS["a function in the middle"]
    parts = [batches(loader().part(rank, ranks)) for rank in range(ranks)]
    assert_parts_equal(batches(loader()), parts)


def test_images_left_out_change_no_other_rank_and_no_draw_of_the_rest():
    def parts(without, ranks):
        transform = TRANSFORMS["crop, flip, normalize"]
        loader = DataLoader(Items(20, without), 10, transform=transform)
        return list(together(batches(loader.part(rank, ranks)) for rank in range(ranks)))

    for ranks in (2, 3, 7):
        (_, _), (images, labels) = parts((12, 19), ranks)
        np.testing.assert_array_equal(labels, np.delete(np.arange(10, 20) % 2, [2, 9]))
        np.testing.assert_array_equal(images, np.delete(parts((), 2)[1][0], [2, 9], axis=0))


@pytest.mark.parametrize("transform", ["crop, flip, normalize", "a function"])
def test_all_ranks_yield_as_many_batches_where_whole_batches_are_left_out(transform):
    without = (0, 2, 3, *range(8, 12))
    for rank in range(3):
        loader = DataLoader(Items(14, without), 4, transform=TRANSFORMS[transform])
        found = batches(loader.part(rank, 3))
        assert len(found) == len(loader) == 4
        assert [filled for *_, filled in found] == [rank != 1, False, True, rank == 0]
        assert all(images.shape[1:] == (8, 8, 3) for images, *_ in found)


@pytest.mark.parametrize("transform", [None, own])
def test_a_data_set_that_leaves_out_everything_has_no_parts(transform):
    loader = DataLoader(Items(6, range(6)), 3, transform=transform)
    assert batches(loader) == []
    with pytest.raises(DataError, match="Items leaves out all of its 6 images"):
        batches(loader.part(1, 2))


def test_a_rank_loads_only_its_own_items_unless_a_step_needs_the_whole_batch():
    items = Items(12)
    batches(DataLoader(items, 6, transform=TRANSFORMS["colors"], prefetch=0).part(1, 3))
    assert items.loaded == [2, 3, 8, 9]
    items.loaded.clear()
    batches(DataLoader(items, 6, transform=own, prefetch=0).part(1, 3))
    assert items.loaded == list(range(12))


# --- position ---


@pytest.mark.parametrize(("before", "after"), [(1, 3), (2, 4), (4, 1), (3, 2)])
@pytest.mark.parametrize("stop", [1, 4, 5, 7])
def test_any_number_of_ranks_resumes_where_any_other_stopped(before, after, stop):
    def loader(seed):
        transform = TRANSFORMS["colors"]
        return DataLoader(random_set(), 6, True, transform=transform, seed=seed)

    whole = batches(loader(8), 2)
    states = []
    for rank in range(before):
        part = loader(8).part(rank, before)
        endless = itertools.chain.from_iterable(itertools.repeat(part))
        list(itertools.islice(endless, stop))
        states.append(json.dumps(part.state_dict()))
    assert len(set(states)) == 1  # of all ranks

    def rest(part):
        part.load_state_dict(json.loads(states[0]))
        found = []
        while part.epoch < 2:
            found += batches(part)
        return found

    assert_parts_equal(whole[stop:], [rest(loader(0).part(rank, after)) for rank in range(after)])


def test_a_part_starts_where_its_loader_would_go_on():
    loader = DataLoader(random_set(), 6, True)
    resumed = DataLoader(random_set(), 6, True)
    whole = batches(loader, 2)
    resumed.load_state_dict(resumed.state_dict() | {"batch": 3})
    parts = [resumed.part(rank, 2) for rank in range(2)]
    assert_parts_equal(whole[3:], [batches(part, 2) for part in parts])
    assert (resumed.epoch, resumed.batch) == (0, 3)
    next(iter(resumed))  # leaves the epoch early
    assert_parts_equal(whole[5:], [batches(resumed.part(rank, 2)) for rank in range(2)])


def test_parts_of_one_loader_may_be_read_at_the_same_time(gpu):
    transform = TRANSFORMS["crop, flip, normalize"]
    loader = DataLoader(random_set(), 6, True, transform=transform, device=gpu)
    whole = batches(loader)
    loader.load_state_dict(loader.state_dict() | {"epoch": 0})
    parts = [loader.part(rank, 2) for rank in range(2)]
    found = [((*host(a), False), (*host(b), False)) for a, b in zip(*parts, strict=True)]
    assert_parts_equal(whole, list(zip(*found, strict=True)))
    assert parts[0]._uploader is not parts[1]._uploader  # also from two threads


def test_part_0_of_1_is_the_loader_and_the_sizes_of_parts_are_those_of_the_whole():
    loader = DataLoader(random_set(), 6)
    part = loader.part(2, 3)
    assert loader.part(0, 1) is loader
    assert (len(part), part.batch_size, part.dataset) == (5, 6, loader.dataset)
    assert part.state_dict() == loader.state_dict()


def test_a_part_left_early_leaves_no_thread():
    for _ in DataLoader(random_set(), 2, transform=own, num_workers=3).part(1, 3):
        break
    assert not [t for t in threading.enumerate() if t.name.startswith("gpucnn-loader")]


# --- mistakes ---


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((2, 2), "rank must be below ranks, got 2 of 2"),
        ((-1, 2), "rank must be an int of at least 0, got -1"),
        ((0, 0), "ranks must be an int of at least 1, got 0"),
        ((0.0, 2), "rank must be an int"),
    ],
)
def test_parts_that_do_not_exist_are_refused(arguments, words):
    with pytest.raises(ArgumentError, match=words):
        DataLoader(random_set(), 6).part(*arguments)


def test_a_part_of_a_part_is_refused():
    with pytest.raises(ArgumentError, match="is part 1 of 2 already"):
        DataLoader(random_set(), 6).part(1, 2).part(0, 2)


class Halves(data.PerImageTransform):
    def transform_part(self, images, generator, rows, total):
        return images[::2]


@pytest.mark.parametrize("transform", [lambda images, generator: images[1:], Halves()])
def test_a_transform_that_loses_images_of_a_part_is_refused(transform):
    with pytest.raises(ShapeError, match="it must return as many images as it was given"):
        batches(DataLoader(random_set(), 6, transform=transform).part(1, 2))
