"""The command line: `gpucnn predict`, `gpucnn convert`, `gpucnn export`.

Each command is one function that adds its parser, and one that runs it.  A GpucnnError ends in its
text on standard error and exit status 2.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import gpucnn
from gpucnn import models
from gpucnn.convert import convert_file
from gpucnn.errors import ArgumentError, DataError, GpucnnError
from gpucnn.onnx_export import export_onnx
from gpucnn.predict import Classifier, bars
from gpucnn.saved import described, rebuild
from gpucnn.train.checkpoint import read_checkpoint

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 done, 2 a mistake in what was asked, 130 stopped."""
    parser = argparse.ArgumentParser(prog="gpucnn", description="Work with trained networks.")
    parser.add_argument("--version", action="version", version=f"gpucnn {gpucnn.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (_add_predict, _add_convert, _add_export):
        add(commands)
    arguments = parser.parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except GpucnnError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return status


# --- predict ---


def _add_predict(commands: "Commands") -> None:
    parser = commands.add_parser(
        "predict",
        help="what a trained model sees in images",
        description="Print the likeliest classes of each image, with bars.",
    )
    parser.set_defaults(run=_predict)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="such as best.safetensors")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="an image file")
    parser.add_argument(
        "--top", type=_positive, default=5, metavar="N", help="classes to print (default: 5)"
    )
    parser.add_argument(
        "--classes",
        metavar="FILE",
        help="names of the classes, one a line (default: those in the checkpoint)",
    )
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda or cuda:N (default: cpu)")


def _predict(arguments: argparse.Namespace) -> int:
    names = None if arguments.classes is None else _lines(Path(arguments.classes))
    classifier = Classifier(arguments.checkpoint, arguments.device, names)
    if not classifier.normalized:
        print(
            "note: the checkpoint has no normalisation; pixels are scaled to 0 ... 1",
            file=sys.stderr,
        )
    status = 0
    for path in arguments.images:
        try:
            text = bars(classifier.guesses(path, arguments.top))
        except DataError as error:  # one bad file does not keep the others from being seen
            print(f"error: {error}", file=sys.stderr)
            status = 2
            continue
        print(f"{path}\n{text}")
    return status


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"--classes: {path} cannot be read ({error})") from error


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {value}")
    return value


# --- convert ---


def _add_convert(commands: "Commands") -> None:
    parser = commands.add_parser(
        "convert",
        help="torchvision's AlexNet to gpucnn's and back",
        description="Turn a state dict of torchvision's AlexNet (.safetensors, .pth or .pt) into "
        "a gpucnn checkpoint, or a checkpoint of alexnet_torchvision into such a state dict; "
        "which of the two, the source tells.",
    )
    parser.set_defaults(run=_convert)
    parser.add_argument("source", metavar="SOURCE", help="the file to read")
    parser.add_argument("target", metavar="TARGET", help="the file to write")


def _convert(arguments: argparse.Namespace) -> int:
    print(convert_file(arguments.source, arguments.target))
    return 0


# --- export ---


def _add_export(commands: "Commands") -> None:
    parser = commands.add_parser(
        "export",
        help="a checkpoint as an ONNX file",
        description="Write the model of a checkpoint as an ONNX file.  Its input is float32 "
        "(N, H, W, C), normalised; names and normalisation are in the file's metadata.",
    )
    parser.set_defaults(run=_export)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="such as best.safetensors")
    parser.add_argument("target", metavar="TARGET", help="the .onnx file to write")


def _export(arguments: argparse.Namespace) -> int:
    saved = read_checkpoint(arguments.checkpoint)
    name, config = described(saved, arguments.checkpoint)
    model = rebuild(saved, arguments.checkpoint)
    shape = models.input_shape(name, **config)
    metadata: dict[str, str] = {
        key: json.dumps(saved.info[key]) for key in ("classes", "normalize") if key in saved.info
    }
    export_onnx(model, arguments.target, shape, metadata)
    print(f"{arguments.target}: {name}, input (N, {', '.join(map(str, shape))})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
