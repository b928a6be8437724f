"""`gpucnn check`: does gpucnn work on this device, and how fast.

    gpucnn check --device cuda            about 8 minutes
    gpucnn check --device cuda --quick    about one
    gpucnn check --device cudasim --quick the same on any CPU with a C++ compiler

Nine parts run one after the other, each in a process of its own and under its own time limit
(runner.py).  A part says what it finds as it goes (part.py), and each finding is in
DIR/report.md and DIR/report.json at once (report.py), so that a run that is killed has told what it
saw.  docs/check.md says how to read a report.
"""

import argparse
import re
from typing import TYPE_CHECKING

from gpucnn.arguments import output_folder, positive_int
from gpucnn.errors import ArgumentError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_parser(commands: "Commands") -> None:
    """The command `check`."""
    parser = commands.add_parser(
        "check",
        help="prove an installation, and measure its GPU",
        description="Check every kernel against NumPy, run the tests for GPUs, and measure the "
        "device, the training step and PyTorch beside it.  Exit status 1 if a part failed.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cudasim (default: cuda)")
    parser.add_argument("--quick", action="store_true", help="a minute instead of eight")
    parser.add_argument(
        "--out",
        default="check",
        metavar="DIR",
        help="where report.md and report.json go (default: check)",
    )
    parser.add_argument("--parts", nargs="+", metavar="NAME", help="these parts alone")
    parser.add_argument(
        "--model",
        default="alexnet_cifar10",
        metavar="NAME",
        help="what trains, by its name in gpucnn.models (default: alexnet_cifar10)",
    )
    parser.add_argument(
        "--limit",
        type=positive_int,
        metavar="SECONDS",
        help="the most that a part may take (default: each its own)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Exit status: 0 nothing failed, 1 a part failed, 130 stopped."""
    from gpucnn import models
    from gpucnn.commands.check import runner

    if not re.fullmatch(r"cuda(:\d+)?|cudasim", arguments.device):
        raise ArgumentError(
            f"check: device {arguments.device!r} runs no kernels\n"
            "  expected cuda, cuda:N (N = 0, 1, ...) or cudasim"
        )
    if len(models.input_shape(arguments.model)) != 3:
        raise ArgumentError(f"check: model {arguments.model} is not for images")
    known = [part.name for part in runner.PARTS]
    unknown = [name for name in arguments.parts or () if name not in known]
    if unknown:
        raise ArgumentError(
            f"check: there is no part {unknown[0]!r}\n  expected some of {', '.join(known)}"
        )
    return runner.run(
        arguments.device,
        arguments.quick,
        arguments.model,
        output_folder(arguments.out),
        [part for part in runner.PARTS if part.name in (arguments.parts or known)],
        arguments.limit,
    )
