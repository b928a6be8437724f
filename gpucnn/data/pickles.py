"""Read pickled arrays from untrusted files without executing code.

A pickle can import and call any function.  This unpickler resolves only the few names that a
pickled array needs, and not to NumPy's functions but to the stand-ins below, which can only
interpret bytes as numbers.  Any other name is an error.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn.errors import DataError


class _Array:
    """The array that a pickle builds: created empty, then filled by __setstate__."""

    __slots__ = ("value",)
    value: Any

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, fortran, raw = state
        self.value = _numbers(raw, dtype, shape, "F" if fortran else "C")


class _Dtype:
    """The dtype that a pickle builds: kind and size ("u1"), then the byte order by __setstate__."""

    __slots__ = ("code", "order")

    def __init__(self, code: str) -> None:
        self.code = code
        self.order = "|"

    def __setstate__(self, state: Any) -> None:
        self.order = _text(state[1])


# The stand-ins have no __dict__, so a pickle can call but not modify them.


class _Reconstruct:
    """Replaces numpy.core.multiarray._reconstruct."""

    __slots__ = ()

    def __call__(self, *_ignored: Any) -> _Array:
        return _Array()


class _FromBuffer:
    """Replaces numpy.core.numeric._frombuffer, which pickle protocol 5 uses."""

    __slots__ = ()

    def __call__(self, raw: Any, dtype: Any, shape: Any, order: Any, *_axes: Any) -> _Array:
        array = _Array()
        array.value = _numbers(raw, dtype, shape, _text(order))
        return array


class _MakeDtype:
    """Replaces numpy.dtype."""

    __slots__ = ()

    def __call__(self, code: Any, *_flags: Any) -> _Dtype:
        return _Dtype(_text(code))


class _Encode:
    """Replaces _codecs.encode, which encodes bytes in Python 3's pickles of protocol 2."""

    __slots__ = ()

    def __call__(self, text: str, encoding: str) -> bytes:
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"it encodes bytes as {encoding!r}")
        return text.encode("latin1")


_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): None,  # only an argument of _reconstruct
    ("numpy", "dtype"): _MakeDtype(),
    ("_codecs", "encode"): _Encode(),
}
for _core in ("numpy.core", "numpy._core"):  # before NumPy 2, and since
    _KNOWN[f"{_core}.multiarray", "_reconstruct"] = _Reconstruct()
    _KNOWN[f"{_core}.numeric", "_frombuffer"] = _FromBuffer()


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}") from None


def read_arrays(source: Path | str, content: bytes) -> dict[str, Any]:
    """Unpickle `content`, a dict of arrays, lists, numbers and strings.

    Keys are converted to str.  `source` names the file in error messages.  Raises DataError if the
    pickle is damaged, is not a dict, or refers to any Python object other than an array.
    """
    try:
        value = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        if not isinstance(value, dict):
            raise pickle.UnpicklingError(f"it contains a {type(value).__name__}, not a dict")
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
    if not isinstance(dtype, _Dtype) or dtype.code[:1] not in ("u", "i", "f", "b"):
        raise pickle.UnpicklingError("it contains an array that is not numeric")
    return np.frombuffer(raw, np.dtype(dtype.order + dtype.code)).reshape(shape, order=order)


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)
