"""AlternatingFlip: each image mirrored in every other epoch, a random half of them first."""

import numpy as np
import pytest

from gpucnn import data
from gpucnn.data import AlternatingFlip, DataLoader
from gpucnn.errors import ArgumentError

N = 100


def arrows():
    """Images that tell their index, and whether they are mirrored."""
    images = np.zeros((N, 1, 2, 2), np.uint8)
    images[:, 0, :, 0] = np.arange(N)[:, None]
    images[:, 0, 1, 1] = 1  # the right pixel
    return data.Dataset(images, np.zeros(N, np.int64), ("a",))


def mirrored(loader):
    """Which images an epoch mirrors, by index."""
    found = np.full(N, -1)
    for images, _ in loader:
        for image in images:
            found[image[0, 0, 0]] = image[0, 0, 1]
    return found


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in a Compose"])
def test_every_other_epoch_shows_the_other_side_of_every_image(inside):
    flip = data.Compose([data.Compose([AlternatingFlip()])]) if inside else AlternatingFlip()
    loader = DataLoader(arrows(), 7, shuffle=True, transform=flip, seed=3)
    epochs = [mirrored(loader) for _ in range(5)]
    assert set(epochs[0]) == {0, 1}
    assert 30 < epochs[0].sum() < 70
    for number, epoch in enumerate(epochs):
        np.testing.assert_array_equal(epoch, epochs[0] ^ (number % 2))


def test_the_first_half_depends_on_the_seed_and_on_nothing_else():
    def first(seed, **options):
        return mirrored(DataLoader(arrows(), 7, transform=AlternatingFlip(), seed=seed, **options))

    same = first(3)
    np.testing.assert_array_equal(first(3, shuffle=True, prefetch=0), same)
    assert (first(4) != same).any()


def test_a_resumed_loader_goes_on_with_the_same_images():
    def loader(seed=3):
        return DataLoader(arrows(), 7, shuffle=True, transform=AlternatingFlip(), seed=seed)

    whole, part = loader(), loader()
    for _ in whole:
        pass
    rest = [images for images, _ in whole]
    for _ in part:
        pass
    for number, _ in enumerate(part):
        if number == 4:
            break
    other = loader(seed=9)  # the state has the run's
    other.load_state_dict(part.state_dict())
    for a, (b, _) in zip(rest[5:], other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_images_that_a_data_set_leaves_out_shift_nothing():
    class Some:
        def __len__(self):
            return N

        def __getitem__(self, i):
            return None if i % 3 == 0 else arrows()[i]

    whole = mirrored(DataLoader(arrows(), 10, transform=AlternatingFlip()))
    some = mirrored(DataLoader(Some(), 10, transform=AlternatingFlip()))
    there = np.arange(N) % 3 != 0
    np.testing.assert_array_equal(some[there], whole[there])
    assert (some[~there] == -1).all()


def test_outside_of_a_loader_it_says_what_is_missing():
    images = np.zeros((2, 4, 4, 3), np.uint8)
    with pytest.raises(ArgumentError, match="AlternatingFlip: the epoch is unknown here"):
        AlternatingFlip()(images, np.random.default_rng())
