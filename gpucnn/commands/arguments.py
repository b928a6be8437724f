"""Arguments and helpers that several commands share: --model, --batch, the progress bar."""

import argparse
from typing import TYPE_CHECKING, Any, TypeAlias

from tqdm import tqdm

from gpucnn.arguments import positive_int

if TYPE_CHECKING:
    Commands: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands = Any


def add_model(parser: argparse.ArgumentParser, prefix: str = "") -> None:
    """Add --model and --batch; prefix goes before their help texts."""
    parser.add_argument(
        "--model",
        metavar="NAME",
        help=f"{prefix}a model of gpucnn.models, by name (default: alexnet_cifar10)",
    )
    parser.add_argument(
        "--batch",
        type=positive_int,
        metavar="N",
        help=f"{prefix}images per batch (default: 128)",
    )


def model_and_batch(arguments: argparse.Namespace) -> tuple[str, int]:
    """The values of --model and --batch, or their defaults.

    The parser's own default is None, so that a command can tell whether a flag was given.
    """
    return arguments.model or "alexnet_cifar10", arguments.batch or 128


def progress_bar(work: list[Any]) -> Any:
    """Iterate over `work`, showing a progress bar if standard error is a terminal."""
    return tqdm(work, "compiling", disable=None, leave=False)
