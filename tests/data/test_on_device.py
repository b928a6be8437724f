"""A data set on the GPU: batches equal the CPU's; unsupported data stays on the host."""

import numpy as np
import pytest

from gpucnn.data import DataLoader, Dataset, on_device
from gpucnn.data.augment import (
    AlternatingFlip,
    Compose,
    Normalize,
    RandomCrop,
    RandomHorizontalFlip,
)
from gpucnn.device import Device
from gpucnn.errors import ShapeError

NORMALIZE = Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.1))
AUGMENT = Compose([RandomCrop(8, 2), RandomHorizontalFlip(), NORMALIZE])


pytestmark = pytest.mark.usefixtures("compiler")


def dataset(h: int = 8, w: int = 8, c: int = 3) -> Dataset:
    rng = np.random.default_rng(2)
    return Dataset(rng.integers(0, 256, (20, h, w, c), np.uint8), np.arange(20) % 2, ("a", "b"))


def epoch(device: str, data: Dataset, transform: object, start: int = 0) -> list[np.ndarray]:
    loader = DataLoader(data, 6, shuffle=True, transform=transform, device=device, seed=5)
    if start:
        loader.load_state_dict({**loader.state_dict(), "batch": start})
    return [images.numpy() for images, _ in loader]


ALTERNATING = Compose([RandomCrop(8, 2), AlternatingFlip(), NORMALIZE])


@pytest.mark.parametrize("transform", [AUGMENT, ALTERNATING], ids=["random", "alternating"])
@pytest.mark.parametrize("start", [0, 2])
def test_batches_equal_the_cpus_bit_for_bit_also_after_a_resume(
    start: int, transform: object
) -> None:
    mine, theirs = (epoch(device, dataset(), transform, start) for device in ("cudasim", "cpu"))
    assert len(mine) == 4 - start
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("data", "transform"),
    [
        (dataset(), None),
        (dataset(), RandomHorizontalFlip()),
        (dataset(), Compose([NORMALIZE, RandomHorizontalFlip()])),
        (dataset(8, 6), NORMALIZE),
        (dataset()[:0], NORMALIZE),
    ],
    ids=["no transform", "no normalize", "another order", "not square", "empty"],
)
def test_what_the_kernel_does_not_support_runs_on_the_cpu(data: Dataset, transform: object) -> None:
    device = Device.parse("cudasim")
    assert on_device.OnDevice.try_create(data, transform, device) is None
    if len(data):
        for a, b in zip(
            epoch("cudasim", data, transform), epoch("cpu", data, transform), strict=True
        ):
            np.testing.assert_array_equal(a, b)


def test_an_alternating_flip_is_computed_by_the_kernel_in_every_epoch() -> None:
    device = Device.parse("cudasim")
    assert on_device.OnDevice.try_create(dataset(), ALTERNATING, device) is not None
    loaders = [
        DataLoader(dataset(), 6, shuffle=True, transform=ALTERNATING, device=name, seed=5)
        for name in ("cudasim", "cpu")
    ]
    for _ in range(3):
        for (mine, _), (theirs, _) in zip(*loaders, strict=True):
            np.testing.assert_array_equal(mine.numpy(), theirs.numpy())


def test_a_set_too_large_for_the_device_stays_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_device, "MAX_BYTES", 100)
    assert on_device.OnDevice.try_create(dataset(), AUGMENT, Device.parse("cudasim")) is None


def test_images_with_other_channels_are_refused() -> None:
    with pytest.raises(ShapeError, match="4 channels"):
        epoch("cudasim", dataset(c=4), AUGMENT)
