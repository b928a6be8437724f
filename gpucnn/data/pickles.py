"""Reads pickled arrays that come from outside, and runs nothing that they ask for.

A pickle names functions and asks for them to be called.  Only the few names that an array's pickle
needs are answered here, and none with NumPy's own function: each gets a stand-in, written below,
that can do nothing but interpret bytes as numbers.  Any other name ends the reading.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn.errors import DataError


class _Array:
    """What an array's pickle builds: empty at first, filled by its state."""

    __slots__ = ("value",)
    value: Any

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, fortran, raw = state
        self.value = _numbers(raw, dtype, shape, "F" if fortran else "C")


class _Dtype:
    """What a dtype's pickle builds: a kind and size ("u1"), then a byte order by its state."""

    __slots__ = ("code", "order")

    def __init__(self, code: str) -> None:
        self.code = code
        self.order = "|"

    def __setstate__(self, state: Any) -> None:
        self.order = _text(state[1])


# The stand-ins are instances without a __dict__: a pickle can call them, and cannot alter them.


class _Reconstruct:
    """In place of numpy.core.multiarray._reconstruct."""

    __slots__ = ()

    def __call__(self, *_ignored: Any) -> _Array:
        return _Array()


class _FromBuffer:
    """In place of numpy.core.numeric._frombuffer, which pickle protocol 5 uses."""

    __slots__ = ()

    def __call__(self, raw: Any, dtype: Any, shape: Any, order: Any, *_axes: Any) -> _Array:
        array = _Array()
        array.value = _numbers(raw, dtype, shape, _text(order))
        return array


class _MakeDtype:
    """In place of numpy.dtype."""

    __slots__ = ()

    def __call__(self, code: Any, *_flags: Any) -> _Dtype:
        return _Dtype(_text(code))


class _Encode:
    """In place of _codecs.encode, which carries bytes in Python 3's pickles of protocol 2."""

    __slots__ = ()

    def __call__(self, text: str, encoding: str) -> bytes:
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
        return text.encode("latin1")


_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): None,  # only ever an argument of _reconstruct
    ("numpy", "dtype"): _MakeDtype(),
    ("_codecs", "encode"): _Encode(),
}
for _core in ("numpy.core", "numpy._core"):  # before and since NumPy 2
    _KNOWN[f"{_core}.multiarray", "_reconstruct"] = _Reconstruct()
    _KNOWN[f"{_core}.numeric", "_frombuffer"] = _FromBuffer()


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def read_arrays(source: Path | str, content: bytes) -> dict[str, Any]:
    """The dict of arrays, lists, numbers and texts that is pickled in `content`.

    Keys become text.  `source` is the name for messages.  Raises DataError if the pickle is
    damaged, holds something else than a dict, or asks for any Python object but an array.
    """
    try:
        value = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        if not isinstance(value, dict):
            raise pickle.UnpicklingError(f"it holds a {type(value).__name__}")
        return {
            _text(key): item.value if isinstance(item, _Array) else item
            for key, item in value.items()
        }
    except Exception as error:  # a damaged pickle can raise anything at all, at any length
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise DataError(
            f"{source}: not a pickle of plain arrays ({reason})\n"
            "  the file is damaged or unsafe, and nothing in it was run; get a fresh copy"
        ) from error


def _numbers(raw: Any, dtype: Any, shape: Any, order: Any) -> Any:
    if not isinstance(dtype, _Dtype) or dtype.code[:1] not in ("u", "i", "f", "b"):
        raise pickle.UnpicklingError("an array that is not of numbers")
    return np.frombuffer(raw, np.dtype(dtype.order + dtype.code)).reshape(shape, order=order)


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)
