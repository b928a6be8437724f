"""Train AlexNet on CIFAR-10: the whole job in one script.

    python examples/train_alexnet_cifar10.py                  # CIFAR-10, or drawn shapes without it
    python examples/train_alexnet_cifar10.py --device cuda    # the same on a GPU
    python examples/train_alexnet_cifar10.py --resume         # go on with the last run

The recipe is the usual one for small images: crops from 4 pixels of reflected padding, flips,
normalised channels; SGD with Nesterov momentum 0.9; a learning rate that rises in a straight line
over the first quarter of the steps and falls to nothing over the rest.
"""

import argparse
import json
import math
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import gpucnn
from gpucnn import data, models, optim, train
from gpucnn.device import Device, choose_device
from gpucnn.errors import ArgumentError, CheckpointError, DataError, MissingExtra

CIFAR_MODELS = (
    "alexnet_cifar10",
    "alexnet_cifar10_bn",
    "cuda_convnet_18pct",
    "vgg16_cifar",
    "resnet18_cifar",
)
EPOCHS = {"cifar10": 8, "synthetic": 4}
LR = {  # by optimizer and data set
    "sgd": {"cifar10": 0.05, "synthetic": 0.01},
    "adam": {"cifar10": 0.001, "synthetic": 0.001},
    "adamw": {"cifar10": 0.001, "synthetic": 0.001},
}
FULL = 250  # steps: a shorter run of sgd would rise to that rate too steeply, and diverge
DEFAULTS: dict[str, Any] = {
    # what makes a run the run that it is: saved with it, and kept by --resume
    "model": "alexnet_cifar10",
    "dataset": "auto",
    "epochs": None,
    "batch_size": 128,
    "lr": None,
    "weight_decay": 5e-4,
    "optimizer": "sgd",
    "schedule": "one-cycle",
    "augment": True,
    "limit": None,
    "seed": 0,
    # where and how it runs
    "device": "auto",
    "data": None,
    "threads": None,
    "out": None,
    "save_every": 0,
    "quiet": False,
}
RUN = tuple(DEFAULTS)[: tuple(DEFAULTS).index("device")]


def parse_arguments(argv: list[str] | None) -> tuple[dict[str, Any], str | None]:
    """All settings given on the command line, and what --resume said: None, "" or a file."""
    parser = argparse.ArgumentParser(
        description="Train AlexNet on CIFAR-10.", argument_default=argparse.SUPPRESS
    )
    run = parser.add_argument_group("the run")
    run.add_argument(
        "--model",
        choices=CIFAR_MODELS,
        help="the network: AlexNet (_bn: with batch normalisation), its author's small one, "
        "or what came after it (default: alexnet_cifar10)",
    )
    run.add_argument(
        "--dataset",
        choices=("auto", "cifar10", "synthetic"),
        help="auto: CIFAR-10 from disk, else by download, else synthetic: ten classes "
        "of drawn shapes (default: auto)",
    )
    run.add_argument(
        "--epochs",
        type=positive_int,
        metavar="N",
        help="passes over the training set (default: 8 for cifar10, 4 for synthetic)",
    )
    run.add_argument(
        "--batch-size", type=positive_int, metavar="N", help="images per step (default: 128)"
    )
    run.add_argument(
        "--lr",
        type=non_negative_float,
        metavar="X",
        help="learning rate, the highest of the schedule "
        "(default: 0.05 for sgd, on synthetic 0.01, and in proportion less for a run of fewer "
        f"than {FULL} steps; 0.001 for adam and adamw)",
    )
    run.add_argument(
        "--weight-decay",
        type=non_negative_float,
        metavar="X",
        help="decay of every parameter (default: 0.0005)",
    )
    run.add_argument(
        "--optimizer", choices=tuple(LR), help="sgd has Nesterov momentum 0.9 (default: sgd)"
    )
    run.add_argument(
        "--schedule",
        choices=("one-cycle", "cosine", "step", "constant"),
        help="one-cycle: linear up over a quarter of the steps, then down to 0; "
        "step: a tenth after each third (default: one-cycle)",
    )
    run.add_argument(
        "--augment",
        action=argparse.BooleanOptionalAction,
        help="random crops and flips of the training images (default: --augment)",
    )
    run.add_argument(
        "--limit",
        type=positive_int,
        metavar="N",
        help="use the first N images of each split (default: all)",
    )
    run.add_argument(
        "--seed",
        type=non_negative_int,
        metavar="N",
        help="of weights, order, augmentation and dropout (default: 0)",
    )
    place = parser.add_argument_group("where and how")
    place.add_argument(
        "--device",
        help="auto, cpu, cuda, cuda:N, or cudasim: the CUDA kernels on a CPU; auto takes a GPU "
        "if one can be used, and says why (default: auto)",
    )
    place.add_argument(
        "--data",
        metavar="DIR",
        help=f"folder with the data set (default: $GPUCNN_DATA, else {data.default_root()})",
    )
    place.add_argument(
        "--threads",
        type=positive_int,
        metavar="N",
        help="CPU threads; the result does not depend on it (default: all cores)",
    )
    place.add_argument(
        "--out",
        metavar="DIR",
        help="folder for config.json, metrics.csv, last.safetensors, "
        "best.safetensors, curves.png (default: a new one in runs/)",
    )
    place.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="FILE",
        help="go on with a stopped run, to the same result as if it had never "
        "stopped (default file: last.safetensors in --out, or of the newest run)",
    )
    place.add_argument(
        "--save-every",
        type=non_negative_int,
        metavar="N",
        help="also write last.safetensors every N steps; 0: after each epoch and "
        "when stopped with Ctrl-C (default: 0)",
    )
    place.add_argument(
        "--quiet", action="store_true", help="print the result and warnings only (default: off)"
    )
    given = vars(parser.parse_args(argv))
    return given, given.pop("resume", None)


def positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {value}")
    return value


def non_negative_int(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected 0 or more, got {value}")
    return value


def non_negative_float(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected 0 or more, got {text}")
    return value


def find_checkpoint(resume: str, out: str | None) -> Path:
    """The file to resume from."""
    if resume:
        return Path(resume)
    if out is not None:
        return Path(out) / "last.safetensors"
    found = sorted(Path("runs").glob("*/last.safetensors"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise CheckpointError("--resume: there is no run in runs/; name the file or use --out DIR")
    return found[-1]


def settings_of(given: dict[str, Any], saved: dict[str, Any] | None) -> dict[str, Any]:
    """Defaults, then the resumed run's settings, then the command line, which may not differ."""
    saved = {key: saved[key] for key in RUN} if saved else {}
    for key, value in given.items():
        if key in saved and saved[key] != value:
            raise ArgumentError(
                f"--resume: the run has {flag(key)} {saved[key]}, the command line {value}\n"
                f"  leave {flag(key)} out to go on, or start a new run without --resume"
            )
    return {**DEFAULTS, **saved, **given}


def flag(key: str) -> str:
    return "--" + key.replace("_", "-")


def new_folder(out: str | None) -> Path:
    """The folder of a new run, made; never one that holds a run already."""
    if out is None:
        folder = Path("runs") / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        while folder.exists():
            folder = folder.with_name(folder.name + "x")
    else:
        folder = Path(out)
        if (folder / "last.safetensors").exists():
            raise ArgumentError(
                f"--out: {folder} holds a run already\n"
                "  go on with it: --resume; or choose another folder"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"--out: {folder} cannot be made ({error.strerror})") from error
    return folder


def load_data(settings: dict[str, Any]) -> tuple[data.Dataset, data.Dataset, str]:
    """(training set, test set, "cifar10" or "synthetic"), limited to --limit images each."""
    name, quiet = settings["dataset"], settings["quiet"]
    pair = None
    if name != "synthetic":
        pair, reason = data.find_cifar10(settings["data"], quiet=quiet)
        if pair is None and name == "cifar10":
            raise DataError(f"--dataset cifar10: {reason}")
        if pair is None:
            print(
                f"*** CIFAR-10 is not here: {reason}\n"
                "*** Training on the SYNTHETIC set of drawn shapes instead: its accuracy says "
                "nothing about CIFAR-10.\n"
                "*** For the real one, put cifar-10-python.tar.gz into that folder (or into "
                "--data DIR) and run this again.",
                file=sys.stderr,
            )
        name = "synthetic" if pair is None else "cifar10"
    training, test = pair or (data.Synthetic(train=True), data.Synthetic(train=False))
    if settings["limit"] is not None:
        training, test = training.take(settings["limit"]), test.take(settings["limit"])
    return training, test, name


def make_optimizer(settings: dict[str, Any], model: gpucnn.nn.Module) -> optim.Optimizer:
    lr, decay = settings["lr"], settings["weight_decay"]
    if settings["optimizer"] == "sgd":
        return optim.SGD(model.parameters(), lr, momentum=0.9, nesterov=True, weight_decay=decay)
    kind = optim.Adam if settings["optimizer"] == "adam" else optim.AdamW
    return kind(model.parameters(), lr, weight_decay=decay)


def make_schedule(settings: dict[str, Any], total: int) -> optim.Schedule:
    lr = settings["lr"]
    return {
        "one-cycle": lambda: optim.OneCycle(lr, total),
        "cosine": lambda: optim.Cosine(lr, total),
        "step": lambda: optim.Step(lr, every=max(total // 3, 1)),
        "constant": lambda: optim.Constant(lr),
    }[settings["schedule"]]()


def make_callbacks(settings: dict[str, Any], out: Path, device: Device) -> list[train.Callback]:
    callbacks: list[train.Callback] = []
    if not settings["quiet"]:
        # a look at the metrics makes a GPU's host wait
        callbacks += [train.ProgressBar(refresh=1 if device.kind == "cpu" else 20)]
        callbacks += [train.EpochLine()]
    callbacks += [train.MetricsFile(out / "metrics.csv")]
    try:
        callbacks += [train.Curves(out / "curves.png")]
    except MissingExtra as error:
        if not settings["quiet"]:
            print(f"no curves.png: {error}")
    return [*callbacks, train.Checkpoints(out, settings["save_every"])]


def run(argv: list[str] | None = None) -> None:
    started = time.perf_counter()
    given, resume = parse_arguments(argv)
    checkpoint = None
    if resume is not None:
        path = find_checkpoint(resume, given.get("out"))
        checkpoint = train.read_checkpoint(path)
        if "settings" not in checkpoint.info:
            raise CheckpointError(f"--resume: {path} was not written by this script")
        given.setdefault("out", str(path.parent))
    settings = settings_of(given, checkpoint and checkpoint.info["settings"])
    say = (lambda *_: None) if settings["quiet"] else print

    device, reason = (
        choose_device()
        if settings["device"] == "auto"
        else (Device.parse(settings["device"]), "as asked")
    )
    say(f"device: {device} ({reason})")
    if settings["threads"] is not None:
        gpucnn.set_num_threads(settings["threads"])
    training, test, settings["dataset"] = load_data(settings)
    if settings["epochs"] is None:
        settings["epochs"] = EPOCHS[settings["dataset"]]
    if settings["lr"] is None:
        settings["lr"] = LR[settings["optimizer"]][settings["dataset"]]
        steps = settings["epochs"] * math.ceil(len(training) / settings["batch_size"])
        if settings["optimizer"] == "sgd":
            settings["lr"] *= min(steps / FULL, 1)
    say(f"data: {training}, {test}")

    gpucnn.manual_seed(settings["seed"])
    model = models.build(settings["model"]).to(device)
    mean, std = data.channel_statistics(training.images)
    normalize = data.Normalize(mean, std)
    crop_and_flip = (data.RandomCrop(32, padding=4, mode="reflect"), data.RandomFlip())
    transform = data.Compose(*(crop_and_flip if settings["augment"] else ()), normalize)
    loader = data.DataLoader(
        training,
        settings["batch_size"],
        shuffle=True,
        transform=transform,
        seed=settings["seed"],
        device=device,
    )
    test_loader = data.DataLoader(test, 500, transform=normalize, device=device)

    out = new_folder(settings["out"]) if checkpoint is None else Path(settings["out"])
    out.mkdir(parents=True, exist_ok=True)
    config = {key: settings[key] for key in RUN}
    trainer = train.Trainer(
        model,
        make_optimizer(settings, model),
        loader,
        test_loader,
        make_schedule(settings, settings["epochs"] * len(loader)),
        callbacks=make_callbacks(settings, out, device),
        info={
            "model": {"name": settings["model"], "config": {}},
            "classes": list(training.classes),
            "normalize": {"mean": list(mean), "std": list(std)},
            "settings": config,
        },
    )
    if checkpoint is not None:
        trainer.resume(checkpoint)
        say(f"going on after epoch {trainer.epoch}, step {trainer.step}")
    (out / "config.json").write_text(
        json.dumps({**config, "device": str(device), "gpucnn": gpucnn.__version__}, indent=2) + "\n"
    )
    say(f"out: {out}")

    try:
        trainer.fit(settings["epochs"])
    except KeyboardInterrupt:
        print(
            f"\nstopped in epoch {trainer.epoch + 1}, after step {trainer.step}; "
            f"go on with --resume {out / 'last.safetensors'}",
            file=sys.stderr,
        )
        raise

    result = trainer.evaluation or train.evaluate(model, test_loader)
    print(f"test accuracy {result.accuracy:.2%}, test loss {result.loss:.4f}")
    for name, accuracy in zip(training.classes, result.per_class, strict=True):
        say(f"  {name:<12} {accuracy:7.2%}")
    print(f"wall time {time.perf_counter() - started:.1f} s")


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 done, 2 a mistake in what was asked, 130 stopped."""
    try:
        run(argv)
    except gpucnn.GpucnnError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
