"""The command line: `gpucnn COMMAND`.

Each command is a file or folder with `add_parser` and `run`.  launches.py and kernel_export.py hold
work that several commands share.
"""

import argparse
import os
import sys

from gpucnn._version import __version__
from gpucnn.commands import check, convert, doctor, export, kernels, predict, warmup
from gpucnn.errors import GpucnnError

_COMMANDS = (predict, convert, export, doctor, kernels, warmup, check)


def main(argv: list[str] | None = None) -> int:
    """Run the command that `argv` names (sys.argv[1:] if None) and return the exit status.

    0: success; 1: the command found a fault; 2: a user's mistake, printed to standard error; 130:
    interrupted.
    """
    parser = argparse.ArgumentParser(
        prog="gpucnn", description="Use trained networks, and inspect the CUDA kernels and devices."
    )
    parser.add_argument("--version", action="version", version=f"gpucnn {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add_parser(subparsers)
    arguments = parser.parse_args(argv)
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except GpucnnError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, such as `head`, closed the pipe
        # Python flushes standard output once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status
