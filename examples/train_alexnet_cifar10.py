"""Train AlexNet on CIFAR-10: the whole job in one script.

    python examples/train_alexnet_cifar10.py                  # CIFAR-10, else drawn shapes
    python examples/train_alexnet_cifar10.py --device cuda    # the same on a GPU
    python examples/train_alexnet_cifar10.py --resume         # resume the last run

The recipe is the usual one for small images: crops from 4 pixels of reflected padding, flips,
normalised channels; SGD with Nesterov momentum 0.9; a learning rate that rises linearly over the
first quarter of the steps and falls linearly to 0 over the rest.  The flags that training scripts
share, such as --resume, are in gpucnn/train/script.py.
"""

import math
import sys

from gpucnn import data, models
from gpucnn.errors import DataError
from gpucnn.train.script import Job, Script

CIFAR_MODELS = (
    "alexnet_cifar10",
    "alexnet_cifar10_bn",
    "cuda_convnet_18pct",
    "vgg16_cifar",
    "resnet18_cifar",
)
EPOCHS = {"cifar10": 8, "synthetic": 4}
SGD_LR = {"cifar10": 0.05, "synthetic": 0.01}
FULL = 250  # steps; with fewer, SGD reaches that rate too fast and diverges


def command_line() -> Script:
    script = Script(
        "train_alexnet_cifar10",
        "Train AlexNet on CIFAR-10.",
        epochs=None,
        batch_size=128,
        lr=None,
        shown={
            "epochs": "8 for cifar10, 4 for synthetic",
            "lr": f"0.05 for sgd, 0.01 on synthetic, scaled down for fewer than {FULL} steps; "
            "0.001 for adam and adamw",
        },
    )
    text = (
        "the network: AlexNet (_bn: with batch normalisation), its author's cuda-convnet, or a "
        "later network"
    )
    script.add("--model", text, "alexnet_cifar10", choices=CIFAR_MODELS)
    text = "auto: CIFAR-10 from disk or by download, else synthetic (ten classes of drawn shapes)"
    script.add("--dataset", text, "auto", choices=("auto", "cifar10", "synthetic"))
    script.add_data()
    return script


def load_data(job: Job) -> tuple[data.Dataset, data.Dataset, str]:
    """(training set, test set, "cifar10" or "synthetic"), limited to --limit images each."""
    s = job.settings
    name, pair = s.dataset, None
    if name != "synthetic":
        pair, reason = data.find_cifar10(s.data, quiet=s.quiet)
        if pair is None and name == "cifar10":
            raise DataError(f"--dataset cifar10: {reason}")
        if pair is None:
            reason = reason.replace("\n", "\n***")
            job.warn(
                f"*** CIFAR-10 was not found: {reason}\n"
                "*** Training on the SYNTHETIC set of drawn shapes instead: its accuracy says "
                "nothing about CIFAR-10.\n"
                "*** To train on CIFAR-10, put cifar-10-python.tar.gz into that folder (or into "
                "--data DIR) and run this again."
            )
        name = "synthetic" if pair is None else "cifar10"
    training, test = pair or (data.Synthetic(train=True), data.Synthetic(train=False))
    if s.limit is not None:
        training, test = training.take(s.limit), test.take(s.limit)
    job.say(f"data: {training}, {test}")
    return training, test, name


def run(job: Job) -> None:
    s, device = job.settings, job.device
    training, test, s.dataset = load_data(job)
    if s.epochs is None:
        s.epochs = EPOCHS[s.dataset]
    if s.lr is None:
        steps = s.epochs * math.ceil(len(training) / s.batch_size)
        s.lr = SGD_LR[s.dataset] * min(steps / FULL, 1)

    model = models.build(s.model).to(device)
    normalize = data.Normalize(*data.channel_statistics(training.images))
    crop = data.RandomCrop(32, padding=4, padding_mode="reflect")
    crop_and_flip = (crop, data.RandomHorizontalFlip())
    loader = data.DataLoader(
        training,
        s.batch_size,
        shuffle=True,
        transform=data.Compose([*(crop_and_flip if s.augment else ()), normalize]),
        seed=s.seed,
        device=device,
    )
    test_loader = data.DataLoader(test, 500, transform=normalize, device=device)
    job.train(model, loader, test_loader, classes=training.classes, normalize=normalize)


def main(argv: list[str] | None = None) -> int:
    return command_line().main(run, argv)


if __name__ == "__main__":
    sys.exit(main())
