"""The safetensors format: the length of a JSON header, the header, then the arrays' bytes.

    8 bytes          length of the header, little-endian
    header           {"__metadata__": {name: text}, name of an array: {"dtype": "F32",
                     "shape": [64, 3], "data_offsets": [start, end]}, ...}
    rest             the arrays in C order, little-endian, without gaps

Files are not trusted: every size is compared with the file's before anything is allocated.  The
library safetensors accepts headers of 100 MB, any number of arrays and keys that occur twice, and
it writes to a path, while `write_whole` needs the bytes.
"""

import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gpucnn import schema
from gpucnn.errors import ArgumentError, CheckpointError, DtypeError
from gpucnn.precision import bfloat16

Host = np.ndarray[Any, Any]

_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2",
    "I8": "|i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip
_CODES = {np.dtype(dtype): code for code, dtype in _DTYPES.items()}
_BFLOAT16 = "BF16"  # NumPy has it only with the package ml_dtypes
# A parsed header takes up to 25 times its length in memory.  Names and shapes take about 150 bytes
# for each array, the history 300 bytes for each epoch.
MAX_HEADER = 8 << 20
MAX_TENSORS = 20_000
_PIECE = 1 << 20  # bytes: the checksum of a piece is computed while the piece is in the cache
_MOST_AXES = 64  # NumPy's limit


def _shape(value: Any, where: str) -> None:
    if isinstance(value, list) and len(value) > _MOST_AXES:
        raise CheckpointError(f"{where}: {len(value)} axes; expected at most {_MOST_AXES}")
    schema.list_of(schema.integer())(value, where)


_ENTRY = schema.record(
    {
        "dtype": schema.text,
        "shape": _shape,
        "data_offsets": schema.list_of(schema.integer(), length=2),
    }
)


class Refused(CheckpointError):
    """A file that is not damaged, but not one of ours, or that needs another package."""


@dataclass(frozen=True)
class Entry:
    """An array of a file: all but its values."""

    name: str
    code: str  # the dtype's name in the format
    shape: tuple[int, ...]
    start: int  # in the file
    end: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype; CheckpointError for one that NumPy lacks."""
        if self.code == _BFLOAT16:
            try:
                return bfloat16()
            except DtypeError as error:
                raise Refused(f"{self.name}: {error}") from None
        if self.code not in _DTYPES:
            raise CheckpointError(
                f"{self.name}: its dtype is {self.code[:20]}; "
                f"expected one of {', '.join(_DTYPES)}, {_BFLOAT16}"
            )
        return np.dtype(_DTYPES[self.code])

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.end - self.start

    def checksum(self) -> int:
        """The CRC-32 of name, dtype and shape, with which that of the bytes begins."""
        return zlib.crc32(f"{self.name} {self.code} {list(self.shape)}".encode())


class TensorFile:
    """An open file: its metadata and entries.  `read` reads one array."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise CheckpointError(f"{size} bytes: too short for a header of {length} bytes")
        if length > MAX_HEADER:
            raise CheckpointError(
                f"a header of {length:,} bytes; expected at most {MAX_HEADER:,} bytes"
            )
        header = schema.parse(_filled(file, bytearray(length)).decode("utf-8", "strict"), "header")
        if not isinstance(header, dict):
            raise schema.mismatch("header", "a dict", header)
        if len(header) > MAX_TENSORS:
            raise CheckpointError(f"{len(header):,} arrays; expected at most {MAX_TENSORS:,}")
        metadata = header.pop("__metadata__", {})
        schema.record({}, others=schema.text)(metadata, "__metadata__")
        self.metadata: dict[str, str] = metadata
        self.entries: dict[str, Entry] = {}
        for name, entry in header.items():
            _ENTRY(entry, name)
            start, end = (8 + length + offset for offset in entry["data_offsets"])
            self.entries[name] = Entry(name, entry["dtype"], tuple(entry["shape"]), start, end)
        self._check_places(8 + length, size)

    def _check_places(self, start: int, size: int) -> None:
        """Raise CheckpointError unless the arrays fill the file, one after another."""
        for entry in sorted(self.entries.values(), key=lambda entry: (entry.start, entry.end)):
            needed = entry.size * entry.dtype.itemsize
            if entry.start != start or entry.nbytes != needed:
                raise CheckpointError(
                    f"{entry.name}: expected {needed:,} bytes from byte {start:,}, "
                    f"got {entry.nbytes:,} from byte {entry.start:,}"
                )
            start = entry.end
        if start != size:
            raise CheckpointError(f"the arrays end at byte {start:,}, the file at byte {size:,}")

    def read(self, name: str) -> tuple[Host, int]:
        """The array and its checksum."""
        entry = self.entries[name]
        try:
            array = np.empty(entry.shape, entry.dtype)
        except (MemoryError, ValueError) as error:
            raise CheckpointError(
                f"{name}: cannot allocate its {entry.nbytes:,} bytes, shape {entry.shape}"
            ) from error
        checksum = entry.checksum()
        self._file.seek(entry.start)
        view = _bytes(array)
        for start in range(0, len(view), _PIECE):
            checksum = zlib.crc32(_filled(self._file, view[start : start + _PIECE]), checksum)
        return array.astype(array.dtype.newbyteorder("="), copy=False), checksum


@contextmanager
def open_tensors(path: Path) -> Iterator[TensorFile]:
    """Open a safetensors file.

    Raises CheckpointError, without the file's name, if it cannot be read, or is damaged: also for
    errors inside the block.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            yield TensorFile(file)
    except OSError as error:
        raise CheckpointError(f"cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"its header is not UTF-8 ({error})") from error


def check_regular(path: Path) -> None:
    """Raise CheckpointError, without the file's name, unless `path` is a regular file."""
    if not os.path.isfile(path):
        exists = os.path.exists(path)
        raise CheckpointError("not a regular file" if exists else "there is no such file")


def _filled(file: BinaryIO, buffer: Any) -> Any:
    """`buffer`, filled from the file."""
    view = memoryview(buffer)
    while len(view):
        n = file.readinto(view)  # type: ignore[attr-defined]
        if not n:
            raise CheckpointError("the file ends too early")
        view = view[n:]
    return buffer


def _bytes(array: Host) -> memoryview:
    """The memory of a contiguous array."""
    return memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]


# --- writing ---


@dataclass(frozen=True)
class _Piece:
    entry: Entry
    data: memoryview


def arrange(arrays: Mapping[str, Host]) -> tuple[list[_Piece], dict[str, int]]:
    """The arrays in the file's order, and each one's checksum.

    Contiguous arrays are not copied.  Raises DtypeError for a dtype that the format lacks.
    """
    pieces, checksums, start = [], {}, 0
    # Large items first, so that every array is aligned to the size of its items.
    for name, array in sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0])):
        little = array.dtype.newbyteorder("<")
        code = _BFLOAT16 if little.name == "bfloat16" else _CODES.get(little)
        if code is None:
            raise DtypeError(
                f"{name} is {array.dtype}; expected an array of numbers or bools of up to 8 bytes"
            )
        array = np.asarray(array, little, order="C")
        entry = Entry(name, code, array.shape, start, start + array.nbytes)
        pieces.append(_Piece(entry, _bytes(array)))
        checksums[name] = zlib.crc32(pieces[-1].data, entry.checksum())
        start = entry.end
    return pieces, checksums


def pieces_of_file(
    pieces: list[_Piece], metadata: Mapping[str, str]
) -> Iterator[bytes | memoryview]:
    """The pieces of a file, for write_whole.

    Raises ArgumentError, at the first piece, for a header that `TensorFile` would refuse.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for piece in pieces:
        entry = piece.entry
        header[entry.name] = {
            "dtype": entry.code,
            "shape": list(entry.shape),
            "data_offsets": [entry.start, entry.end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER or len(header) > MAX_TENSORS:
        raise ArgumentError(
            f"a header of {len(text):,} bytes for {len(pieces):,} arrays; expected at most "
            f"{MAX_HEADER:,} bytes and {MAX_TENSORS:,} arrays\n  store less in `info`"
        )
    yield len(text).to_bytes(8, "little") + text
    for piece in pieces:
        yield piece.data
