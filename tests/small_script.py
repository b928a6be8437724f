"""A user's training script, small enough to be run, stopped and killed many times."""

import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np

import gpucnn
from gpucnn import data, nn, train
from gpucnn.train.script import EXECUTION, Script

NAMES = tuple("0123456789")


def my_script(name="my_script", classes=NAMES):
    """(main, [what each run saw]) of a script that trains a small network on noise."""
    seen = []

    def command_line():
        script = Script(name, "Train what I want.", epochs=2, batch_size=8, lr=0.02)
        script.add("--width", "filters", 16, type=int)
        script.add_data()
        script.add("--colour", "of nothing", "red", group=EXECUTION)
        return script

    def run(job):
        seen.append((vars(job.settings), gpucnn.get_conv_algorithm(), job.device))
        s = job.settings
        rng = np.random.default_rng(0)
        pixels = rng.integers(256, size=(24, 12, 12, 3)).astype(np.uint8)
        noise = data.Dataset(pixels, np.arange(24) % 10, classes, "noise")
        s.model = "mine"
        model = nn.Sequential(
            nn.Conv2d(3, s.width, 3), nn.ReLU(), nn.Conv2d(s.width, s.width, 3, padding="same"),
            nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(25 * s.width, 10),
        ).to(job.device)  # fmt: skip
        normalize = data.Normalize(*data.channel_statistics(noise.images))
        change = data.Compose([data.RandomHorizontalFlip(), normalize])
        loader = data.DataLoader(
            noise, s.batch_size, shuffle=True, transform=change, seed=s.seed, device=job.device
        )
        test_loader = data.DataLoader(noise, 24, transform=normalize, device=job.device)
        job.train(model, loader, test_loader, classes=classes, normalize=normalize)

    def main(*argv):
        return command_line().main(run, ["--device", "cpu", *map(str, argv)])

    return main, seen


def tensors(folder):
    return train.read_checkpoint(Path(folder) / "last.safetensors").tensors


def same_bits(one, other):
    ours, theirs = tensors(one), tensors(other)
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[k], theirs[k]) for k in ours)


@contextmanager
def stop_at(step, number=signal.SIGINT):
    """Send that signal to a run in this process after `step` steps."""
    train_step = train.Trainer.train_step

    def interrupted(self, images, labels):
        train_step(self, images, labels)
        if self.step == step:
            os.kill(os.getpid(), number)

    with patch.object(train.Trainer, "train_step", interrupted):
        yield


if __name__ == "__main__":
    sys.exit(my_script()[0](*sys.argv[1:]))
