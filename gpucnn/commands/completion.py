"""`gpucnn --print-completion SHELL`: the script with which a shell completes the command line.

shtab writes the script from the parsers.  Their arguments have metavars such as FILE instead of
choices, to keep the help short and leave the checks to the commands; the table below says what each
metavar stands for.
"""

import argparse
import re
from collections.abc import Iterator, Sequence
from typing import Any

from gpucnn.commands.check import PARTS
from gpucnn.errors import missing_extra
from gpucnn.models.registry import BY_NAME

_SHELLS = ("bash", "zsh", "tcsh")
_FILES = {"CHECKPOINT", "FILE", "IMAGE", "SOURCE", "TARGET"}
_FOLDERS = {"DIR"}
_WORDS = {"--model": tuple(BY_NAME), "--parts": tuple(part.name for part in PARTS)}


def add_print_completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        choices=_SHELLS,
        help="print the script with which this shell completes gpucnn's arguments, and exit",
    )


class _PrintCompletion(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        try:
            import shtab
        except ImportError as error:
            raise missing_extra("--print-completion", "shtab", "completion") from error
        for action in _actions(parser):
            if action.metavar in _FILES:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
            elif action.metavar in _FOLDERS:
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
            for flag in action.option_strings:
                action.choices = _WORDS.get(flag, action.choices)
            if "--device" in action.option_strings:  # its help names those that the command takes
                action.choices = re.findall(r"(?:auto|cpu|cuda|cudasim)(?=,| )", action.help or "")
        print(shtab.complete(parser, str(values)))
        parser.exit()


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The arguments of a parser and of its subcommands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
        yield action
