"""Train an AlexNet on photographs of your own: one directory for each class.

    python examples/train_image_folder.py photos/train --test photos/test

with photos/train/cat/1.jpg, photos/train/dog/2.jpg and so on.  The recipe is that of 2012: images
of 256 pixels a side, random crops of what the network takes (227 or 224), flips, colour noise; SGD
with momentum 0.9 and weight decay 0.0005; a learning rate that falls to a tenth after each third of
the steps, where the source watched the validation error; a test with ten views of each image.
"""

import argparse
import sys
import warnings
from typing import Any

import numpy as np

import gpucnn
from gpucnn import data, models, optim, train
from gpucnn.arguments import exit_status, output_folder, positive_int
from gpucnn.device import Device
from gpucnn.errors import DataError

SIDE = 256  # pixels that training images are scaled to, before the crop
SAMPLE = 500  # images that mean, deviation and colour components are taken from


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train an AlexNet on directories of photographs.")
    parser.add_argument("train", metavar="TRAIN", help="folder with a directory for each class")

    def add(flag: str, text: str, default: Any = None, **how: Any) -> None:
        shown = "" if default is None else f" (default: {default})"
        parser.add_argument(flag, help=text + shown, default=default, **how)

    add("--test", "folder with the same classes to test on (default: no test)", metavar="DIR")
    names = ("alexnet", "alexnet_torchvision", "alexnet_keras")
    add("--model", "which AlexNet", "alexnet", choices=names)
    add("--epochs", "passes over the images", 90, type=positive_int, metavar="N")
    add("--batch-size", "images per step", 128, type=positive_int, metavar="N")
    add("--lr", "the first learning rate", 0.01, type=float, metavar="X")
    add("--workers", "threads that decode images ahead", 2, type=positive_int, metavar="N")
    add("--on-error", "what to do with a damaged file", "raise", choices=("raise", "skip"))
    add("--seed", "of weights, order, augmentation and dropout", 0, type=int, metavar="N")
    add("--device", "auto, cpu, cuda or cuda:N", "auto")
    add("--out", "folder for metrics.csv and checkpoints", "runs/image_folder", metavar="DIR")
    return parser.parse_args(argv)


def pixels_of(folder: data.ImageFolder) -> np.ndarray:
    """Some images of the folder, spread over all classes, in memory."""
    items = map(folder.take(SAMPLE).__getitem__, range(min(SAMPLE, len(folder))))
    return np.stack([item[0] for item in items if item is not None])


def run(settings: argparse.Namespace) -> None:
    device = Device.parse(settings.device)
    gpucnn.manual_seed(settings.seed)
    folder = data.ImageFolder(settings.train, SIDE, settings.on_error)
    print(f"device: {device}\ndata: {folder}")
    config = {"classes": len(folder.classes), "channels": 3}
    side = models.input_shape(settings.model, **config)[0]

    sample = pixels_of(folder)
    normalize = data.Normalize(*data.channel_statistics(sample))
    change = data.Compose(
        data.RandomCrop(side),
        data.RandomFlip(),
        data.ColorNoise(data.color_components(sample)),
        normalize,
    )
    common = {"workers": settings.workers, "device": device}
    loader = data.DataLoader(
        folder, settings.batch_size, shuffle=True, transform=change, seed=settings.seed, **common
    )

    def test_loader(size: int) -> data.DataLoader:
        test = data.ImageFolder(settings.test, size, settings.on_error)
        if test.classes != folder.classes:
            raise DataError(
                f"--test: {settings.test} has the classes {', '.join(test.classes)}\n"
                f"  expected those of {settings.train}: {', '.join(folder.classes)}"
            )
        return data.DataLoader(test, 32, transform=normalize, **common)

    model = models.build(settings.model, **config).to(device)
    out = output_folder(settings.out)
    steps = settings.epochs * len(loader)
    trainer = train.Trainer(
        model,
        optim.SGD(model.parameters(), settings.lr, momentum=0.9, weight_decay=5e-4),
        loader,
        test_loader(side) if settings.test else None,
        optim.Step(settings.lr, every=max(steps // 3, 1)),
        callbacks=[
            train.ProgressBar(),
            train.EpochLine(),
            train.MetricsFile(out / "metrics.csv"),
            train.Checkpoints(out),
        ],
        info={
            "model": {"name": settings.model, "config": config},
            "classes": list(folder.classes),
            "normalize": {"mean": list(normalize.mean), "std": list(normalize.std)},
        },
    )
    trainer.fit(settings.epochs)
    if settings.test:
        result = train.evaluate(models.TenViews(model, side), test_loader(SIDE))
        print(f"test accuracy with ten views {result.accuracy:.2%}")
    print(f"classify images of your own: gpucnn predict {out / 'best.safetensors'} IMAGE...")


def main(argv: list[str] | None = None) -> int:
    settings = parse_arguments(argv)
    return exit_status(lambda: run(settings))


if __name__ == "__main__":
    warnings.formatwarning = lambda text, *_, **__: f"warning: {text}\n"  # and no line of code
    sys.exit(main())
