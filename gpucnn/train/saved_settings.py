"""The settings in a checkpoint of a script's run, checked against the script's flags."""

import argparse
import reprlib
from collections.abc import Mapping
from typing import Any

from gpucnn.arguments import duration, non_negative_float
from gpucnn.errors import ArgumentError, CheckpointError


def check_settings(
    flags: Mapping[str, argparse.Action],
    defaults: Mapping[str, Any],
    saved: Mapping[str, Any],
    path: Any,
) -> None:
    """Raise CheckpointError unless each of `saved`, {setting: value}, could come from its flag.

    A flag's default is accepted too.  `path` names the checkpoint in the error.
    """
    for key, value in saved.items():
        default = defaults[key]
        if value == default and type(value) is type(default):  # 0.0 and False equal 0
            continue
        several = isinstance(value, list) and flags[key].nargs is not None
        if not all(_fits(flags[key], item) for item in (value if several else [value])):
            flag = "--" + key.replace("_", "-")
            raise CheckpointError(
                f"checkpoint {path}: the run has {flag} {reprlib.repr(value)}, which is no value "
                "of this flag\n  resume from another checkpoint, or start a new run"
            )


def check_epochs(epochs: int, completed: int) -> None:
    """Raise ArgumentError if --epochs leaves a resumed run nothing to train."""
    if epochs <= completed:
        raise ArgumentError(
            f"--resume: the run has completed {completed} epochs, the command line has --epochs "
            f"{epochs}\n  --epochs counts those before too: choose {completed + 1} or more"
        )


def _fits(flag: argparse.Action, value: Any) -> bool:
    if flag.nargs == 0:  # a switch
        return isinstance(value, bool)
    if flag.choices is not None:
        return value in flag.choices
    if flag.type is None:
        return isinstance(value, str)
    # A duration is recorded in seconds, and given in minutes.
    parse: Any = non_negative_float if flag.type is duration else flag.type
    try:
        parsed = parse(str(value))
    except (ValueError, TypeError, argparse.ArgumentTypeError):
        return False
    return not isinstance(value, bool) and bool(parsed == value)
