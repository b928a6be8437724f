import argparse
from pathlib import Path

import pytest

from gpucnn.arguments import non_negative_float, positive_int
from gpucnn.errors import CheckpointError
from gpucnn.train.saved_settings import check_settings


def flags():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=positive_int)
    parser.add_argument("--lr", type=non_negative_float)
    parser.add_argument("--optimizer", choices=("sgd", "adam"))
    parser.add_argument("--augment", action=argparse.BooleanOptionalAction)
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--data")
    parser.add_argument("--crop", type=int, nargs=2)
    return {action.dest: action for action in parser._actions}


DEFAULTS = {
    "epochs": 8, "lr": None, "optimizer": "sgd", "augment": True, "exact": False, "data": None,
    "crop": None,
}  # fmt: skip


def test_values_that_the_command_line_could_give_are_accepted():
    given = {"epochs": 3, "lr": 0.02, "optimizer": "adam", "augment": False, "exact": True}
    check_settings(flags(), DEFAULTS, given, "file")
    check_settings(flags(), DEFAULTS, {"crop": [3, 4], "data": "/x"}, Path("file"))
    check_settings(flags(), DEFAULTS, DEFAULTS, "file")


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0}, {"epochs": "3"}, {"epochs": 3.5}, {"epochs": True},
        {"epochs": 8.0}, {"epochs": None},
        {"lr": -1.0}, {"lr": "x"}, {"optimizer": "rprop"}, {"optimizer": 3}, {"augment": "yes"},
        {"exact": 1.5}, {"exact": 0}, {"data": 3}, {"crop": [1, "x"]}, {"crop": "x"},
        {"epochs": [3]},
    ],
)  # fmt: skip
def test_a_value_that_no_command_line_gives_is_named(wrong):
    (key,) = wrong
    with pytest.raises(
        CheckpointError, match=f"checkpoint file: the run has --{key} .* is no value of this flag"
    ):
        check_settings(flags(), DEFAULTS, wrong, "file")
