"""Warnings about a run that cannot learn."""

import warnings

import numpy as np
import pytest
from trainers import build

from gpucnn import data, nn, optim, train
from gpucnn.errors import TrainingWarning
from gpucnn.train.plausible import is_stuck


def trainer_on(images, labels, classes=("a", "b", "c"), device="cpu", lr=0.0, kind=data.Dataset):
    dataset = kind(images, np.asarray(labels, np.int64), classes)
    model = nn.Sequential(nn.Flatten(), nn.Linear(images[0].size, len(classes))).to(device)
    loader = data.DataLoader(
        dataset, 16, transform=data.Normalize([0.5] * 3, [0.5] * 3), device=device
    )
    return train.Trainer(model, optim.SGD(model.parameters(), lr), loader)


def noise(n, rng):
    return rng.integers(0, 256, (n, 4, 4, 3), np.uint8)


@pytest.mark.parametrize("device", ["cpu", "cudasim"])
def test_constant_images_are_said_at_the_start(device, rng, compiler):
    images = np.zeros((30, 4, 4, 3), np.uint8) + np.arange(30, dtype=np.uint8)[:, None, None, None]
    with pytest.warns(TrainingWarning, match="images of the first batch are constant"):
        trainer_on(images, [0, 1, 2] * 10, device=device).fit(1)


def test_equal_images_are_said_at_the_start(rng):
    images = np.repeat(noise(1, rng), 30, axis=0)
    with pytest.warns(TrainingWarning, match="all images of the first batch are equal"):
        trainer_on(images, [0, 1, 2] * 10).fit(1)


def test_absent_classes_are_named_with_control_characters_escaped(rng):
    classes = ("cat", "dog", "\x1b[31mred")
    message = r"1 of 3 classes have no training image: \\x1b\[31mred"
    with pytest.warns(TrainingWarning, match=message):
        trainer_on(noise(30, rng), [0, 1] * 15, classes).fit(1)


def test_a_data_set_of_one_class_is_said_at_the_start(rng):
    with pytest.warns(TrainingWarning, match="every training image has the label 2"):
        trainer_on(noise(30, rng), [2] * 30).fit(1)


def test_toys_are_not_checked(rng):
    trainer_on(np.zeros((15, 4, 4, 3), np.uint8), [2] * 15).fit(1)


def test_a_resumed_or_continued_run_does_not_say_it_again(rng):
    trainer = trainer_on(noise(30, rng), [2] * 30)
    with pytest.warns(TrainingWarning):
        trainer.fit(1)
    trainer.fit(1)


def test_a_loss_stuck_at_that_of_guessing_is_said_once_after_an_epoch(rng):
    trainer = trainer_on(noise(1200, rng), rng.integers(0, 3, 1200))
    for parameter in trainer.model.parameters():
        parameter.data[...] = 0
    said = []

    class Said(train.Callback):
        def on_epoch_end(self, trainer):
            said.append(trainer.epoch)  # the row is complete and saved before the warning

    trainer.callbacks = [Said()]
    with pytest.warns(TrainingWarning, match=r"epoch 1: the training loss 1\.0986 is still ln"):
        trainer.fit(1)
    trainer.fit(1)
    assert said == [1, 2]


def test_a_stuck_run_on_a_data_set_without_an_array_of_labels_is_said_too(rng):
    class Items:
        def __init__(self, images, labels, classes):
            self.images, self._labels = images, labels

        def __len__(self):
            return len(self.images)

        def __getitem__(self, index):
            return self.images[index], self._labels[index]

    trainer = trainer_on(noise(1200, rng), rng.integers(0, 3, 1200), kind=Items)
    for parameter in trainer.model.parameters():
        parameter.data[...] = 0
    with pytest.warns(TrainingWarning, match=r"the training loss 1\.0986 is still ln\(3\)"):
        trainer.fit(1)


def test_a_run_resumed_after_the_last_step_of_an_epoch_ends_it_without_a_warning(rng, tmp_path):
    images, labels = noise(1200, rng), rng.integers(0, 3, 1200)

    class Save(train.Callback):
        def on_batch_end(self, trainer):
            if trainer.step == len(trainer.loader):
                trainer.save(tmp_path / "last.safetensors")

    trainer = trainer_on(images, labels)
    trainer.callbacks = [Save()]
    history = trainer.fit(1)
    resumed = trainer_on(images, labels)
    resumed.resume(tmp_path / "last.safetensors")
    assert resumed.fit(1)[0]["train_loss"] == history[0]["train_loss"]
    assert resumed.step == trainer.step


def test_a_run_that_learns_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(lr=0.01).fit(2)


@pytest.mark.parametrize(
    ("loss", "accuracy", "count", "stuck"),
    [
        (2.3026, 0.100, 10_000, True),
        (2.3026, 0.108, 10_000, False),  # better than chance
        (2.2700, 0.100, 10_000, False),  # the loss has moved
        (2.3026, 0.100, 999, False),  # too few images to tell
    ],
)
def test_stuck_means_both_the_loss_and_the_accuracy_of_guessing(loss, accuracy, count, stuck):
    assert is_stuck(loss, accuracy, count, 10, 0.1) == stuck
