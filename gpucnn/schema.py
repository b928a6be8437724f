"""Plain JSON data from files: parsed strictly, then checked entry by entry.

A check is called as check(value, where).  It raises CheckpointError, naming the entry, what was
expected and what was found, unless the value fits:

    row = record({"epoch": integer(1), "loss": number(), "note": optional(text)})
    list_of(row)(info["history"], "history")
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from gpucnn.errors import CheckpointError, kind

Check = Callable[[Any, str], None]


def parse(text: str, what: str) -> Any:
    """The JSON value in `text`.

    Raises CheckpointError, which starts with `what`, for anything but JSON; and for NaN and
    infinity, a key that occurs twice, an integer of more than 4,300 digits, half of a surrogate
    pair, and values that are nested too deeply.
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_float=_finite,
            parse_constant=_finite,
        )
        if "\\u" in text:  # only such an escape can be half of a surrogate pair
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise CheckpointError(f"{what}: nested too deeply") from None
    except ValueError as error:  # also errors of JSON and Unicode
        raise CheckpointError(f"{what}: not plain JSON data ({error})") from None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:20]}")
    return value


# --- checks ---


def mismatch(where: str, expected: str, value: Any) -> CheckpointError:
    """The error for an entry that does not fit."""
    return CheckpointError(f"{where}: expected {expected}, got {shown(value)}")


def shown(value: Any) -> str:
    """Describe a value of a file for a message, in at most 60 characters or so."""
    if not isinstance(value, str | int | float):
        return kind(value)
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def integer(least: int = 0, most: int = 2**63 - 1) -> Check:
    """An int, not a bool, of `least` to `most`."""
    expected = f"an int of at least {least}"
    if most != 2**63 - 1:
        expected = f"an int of {least} to {most}"

    def check(value: Any, where: str) -> None:
        if type(value) is not int or not least <= value <= most:
            raise mismatch(where, expected, value)

    return check


def number(least: float = -math.inf, most: float = math.inf) -> Check:
    """A finite int or float, not a bool, of `least` to `most`."""
    expected = "a finite number"
    if (least, most) != (-math.inf, math.inf):
        expected = f"a number of at least {least:g}"
    if least > -math.inf and most < math.inf:
        expected = f"a number of {least:g} to {most:g}"

    def check(value: Any, where: str) -> None:
        if (
            type(value) not in (int, float)
            or not -1.7e308 < value < 1.7e308  # an int may be larger than any float
            or not least <= value <= most
        ):
            raise mismatch(where, expected, value)

    return check


def text(value: Any, where: str) -> None:
    if not isinstance(value, str):
        raise mismatch(where, "text", value)


def exactly(value: Any) -> Check:
    """A value equal to `value`."""

    def check(found: Any, where: str) -> None:
        if found != value:
            raise mismatch(where, repr(value), found)

    return check


def flag(value: Any, where: str) -> None:
    if not isinstance(value, bool):
        raise mismatch(where, "true or false", value)


def scalar(value: Any, where: str) -> None:
    """Text, a finite number, a bool or None."""
    if value is not None and not isinstance(value, str | bool):
        number()(value, where)


def anything(value: Any, where: str) -> None:
    """No check: `parse` has seen that it is JSON."""


def optional(check: Check) -> Check:
    """None, or a value that `check` accepts."""

    def check_optional(value: Any, where: str) -> None:
        if value is not None:
            check(value, where)

    return check_optional


def list_of(check: Check, length: int | None = None) -> Check:
    """A list of values that `check` accepts, `length` of them if given."""

    def check_list(value: Any, where: str) -> None:
        if not isinstance(value, list | tuple) or length not in (None, len(value)):
            raise mismatch(where, "a list" + ("" if length is None else f" of {length}"), value)
        for i, item in enumerate(value):
            try:
                check(item, where)
            except CheckpointError:  # naming every item of a long list would take longer than this
                check(item, f"{where}[{i}]")
                raise

    return check_list


def like(example: Any) -> Check:
    """A value of the kind of `example`: a number for an int or float, a list for a list."""
    if isinstance(example, bool):
        return flag
    if isinstance(example, int | float):
        return number()
    if isinstance(example, str):
        return text
    if isinstance(example, list | tuple):
        return list_of(like(example[0]) if example else anything)
    return record({}, others=anything) if isinstance(example, dict) else anything


def record(
    entries: Mapping[str, Check],
    others: Check | None = None,
    optional_entries: Mapping[str, Check] | None = None,
) -> Check:
    """A dict with each of `entries`, perhaps `optional_entries`, and others that `others` accepts.

    If others is None, there must be no others.
    """
    known = {**entries, **(optional_entries or {})}

    def check(value: Any, where: str) -> None:
        if not isinstance(value, Mapping):
            expected = f"a dict with {', '.join(entries)}" if entries else "a dict"
            raise mismatch(where, expected, value)
        for key in entries:
            if key not in value:
                start = f"{where}: " if where else ""
                raise CheckpointError(f"{start}expected {', '.join(entries)}; {key} is missing")
        prefix = where + "." if where else ""
        for key, item in value.items():
            own = known.get(key, others)
            if own is None:
                raise CheckpointError(f"{prefix}{key}: unexpected; expected {', '.join(known)}")
            own(item, f"{prefix}{key}")

    return check
