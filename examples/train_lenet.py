"""Train LeNet on MNIST or Fashion-MNIST.

    python examples/train_lenet.py                   # Fashion-MNIST: clothing
    python examples/train_lenet.py --dataset mnist   # handwritten digits
    python examples/train_lenet.py --resume          # resume the last run

The images are read from idx files in --data (Debian's package dataset-fashion-mnist is found
automatically), or downloaded.  SGD with Nesterov momentum 0.9; the learning rate rises linearly
over the first quarter of the steps and falls linearly to 0 over the rest.  Half of the
training images of clothing are flipped; digits, which a flip would change, are shifted by up to 2
pixels.
"""

import sys

from gpucnn import data, models
from gpucnn.errors import ArgumentError
from gpucnn.train.script import Job, Script

SETS = {"fashion-mnist": data.FashionMNIST, "mnist": data.MNIST}
CHANGES = {
    "fashion-mnist": data.RandomHorizontalFlip(),
    "mnist": data.RandomCrop(28, padding=2, padding_mode="constant"),
}


def command_line() -> Script:
    script = Script(
        "train_lenet",
        "Train LeNet on MNIST or Fashion-MNIST.",
        epochs=8,
        batch_size=64,
        lr=0.04,
        augment="random flips of clothing, random shifts of digits in training",
    )
    script.add(
        "--model", "the network; lenet5 is that of 1998", "lenet", choices=("lenet", "lenet5")
    )
    script.add("--dataset", "the data set", "fashion-mnist", choices=tuple(SETS))
    text = (
        "hold out the last N training images and test on them instead of the test set, to tune "
        "the recipe"
    )
    script.add_number("--hold-out", text, None, "none")
    script.add_data()
    return script


def load_data(job: Job) -> tuple[data.Dataset, data.Dataset]:
    """(training set, test set), limited to --limit images each."""
    s = job.settings
    training, test = (SETS[s.dataset](s.data, train=part, download=True) for part in (True, False))
    if s.hold_out is not None:
        if s.hold_out >= len(training):
            raise ArgumentError(
                f"--hold-out: {s.hold_out} of {len(training)} training images leave none"
            )
        training, test = training[: -s.hold_out], training[-s.hold_out :]
    if s.limit is not None:
        training, test = training.take(s.limit), test.take(s.limit)
    job.say(f"data: {training}, {test}")
    return training, test


def run(job: Job) -> None:
    s, device = job.settings, job.device
    training, test = load_data(job)
    model = models.build(s.model).to(device)
    normalize = data.Normalize(*data.channel_statistics(training.images))
    loader = data.DataLoader(
        training,
        s.batch_size,
        shuffle=True,
        transform=data.Compose([CHANGES[s.dataset], normalize]) if s.augment else normalize,
        seed=s.seed,
        device=device,
    )
    test_loader = data.DataLoader(test, 500, transform=normalize, device=device)
    job.train(model, loader, test_loader, classes=training.classes, normalize=normalize)


def main(argv: list[str] | None = None) -> int:
    return command_line().main(run, argv)


if __name__ == "__main__":
    sys.exit(main())
