"""`gpucnn predict`: classify image files with a trained model."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gpucnn import weights
from gpucnn.arguments import positive_int, printable
from gpucnn.commands.arguments import Commands
from gpucnn.errors import ArgumentError, DataError
from gpucnn.models.classifier import Classifier, Guess

_EIGHTHS = " ▏▎▍▌▋▊▉"


def add_parser(commands: Commands) -> None:
    parser = commands.add_parser(
        "predict",
        help="classify image files with a trained model",
        description="Print the most probable classes of each image, with bars.",
        usage="gpucnn predict [options] [CHECKPOINT.safetensors] IMAGE...",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        help="image files, after the checkpoint to use, such as best.safetensors; without a "
        "checkpoint, a network that comes with gpucnn is used",
    )
    parser.add_argument(
        "--weights",
        choices=weights.names(),
        help=f"a network that comes with gpucnn (default without a checkpoint: {weights.DEFAULT})",
    )
    parser.add_argument(
        "--top", type=positive_int, default=5, metavar="N", help="classes to print (default: 5)"
    )
    parser.add_argument(
        "--classes",
        metavar="FILE",
        help="class names, one per line (default: those in the checkpoint)",
    )
    parser.add_argument(
        "--device", default="cpu", help="auto, cpu, cuda, cuda:N or cudasim (default: cpu)"
    )


def run(arguments: argparse.Namespace) -> int:
    names = None if arguments.classes is None else _lines(Path(arguments.classes))
    checkpoint, images = _checkpoint_and_images(arguments)
    classifier = Classifier(checkpoint, arguments.device, names)
    if checkpoint.parent == weights.path(weights.DEFAULT).parent:
        print(_introduction(checkpoint.stem), file=sys.stderr)
    if not classifier.normalized:
        print(
            "note: the checkpoint has no normalisation; pixels are scaled to [0, 1]",
            file=sys.stderr,
        )
    status = 0
    for path in images:
        try:
            text = bars(classifier.guesses(path, arguments.top))
        except DataError as error:  # continue with the other files
            print(printable(f"error: {error}"), file=sys.stderr)
            status = 2
            continue
        print(f"{printable(path)}\n{text}")
    return status


def _checkpoint_and_images(arguments: argparse.Namespace) -> tuple[Path, list[str]]:
    """The first file, if its name is that of a checkpoint, or a file that comes with gpucnn."""
    first, *rest = arguments.files
    if not first.endswith(".safetensors"):
        return weights.path(arguments.weights or weights.DEFAULT), arguments.files
    if arguments.weights is not None:
        raise ArgumentError(f"predict: name either {first} or --weights {arguments.weights}")
    if not rest:
        raise ArgumentError(f"predict: expected image files after the checkpoint {first}")
    return Path(first), rest


def _introduction(name: str) -> str:
    """What the user should know about a network that comes with gpucnn."""
    info = weights.info(name)
    card = info["card"]
    return (
        f"{name}, which comes with gpucnn: {card['accuracy']:.1%} of the test images right\n"
        f"  trained on {card['data']}\n"
        f"  it knows only {', '.join(info['classes'])}"
    )


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"--classes: {path} cannot be read ({error})") from error


def bars(guesses: Sequence[Guess], width: int = 40, encoding: str | None = None) -> str:
    """One line per guess: name, percentage, and a bar of up to `width` characters.

    encoding is that of the output stream; None means standard output's.  Bars are block characters
    if the encoding has them, else number signs.
    """
    try:
        (_EIGHTHS + "█").encode(encoding or sys.stdout.encoding or "ascii")
        blocks = True
    except (UnicodeEncodeError, LookupError):
        blocks = False
    names = [printable(guess.name) for guess in guesses]
    longest = max(map(len, names))
    lines = []
    for name, guess in zip(names, guesses, strict=True):
        whole, eighths = divmod(round(guess.probability * width * 8), 8)
        bar = "█" * whole + _EIGHTHS[eighths] if blocks else "#" * (whole + (eighths >= 4))
        lines.append(f"  {name:<{longest}}  {guess.probability:7.2%}  {bar}".rstrip())
    return "\n".join(lines)
