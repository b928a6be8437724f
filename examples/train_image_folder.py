"""Train an AlexNet on your own photographs: one directory per class.

    python examples/train_image_folder.py photos/train --test photos/test
    python examples/train_image_folder.py --resume               # resume the last run

with photos/train/cat/1.jpg, photos/train/dog/2.jpg and so on.  The recipe is that of 2012: images
of 256 pixels a side, random crops to the network's input (227 or 224), flips, colour noise; SGD
with momentum 0.9 and weight decay 0.0005; the learning rate is divided by 10 after each third of
the steps (originally, when the validation error stopped improving); the test averages ten views of
each image.

A checkpoint has 450 to 600 MB.  The run writes one after each epoch, and keeps the last and the
best: up to 1.2 GB, and up to 1.8 GB during a save.  --keep 2 also keeps the one before the last, in
case a file is damaged.
"""

import sys
import warnings

import numpy as np

from gpucnn import data, models, train
from gpucnn.arguments import printable
from gpucnn.errors import ArgumentError, DataError
from gpucnn.train.script import EXECUTION, Job, Script

SIDE = 256  # pixels: training images are scaled to this side before the crop
SAMPLE = 500  # images for the mean, deviation and colour components


def command_line() -> Script:
    script = Script(
        "train_image_folder",
        "Train an AlexNet on directories of photographs.",
        epochs=90,
        batch_size=128,
        lr=0.01,
        schedule="step",
        augment="random crops, flips and colour noise of the training images",
        limit="use N images of each split, spread over the classes",
        keep=1,  # a file of an AlexNet and its optimizer has 450 to 600 MB
    )
    names = ("alexnet", "alexnet_torchvision", "alexnet_keras")
    script.add("--model", "which AlexNet", "alexnet", choices=names)
    text = "what to do with a damaged image file: stop, or skip it"
    script.add("--on-error", text, "raise", choices=("raise", "skip"))
    text = "read files outside of the folders that are linked from inside"
    script.add("--follow-links", text, False, group=EXECUTION, action="store_true")
    for flag, text, shown in (
        ("train", "folder with a directory per class", "that of the resumed run"),
        ("--test", "folder with the same classes to test on", "no test"),
    ):
        name = "DIR" if flag == "--test" else "TRAIN"
        remedy = "name a folder with a directory of images per class"
        script.add(flag, text, shown=shown, group=EXECUTION, missing=remedy, metavar=name)
    script.add_number("--workers", "threads that decode images", 2, group=EXECUTION)
    return script


def pixels_of(folder: data.ImageFolder) -> np.ndarray:
    """Some images of the folder, spread over all classes, in memory."""
    items = map(folder.take(SAMPLE).__getitem__, range(min(SAMPLE, len(folder))))
    pixels = [item[0] for item in items if item is not None]
    if not pixels:
        raise DataError(f"{folder.root}: none of {min(SAMPLE, len(folder))} images can be read")
    return np.stack(pixels)


def run(job: Job) -> None:
    s, device = job.settings, job.device
    if s.train is None:
        raise ArgumentError("TRAIN: name the folder with a directory of images per class")
    side = models.input_shape(s.model)[0]

    def images(root: str, size: int) -> data.ImageFolder:
        folder = data.ImageFolder(root, size, s.on_error, s.follow_links)
        return folder if s.limit is None else folder.take(s.limit)

    training = images(s.train, SIDE if s.augment else side)
    job.say(f"data: {training}")
    sample = pixels_of(training)
    normalize = data.Normalize(*data.channel_statistics(sample))
    change = data.Compose(
        [
            data.RandomCrop(side),
            data.RandomHorizontalFlip(),
            data.ColorNoise(data.color_components(sample)),
            normalize,
        ]
    )
    common = {"num_workers": s.workers, "device": device}
    loader = data.DataLoader(
        training,
        s.batch_size,
        shuffle=True,
        transform=change if s.augment else normalize,
        seed=s.seed,
        **common,
    )

    def test_loader(size: int) -> data.DataLoader:
        test = images(s.test, size)
        if test.classes != training.classes:
            raise DataError(
                f"--test: {s.test} has the classes {', '.join(test.classes)}\n"
                f"  expected those of {s.train}: {', '.join(training.classes)}"
            )
        return data.DataLoader(test, 32, transform=normalize, **common)

    config = {"classes": len(training.classes), "channels": 3}
    model = models.build(s.model, **config).to(device)
    job.train(
        model,
        loader,
        test_loader(side) if s.test else None,
        optimizer=job.optimizer(model, nesterov=False),
        config=config,
        classes=training.classes,
        normalize=normalize,
    )
    if s.test:
        views, tests = models.TenViews(model, side), test_loader(SIDE)
        if job.comm is not None:
            tests = tests.part(job.rank, job.comm.size)
        result = train.evaluate(views, tests, job.comm)
        if job.rank == 0:
            print(f"test accuracy with ten views {result.accuracy:.2%}")


def main(argv: list[str] | None = None) -> int:
    return command_line().main(run, argv)


if __name__ == "__main__":
    # Without the source line; a file's name may hold control characters
    warnings.formatwarning = lambda text, *_, **__: printable(f"warning: {text}\n")
    sys.exit(main())
