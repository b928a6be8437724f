"""The command line: `gpucnn COMMAND`.

Each command is one file, or one folder: its parser, its run, its work.  A GpucnnError ends in its
text on standard error and exit status 2.
"""

import argparse
import os
import sys

from gpucnn._version import __version__
from gpucnn.commands import check, convert, doctor, export, kernels, predict, warmup
from gpucnn.errors import GpucnnError


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 something is broken, 2 a mistake in what was asked, 130 stopped."""
    parser = argparse.ArgumentParser(prog="gpucnn", description="Work with trained networks.")
    parser.add_argument("--version", action="version", version=f"gpucnn {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (predict, convert, export, doctor, kernels, warmup, check):
        command.add_parser(commands)
    arguments = parser.parse_args(argv)
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except GpucnnError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read it has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to flush
        return 0
    return status
