"""What several commands share: --model and --batch, and a progress bar."""

import argparse
from typing import TYPE_CHECKING, Any, TypeAlias

from tqdm import tqdm

from gpucnn.arguments import positive_int

if TYPE_CHECKING:
    Commands: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands = Any


def add_model(parser: argparse.ArgumentParser, when: str = "") -> None:
    parser.add_argument(
        "--model",
        metavar="NAME",
        help=f"{when}the model, by its name in gpucnn.models (default: alexnet_cifar10)",
    )
    parser.add_argument(
        "--batch",
        type=positive_int,
        metavar="N",
        help=f"{when}images in a batch (default: 128)",
    )


def model_and_batch(arguments: argparse.Namespace) -> tuple[str, int]:
    return arguments.model or "alexnet_cifar10", arguments.batch or 128


def progress_bar(work: list[Any]) -> Any:
    """Goes through `work` under a progress bar, where somebody sees it."""
    return tqdm(work, "compiling", disable=None, leave=False)
