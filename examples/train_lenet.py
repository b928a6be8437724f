"""Train LeNet on MNIST or Fashion-MNIST.

    python examples/train_lenet.py                   # Fashion-MNIST: clothes
    python examples/train_lenet.py --dataset mnist   # handwritten digits

The images are read from idx files in --data (Debian's package dataset-fashion-mnist is found by
itself), or downloaded.  SGD with Nesterov momentum 0.9; the learning rate rises in a straight line
over the first quarter of the steps and falls to nothing over the rest.  In training, clothes are
flipped half of the time; digits, which have no mirror image, are shifted by up to 2 pixels.
"""

import argparse
import sys
import time

import gpucnn
from gpucnn import data, models, optim, train
from gpucnn.arguments import exit_status, output_folder, positive_int
from gpucnn.device import Device
from gpucnn.errors import ArgumentError

SETS = {"fashion-mnist": data.FashionMNIST, "mnist": data.MNIST}


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train LeNet on MNIST or Fashion-MNIST.")

    def add(flag: str, text: str, default: object = None, **how: object) -> None:
        shown = "" if default is None else f" (default: {default})"
        parser.add_argument(flag, help=text + shown, default=default, **how)

    add("--dataset", "what to learn", "fashion-mnist", choices=SETS)
    add("--model", "lenet5 is that of 1998", "lenet", choices=("lenet", "lenet5"))
    add("--epochs", "passes over the images", 8, type=positive_int, metavar="N")
    add("--batch-size", "images per step", 64, type=positive_int, metavar="N")
    add("--lr", "the highest learning rate", 0.04, type=float, metavar="X")
    add("--weight-decay", "decay of every parameter", 5e-4, type=float, metavar="X")
    add("--limit", "use the first N images of each split", type=positive_int, metavar="N")
    add(
        "--hold-out",
        "test on the last N training images, kept out of training, in place of the test set: "
        "to choose a recipe by",
        type=positive_int,
        metavar="N",
    )
    add("--seed", "of weights, order and augmentation", 0, type=int, metavar="N")
    add("--device", "auto, cpu, cuda or cuda:N", "auto")
    add("--threads", "CPU threads (default: all cores)", type=positive_int, metavar="N")
    add("--data", "folder with the idx files (default: the usual ones)", metavar="DIR")
    add("--out", "folder for metrics.csv and checkpoints", "runs/lenet", metavar="DIR")
    return parser.parse_args(argv)


def run(settings: argparse.Namespace) -> None:
    started = time.perf_counter()
    device = Device.parse(settings.device)
    if settings.threads is not None:
        gpucnn.set_num_threads(settings.threads)
    gpucnn.manual_seed(settings.seed)

    training, test = (
        SETS[settings.dataset](settings.data, train=split, download=True) for split in (True, False)
    )
    if settings.hold_out is not None:
        if settings.hold_out >= len(training):
            raise ArgumentError(
                f"--hold-out: {settings.hold_out} of {len(training)} training images leave none"
            )
        training, test = training[: -settings.hold_out], training[-settings.hold_out :]
    if settings.limit is not None:
        training, test = training.take(settings.limit), test.take(settings.limit)
    print(f"device: {device}\ndata: {training}, {test}")

    normalize = data.Normalize(*data.channel_statistics(training.images))
    change = {
        "fashion-mnist": data.RandomFlip(),
        "mnist": data.RandomCrop(28, padding=2, mode="constant"),
    }[settings.dataset]
    loader = data.DataLoader(
        training,
        settings.batch_size,
        shuffle=True,
        transform=data.Compose(change, normalize),
        seed=settings.seed,
        device=device,
    )
    test_loader = data.DataLoader(test, 500, transform=normalize, device=device)

    model = models.build(settings.model).to(device)
    optimizer = optim.SGD(
        model.parameters(),
        settings.lr,
        momentum=0.9,
        nesterov=True,
        weight_decay=settings.weight_decay,
    )
    out = output_folder(settings.out)
    trainer = train.Trainer(
        model,
        optimizer,
        loader,
        test_loader,
        optim.OneCycle(settings.lr, settings.epochs * len(loader)),
        callbacks=[
            train.ProgressBar(),
            train.EpochLine(),
            train.MetricsFile(out / "metrics.csv"),
            train.Checkpoints(out),
        ],
        info={
            "model": {"name": settings.model, "config": {}},
            "classes": list(training.classes),
            "normalize": {"mean": list(normalize.mean), "std": list(normalize.std)},
        },
    )
    trainer.fit(settings.epochs)

    result = trainer.evaluation
    print(f"test accuracy {result.accuracy:.2%}, test loss {result.loss:.4f}")
    for name, accuracy in zip(training.classes, result.per_class, strict=True):
        print(f"  {name:<12} {accuracy:7.2%}")
    print(f"wall time {time.perf_counter() - started:.1f} s")
    print(f"classify images of your own: gpucnn predict {out / 'best.safetensors'} IMAGE...")


def main(argv: list[str] | None = None) -> int:
    settings = parse_arguments(argv)
    return exit_status(lambda: run(settings))


if __name__ == "__main__":
    sys.exit(main())
