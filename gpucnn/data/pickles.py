"""Read pickled arrays from untrusted files without executing code.

The functions that a pickled array names are replaced by stand-ins, which can only interpret bytes
as numbers; see gpucnn/pickle_machine.py.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn.errors import DataError, kind
from gpucnn.pickle_machine import Machine, Refused, StandIn


class _Array:
    """The array that a pickle builds: created empty, then filled by `set_state`."""

    __slots__ = ("value",)
    value: Any

    def set_state(self, state: Any) -> None:
        _version, shape, dtype, fortran, raw = state
        self.value = _numbers(raw, dtype, shape, "F" if fortran else "C")


class _Dtype:
    """The dtype that a pickle builds: kind and size ("u1"), then the byte order by `set_state`."""

    __slots__ = ("code", "order")

    def __init__(self, code: str) -> None:
        if not re.fullmatch("[uifb][1248]", code):
            raise Refused("it contains an array that is not numeric")
        self.code = code
        self.order = "|"

    def set_state(self, state: Any) -> None:
        self.order = _text(state[1])
        if self.order not in ("<", ">", "|", "="):
            raise Refused("it contains an array of unknown byte order")


class _Encoder:
    """Replaces _codecs.encode, which makes bytes in Python 3's pickles of protocol 0 to 2."""

    def __init__(self, most: int) -> None:
        self._left = most  # bytes that may still be made

    def encode(self, text: Any, encoding: Any) -> bytes:
        if not isinstance(text, str) or encoding != "latin1":
            raise Refused("it encodes bytes, but not as latin1")
        self._left -= len(text)
        if self._left < 0:  # the same text again and again
            raise Refused("it makes more bytes than it contains")
        return text.encode("latin1")


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: Any, *_axes: Any) -> _Array:
    """Replaces numpy.core.numeric._frombuffer, which protocol 5 uses."""
    array = _Array()
    array.value = _numbers(raw, dtype, shape, _text(order))
    return array


def _names(most: int) -> dict[tuple[str, str], Any]:
    """The names that pickled arrays refer to, for a pickle of `most` bytes."""
    names: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): None,  # only an argument of _reconstruct
        ("numpy", "dtype"): StandIn(lambda code, *_: _Dtype(_text(code))),
        ("_codecs", "encode"): StandIn(_Encoder(most).encode),
    }
    for core in ("numpy.core", "numpy._core"):  # before NumPy 2, and since
        names[f"{core}.multiarray", "_reconstruct"] = StandIn(lambda *_: _Array())
        names[f"{core}.numeric", "_frombuffer"] = StandIn(_from_buffer)
    return names


def _set_state(target: Any, state: Any) -> None:
    if not isinstance(target, _Array | _Dtype) or not isinstance(state, tuple):
        raise Refused(f"it sets the state of {kind(target)}")
    target.set_state(state)


def read_arrays(source: Path | str, content: bytes) -> dict[str, Any]:
    """Unpickle `content`, a dict of arrays, lists, numbers and strings.

    Keys are converted to str.  `source` names the file in error messages.  Raises DataError if the
    pickle is damaged, is not a dict, refers to any Python object other than an array, or makes
    more than a million objects.
    """
    try:
        value = Machine(content, _names(len(content)), _set_state).run()
        if not isinstance(value, dict):
            raise Refused(f"it contains {kind(value)}, not a dict")
        return {
            _text(key): item.value if isinstance(item, _Array) else item
            for key, item in value.items()
        }
    except Exception as error:  # a damaged pickle can raise any error, with a text of any length
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise DataError(
            f"{source}: not a pickle of plain arrays ({reason})\n"
            "  the file is damaged or unsafe; nothing in it was executed; get a fresh copy"
        ) from error


def _numbers(raw: Any, dtype: Any, shape: Any, order: Any) -> Any:
    if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes):
        raise Refused("it contains an array that is not numeric")
    if not isinstance(shape, tuple) or not all(type(size) is int for size in shape):
        raise Refused("it contains an array whose shape is not a tuple of integers")
    return np.frombuffer(raw, np.dtype(dtype.order + dtype.code)).reshape(shape, order=order)


def _text(value: Any) -> str:
    if not isinstance(value, bytes | str):
        raise Refused(f"it contains {kind(value)} instead of text")
    return value.decode("latin1") if isinstance(value, bytes) else value
