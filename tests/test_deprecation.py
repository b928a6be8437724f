"""Old names work, and warn at the caller's line with the new name and the version."""

import re
from pathlib import Path

import pytest

from gpucnn.deprecation import deprecated, renamed_argument, renamed_attribute, renamed_function


def double(x):
    return 2 * x


twice = renamed_function("twice", double, "0.3")


@renamed_argument("lr", "rate", "0.3")
def scale(x, *, rate=1.0):
    return rate * x


class Clock:
    seconds = 5
    time = renamed_attribute("time", "seconds", "0.4")


def old_way():
    deprecated("old_way()", "new_way()", "1.0")


def set_time(clock):
    clock.time = 7


@pytest.mark.parametrize(
    ("use", "result", "message"),
    [
        (lambda: twice(4), 8, "twice is deprecated and will be removed in gpucnn 0.3; use double"),
        (lambda: scale(4, lr=3), 12, "scale(lr=...) is deprecated and will be removed in gpucnn 0"),
        (lambda: Clock().time, 5, "Clock.time is deprecated and will be removed in gpucnn 0.4; "),
        (lambda: set_time(Clock()), None, "gpucnn 0.4; use seconds"),
        (lambda: old_way(), None, "old_way() is deprecated and will be removed in gpucnn 1.0; use"),
    ],
    ids=["function", "argument", "attribute", "set attribute", "any other use"],
)
def test_an_old_name_works_and_warns_at_the_line_that_uses_it(use, result, message):
    with pytest.warns(DeprecationWarning, match=re.escape(message)) as found:
        assert use() == result
    (warning,) = found
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    line = lines[warning.lineno - 1]
    assert warning.filename == __file__
    assert "lambda: " in line or "clock.time = 7" in line


def test_a_new_name_does_not_warn():
    assert double(4) == 8
    assert scale(4, rate=3) == 12
    assert Clock().seconds == 5


def test_an_attribute_is_set_under_its_old_name():
    clock = Clock()
    with pytest.warns(DeprecationWarning, match=r"Clock\.time"):
        clock.time = 9
    assert clock.seconds == 9


def test_both_names_of_an_argument_are_refused():
    with (
        pytest.warns(DeprecationWarning, match="use rate="),
        pytest.raises(TypeError, match="scale: got both lr and rate"),
    ):
        scale(1, lr=2, rate=3)


def test_a_function_keeps_its_documentation_under_its_old_name():
    assert twice.__wrapped__ is double
    assert scale.__name__ == "scale"
