"""The command line: `gpucnn COMMAND`.

Each command is a file or folder with `add_parser` and `run`.  launches.py and kernel_export.py hold
work that several commands share.  completion.py is --print-completion.
"""

import argparse

from gpucnn._version import __version__
from gpucnn.arguments import exit_status
from gpucnn.commands import check, convert, doctor, export, kernels, predict, warmup
from gpucnn.commands.completion import add_print_completion

_COMMANDS = (predict, convert, export, doctor, kernels, warmup, check)


def main(argv: list[str] | None = None) -> int:
    """Run the command that `argv` names (sys.argv[1:] if None) and return the exit status.

    0: success; 1: the command found a fault; 2: a user's mistake, printed to standard error, or a
    full standard output; 130: interrupted.
    """
    parser = argparse.ArgumentParser(
        prog="gpucnn", description="Use trained networks, and inspect the CUDA kernels and devices."
    )
    parser.add_argument("--version", action="version", version=f"gpucnn {__version__}")
    add_print_completion(parser)
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add_parser(subparsers)

    def run() -> object:
        arguments = parser.parse_args(argv)
        return arguments.run(arguments)

    return exit_status(run, output_required=True)
