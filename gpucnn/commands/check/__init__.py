"""`gpucnn check`: does gpucnn work on this device, and how fast is it?

    gpucnn check --device cuda              about 8 minutes
    gpucnn check --device cuda --quick      1 to 2 minutes
    gpucnn check --device cudasim --quick   the same, on any CPU with a C++ compiler

Nine parts run one after the other, each in its own process with a time limit (runner.py).  A part
reports each finding at once (part.py), and each finding is written at once to DIR/report.md and
DIR/report.json (report.py), so that even a killed run leaves a report.  docs/check.md explains
the report.
"""

import argparse
import re
from dataclasses import replace

from gpucnn import models
from gpucnn.arguments import output_folder, positive_int
from gpucnn.commands.arguments import Commands
from gpucnn.commands.check import runner
from gpucnn.commands.check.runner import Part
from gpucnn.errors import ArgumentError

PARTS = (
    Part("machine", "Versions, driver, GPU and its limits", 30, 25),
    Part("agreement", "Every kernel against NumPy", 85, 60, 0.5),
    Part("compiled", "Compile times, registers and local memory", 50, 25),
    Part("suite", "The GPU tests", 120, 30),
    Part("sanitizer", "compute-sanitizer", 60, 20),
    Part("step", "The training step", 75, 30),
    Part("peer", "Comparison with PyTorch", 75, 25),
    Part("profiles", "Each kernel of a step", 50, 20),
    Part("probes", "DLPack, memory, streams, graphs, peer copies, NCCL", 40, 25, 0.5),
)
_PATIENCE = 9.0  # on cudasim: the CPU that compiles and runs the kernels may have other work


def add_parser(commands: Commands) -> None:
    parser = commands.add_parser(
        "check",
        help="test an installation and measure its GPU",
        description="Check every kernel against NumPy, run the GPU tests, and measure the device, "
        "the training step, and PyTorch for comparison.  The exit status is 1 if a part failed.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cudasim (default: cuda)")
    parser.add_argument(
        "--quick", action="store_true", help="run for one to two minutes instead of eight"
    )
    parser.add_argument(
        "--out",
        default="check",
        metavar="DIR",
        help="folder for report.md and report.json (default: check)",
    )
    parser.add_argument("--parts", nargs="+", metavar="NAME", help="run only these parts")
    parser.add_argument(
        "--model",
        default="alexnet_cifar10",
        metavar="NAME",
        help="the model to train, by its name in gpucnn.models (default: alexnet_cifar10)",
    )
    parser.add_argument(
        "--limit",
        type=positive_int,
        metavar="SECONDS",
        help="cap the time limit of each part (default: the part's own limit)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Exit status: 0 if nothing failed, 1 if a part failed, 130 if interrupted."""
    if not re.fullmatch(r"cuda(:\d+)?|cudasim", arguments.device):
        raise ArgumentError(
            f"check: device {arguments.device!r} runs no kernels\n"
            "  expected cuda, cuda:N (N = 0, 1, ...) or cudasim"
        )
    models.input_shape(arguments.model)  # raises for a model that is unknown or needs a config
    names = [part.name for part in PARTS]
    unknown = [name for name in arguments.parts or () if name not in names]
    if unknown:
        raise ArgumentError(
            f"check: there is no part {unknown[0]!r}\n  expected some of {', '.join(names)}"
        )
    return runner.run(
        arguments.device,
        arguments.quick,
        arguments.model,
        output_folder(arguments.out),
        [
            replace(part, patience=_PATIENCE if arguments.device == "cudasim" else 1.0)
            for part in PARTS
            if part.name in (arguments.parts or names)
        ],
        arguments.limit,
    )
