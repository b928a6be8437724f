"""Read the state dicts that torch.save writes, without PyTorch and without executing pickled code.

A .pth file is a zip file, or a sequence of pickles before PyTorch 1.6.  Its pickle builds tensors
from storages, which lie beside it.  gpucnn/pickle_machine.py interprets the pickle, with stand-ins
for PyTorch's functions.  Arrays are read only when they are used.
"""

import math
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gpucnn.errors import CheckpointError
from gpucnn.pickle_machine import Machine, Refused, StandIn

_MOST_PICKLE = 1 << 20  # bytes; AlexNet's has 2 KB
_MAGIC = 0x1950A86A20F9469CFC6C  # the first value of a file without zip
_DTYPES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "<u2",  # the upper halves of float32
}


@dataclass(frozen=True)
class _Kind:
    """A class of storages, by its name in PyTorch."""

    name: str


@dataclass(frozen=True)
class _Storage:
    """A vector of numbers in the file."""

    kind: str
    key: str
    size: int  # numbers
    read: Callable[["_Storage"], bytes]

    @property
    def nbytes(self) -> int:
        return self.size * np.dtype(_DTYPES[self.kind]).itemsize

    def values(self) -> np.ndarray[Any, Any]:
        with _explained():  # np.frombuffer raises ValueError if the file was cut short meanwhile
            values = np.frombuffer(self.read(self), _DTYPES[self.kind], self.size)
        if self.kind == "BFloat16Storage":
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values


@dataclass(frozen=True)
class Stored:
    """A tensor of the file: np.asarray(x) reads it."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in numbers

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        values = self.storage.values()[self.offset :]
        strides = [values.itemsize * stride for stride in self.strides]
        array = np.lib.stride_tricks.as_strided(values, self.shape, strides, writeable=False)
        return array.astype(values.dtype if dtype is None else dtype)


def read_state(path: Path) -> dict[str, Stored]:
    """The state dict in a .pth file: names and tensors, of which only the shapes are read.

    Raises CheckpointError, without the file's name, for any other file: damaged, hostile, or of
    other objects.  So does reading a tensor whose bytes are damaged.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise _error(error.strerror) from error
    with file, _explained():
        is_zip = file.read(4) == b"PK\x03\x04"
        state = _zipped(path, file) if is_zip else _plain(path, file)
        if not isinstance(state, dict):
            raise Refused("it holds no dict")
        for name, value in state.items():
            if not isinstance(name, str) or not isinstance(value, Stored):
                raise Refused(f"{name[:60]!r} is not a tensor")
        return state


# What a damaged file raises in zipfile, pickle_machine and the code below
_FAILURES = (
    Refused, OSError, ValueError, IndexError, KeyError, TypeError, AttributeError, EOFError,
    OverflowError, MemoryError, NotImplementedError, RuntimeError, struct.error, zipfile.BadZipFile,
)  # fmt: skip


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except _FAILURES as error:
        raise _error(error) from error


def _error(reason: Any) -> CheckpointError:
    text = " ".join(str(reason).split())[:100] or type(reason).__name__
    return CheckpointError(
        f"not a state dict that can be read safely ({text})\n"
        "  save it again in PyTorch: torch.save(model.state_dict(), path)"
    )


# --- the two formats ---


def _zipped(path: Path, file: BinaryIO) -> Any:
    size = _check_directory(file)
    with zipfile.ZipFile(file) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        names = [name for name in entries if name.endswith("/data.pkl") or name == "data.pkl"]
        if len(names) != 1:
            raise Refused("the zip file has no data.pkl")
        folder = names[0].removesuffix("data.pkl")
        if entries[names[0]].file_size > _MOST_PICKLE:
            raise Refused(f"a pickle of {entries[names[0]].file_size:,} bytes")
        for info in entries.values():
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                raise Refused(f"{info.filename} is compressed or encrypted")
            if info.header_offset + info.file_size > size:
                raise Refused(f"{info.filename} is longer than the file")
        content = archive.read(names[0])
        order = f"{folder}byteorder"
        if order in entries and archive.open(order).read(6) != b"little":
            raise Refused("its numbers are big-endian")
        sizes = {name: info.file_size for name, info in entries.items()}

    def read(storage: _Storage) -> bytes:
        with zipfile.ZipFile(path) as again:
            return again.read(f"{folder}data/{storage.key}")  # verifies its CRC-32

    def find(kind: str, key: str, size: int) -> _Storage:
        storage = _Storage(kind, key, size, read)
        if sizes[f"{folder}data/{key}"] != storage.nbytes:
            raise Refused(f"its storage {key[:20]} does not hold the {size} numbers of its tensor")
        return storage

    return _unpickle(content, find)[0]


def _check_directory(file: BinaryIO) -> int:
    """The file's size.  Raises Refused for a large directory: parsing a million entries takes long.

    torch.save writes, at the end, the directory's size for zip64 (56 bytes), the place of that
    record (20 bytes), and the record of old zip files (22 bytes).
    """
    size = file.seek(0, 2)
    file.seek(max(size - 98, 0))
    tail = file.read()
    zip64, locator, last = tail[:56], tail[56:76], tail[76:]
    if not (
        zip64.startswith(b"PK\x06\x06")
        and locator.startswith(b"PK\x06\x07")
        and int.from_bytes(locator[8:16], "little") == size - 98
        and last.startswith(b"PK\x05\x06")
    ):
        raise Refused("the zip file does not end as PyTorch's do")
    lengths = int.from_bytes(zip64[40:48], "little"), int.from_bytes(last[12:16], "little")
    if max(lengths) > _MOST_PICKLE:
        raise Refused(f"a zip directory of {max(lengths):,} bytes")
    file.seek(0)
    return size


def _plain(path: Path, file: BinaryIO) -> Any:
    """A file of PyTorch before 1.6: five pickles, then the storages in the order of the last."""
    size = file.seek(0, 2)
    file.seek(0)
    start = file.read(_MOST_PICKLE)
    found: dict[str, _Storage] = {}
    places: dict[str, int] = {}

    def read(storage: _Storage) -> bytes:
        with path.open("rb") as again:
            again.seek(places[storage.key])
            return again.read(storage.nbytes)

    def find(kind: str, key: str, count: int) -> _Storage:
        found.setdefault(key, _Storage(kind, key, count, read))
        if found[key].kind != kind or found[key].size != count:
            raise Refused(f"its storage {key[:20]} has two sizes")
        return found[key]

    values, at = [], 0
    for _ in range(5):
        value, end = _unpickle(start[at:], find)
        values.append(value)
        at += end
    if values[0] != _MAGIC:
        raise Refused("torch.save did not write it")
    for key in values[4]:
        if not isinstance(key, str):
            raise Refused("its storages have no names")
        file.seek(at)
        count = int.from_bytes(file.read(8), "little")
        places[key] = at + 8
        at = places[key] + found[key].nbytes
        if count != found[key].size or at > size:
            raise Refused("its storages are not in the file")
    if found.keys() - places.keys():
        raise Refused("a storage is missing")
    return values[3]


# --- the pickle ---

_Find = Callable[[str, str, int], _Storage]


def _unpickle(content: bytes, find: _Find) -> tuple[Any, int]:
    """The value of the pickle at the start of `content`, and its length."""
    machine = Machine(content, _NAMES, _ignore_versions, lambda where: _storage(where, find))
    return machine.run(), machine.at


def _ignore_versions(target: Any, state: Any) -> None:
    """torch.save adds the versions of the modules to a state dict."""


def _storage(persistent: Any, find: _Find) -> _Storage:
    tag, kind, key, _device, size, *_view = persistent
    if tag != "storage" or not isinstance(kind, _Kind):
        raise Refused("its pickle refers to something other than a storage")
    if not isinstance(key, str) or type(size) is not int or not 0 <= size < 2**40:
        raise Refused("its pickle has a storage without a size")
    if _view and _view != [None]:
        raise Refused("its pickle has a view of a storage")
    return find(kind.name, key, size)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> Stored:
    sizes = [offset, *shape, *strides]
    if not isinstance(storage, _Storage) or not all(type(n) is int and n >= 0 for n in sizes):
        raise Refused("its pickle has a tensor without a storage or shape")
    if len(shape) != len(strides) or len(shape) > 8:
        raise Refused(f"a tensor of {len(shape)} axes and {len(strides)} strides")
    if any(size >= 2**40 for size in sizes):
        raise Refused("a tensor larger than its storage")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    count = math.prod(shape)
    # More values than the storage has: strides of 0 would repeat it in any size.
    if count > storage.size or (count and last >= storage.size):
        raise Refused("a tensor larger than its storage")
    return Stored(storage, offset, tuple(shape), tuple(strides))


_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): StandIn(dict),
    ("torch._utils", "_rebuild_tensor_v2"): StandIn(
        lambda storage, offset, shape, strides, *_: _tensor(storage, offset, shape, strides)
    ),
    ("torch._utils", "_rebuild_parameter"): StandIn(lambda data, *_: data),
    **{("torch", kind): _Kind(kind) for kind in _DTYPES},
}
