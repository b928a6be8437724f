"""`gpucnn predict`: classify image files with a trained model."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gpucnn.arguments import positive_int
from gpucnn.commands.arguments import Commands
from gpucnn.errors import ArgumentError, DataError
from gpucnn.models.classifier import Classifier, Guess

_EIGHTHS = " ▏▎▍▌▋▊▉"


def add_parser(commands: Commands) -> None:
    parser = commands.add_parser(
        "predict",
        help="classify image files with a trained model",
        description="Print the most probable classes of each image, with bars.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a checkpoint, such as best.safetensors"
    )
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="an image file")
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
    classifier = Classifier(arguments.checkpoint, arguments.device, names)
    if not classifier.normalized:
        print(
            "note: the checkpoint has no normalisation; pixels are scaled to [0, 1]",
            file=sys.stderr,
        )
    status = 0
    for path in arguments.images:
        try:
            text = bars(classifier.guesses(path, arguments.top))
        except DataError as error:  # continue with the other files
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
    longest = max(len(guess.name) for guess in guesses)
    lines = []
    for guess in guesses:
        whole, eighths = divmod(round(guess.probability * width * 8), 8)
        bar = "█" * whole + _EIGHTHS[eighths] if blocks else "#" * (whole + (eighths >= 4))
        lines.append(f"  {guess.name:<{longest}}  {guess.probability:7.2%}  {bar}".rstrip())
    return "\n".join(lines)
