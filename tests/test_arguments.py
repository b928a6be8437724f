import argparse

import numpy as np
import pytest

from gpucnn.arguments import Stopped, duration, exit_status, printable, size
from gpucnn.errors import CheckpointError, DataError


def test_control_characters_are_escaped_and_other_text_is_not():
    assert printable("cat\x1b[2J\r\x07\u202ed\n\tÄ猫") == "cat\\x1b[2J\\r\\x07\\u202ed\n\tÄ猫"


def test_an_error_cannot_send_commands_to_the_terminal(capsys):
    def fail():
        raise DataError("class \x1b]0;title\x07")

    assert exit_status(fail) == 2
    assert capsys.readouterr().err == "error: class \\x1b]0;title\\x07\n"


def test_a_memory_error_ends_in_a_message_and_status_2(capsys):
    assert exit_status(lambda: np.empty(1 << 60, np.uint8)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: out of memory (Unable to allocate")
    assert "Traceback" not in error


def test_a_command_ends_with_the_status_that_it_returns_or_was_stopped_with():
    def stop(error):
        raise error

    assert exit_status(lambda: None) == 0
    assert exit_status(lambda: 1) == 1
    assert exit_status(lambda: stop(KeyboardInterrupt)) == 130
    assert exit_status(lambda: stop(Stopped(143))) == 143


def test_a_duration_is_in_minutes_unless_it_names_its_unit():
    texts = ["10", "0.5", ".5", "90s", "10m", "2h", "1d", "0", "2H"]
    assert [duration(text) for text in texts] == [600, 30, 30, 90, 600, 7200, 86400, 0, 7200]


def test_a_size_is_in_bytes_or_powers_of_1024():
    texts = ["2G", "800M", "1.5k", "64KiB", "3GB", "123", "1T"]
    assert [size(text) for text in texts] == [
        2 << 30, 800 << 20, 1536, 65536, 3 << 30, 123, 1 << 40
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["", "0", "-1G", "G", "2X", "1e9", "inf", "0.0001"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected a size such as 800M or 2G"):
        size(text)


def test_the_middle_of_a_very_long_message_is_left_out():
    fits, longer = "a" * 10_000, "start " + "a" * 100_000 + " end"
    assert str(CheckpointError(fits)) == fits
    assert len(str(CheckpointError(longer))) < 10_100
    assert str(CheckpointError(longer)).startswith("start a")
    assert "... 90,010 characters left out ..." in str(CheckpointError(longer))
    assert str(CheckpointError(longer)).endswith("a end")
