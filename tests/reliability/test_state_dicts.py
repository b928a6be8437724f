"""Hostile .pth files: each is refused; none runs code, hangs or takes the memory that it claims."""

import io
import os
import pickle
import struct
import zipfile

import pytest
from reliability.tally import bounded

from gpucnn.errors import CheckpointError
from gpucnn.interop.torchvision import convert_file


class Storage:
    """What torch.save pickles for a storage."""

    def __init__(self, size, kind="FloatStorage", key="0"):
        self.reference = ("storage", Named("torch", kind), key, "cpu", size)


class Named:
    def __init__(self, module, name):
        self.module, self.name = module, name


class Called:
    def __init__(self, module, name, *arguments):
        self.function, self.arguments = Named(module, name), arguments


def tensor(size, shape, strides, offset=0, **how):
    arguments = (Storage(size, **how), offset, shape, strides, False, {})
    return Called("torch._utils", "_rebuild_tensor_v2", *arguments)


def pickled(value):
    """The opcodes of protocol 2 for `value`."""
    if isinstance(value, Named):
        return f"c{value.module}\n{value.name}\n".encode()
    if isinstance(value, Storage):
        return pickled(value.reference) + b"Q"
    if isinstance(value, Called):
        return pickled(value.function) + pickled(value.arguments) + b"R"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(pickled, value)) + b"t"
    if isinstance(value, dict):
        items = b"".join(pickled(x) for item in value.items() for x in item)
        return b"}(" + items + b"u"
    return pickle.dumps(value, 2)[2:-1]


def archive(value, size=0, content=None, compressed=False, pkl=None):
    """A zip file as torch.save writes it, with one storage of `size` bytes."""

    def write(path):
        out = io.BytesIO()
        how = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
        with zipfile.ZipFile(out, "w", how) as made:
            made.writestr(
                "archive/data.pkl", b"\x80\x02" + pickled(value) + b"." if pkl is None else pkl
            )
            made.writestr("archive/data/0", bytes(size) if content is None else content)
        end = out.getvalue()
        at = end.rindex(b"PK\x05\x06")
        entries, length, start = struct.unpack("<HLL", end[at + 10 : at + 20])
        zip64 = struct.pack(
            "<4sQHHLLQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, entries, entries, length, start
        )
        locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, at, 1)
        path.write_bytes(end[:at] + zip64 + locator + end[at:])

    return write


def lying(path):
    """A directory that claims 4 GiB for the storage."""
    archive({"features.0.weight": tensor(2**30 - 1, (2**30 - 1,), (1,))}, 8)(path)
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02")
    content[at + 20 : at + 28] = struct.pack("<LL", 2**32 - 4, 2**32 - 4)
    path.write_bytes(content)


def sparse(path):
    path.touch()
    os.truncate(path, 6 << 30)


def old(*pickles, rest=b""):
    return lambda path: path.write_bytes(b"".join(b"\x80\x02" + p + b"." for p in pickles) + rest)


MAGIC = pickled(0x1950A86A20F9469CFC6C)
NESTED = b")" + b"q\x09h\x09\x86" * 60  # 60 pairs, each of the one before it twice
PTH = {
    "a tensor repeated by a stride of 0": archive(
        {"classifier.6.weight": tensor(4096, (262_144, 4096), (0, 1))}, 16_384),
    "a storage larger than the file": archive({"x": tensor(2**30, (2**30,), (1,))}, 8),
    "a tensor beyond its storage": archive({"x": tensor(2, (2,), (1,), offset=10**9)}, 8),
    "a negative stride": archive({"x": tensor(2, (2,), (-1,))}, 8),
    "a shape of text": archive({"x": tensor(2, ("2",), (1,))}, 8),
    "a directory that lies": lying,
    "a zip bomb": archive({"x": tensor(2**26, (2**26,), (1,))}, 2**24, compressed=True),
    "a tensor of bytes": archive({"x": tensor(8, (8,), (1,), kind="ByteStorage")}, 8),
    "a call of os.system": archive({"x": Called("os", "system", "true")}),
    "a call of torch.zeros": archive({"x": Called("torch", "zeros", 2**30)}),
    "an open file": archive({"x": Called("builtins", "open", "hacked", "w")}),
    "a list": archive([1, 2]),
    "a dict of numbers": archive({"x": 3}),
    "a state with other names": archive({"x": tensor(2, (2,), (1,))}, 8),
    "a pickle of 2 MB": archive(0, pkl=b"\x80\x02" + b"N" * (2 << 20) + b"."),
    "a pickle of 9 bytes for 3 GiB of memo": archive(0, pkl=b"\x80\x02Nr\xff\xff\xff\x0f."),
    "text that claims 4 GiB": archive(0, pkl=b"\x80\x02X\xff\xff\xff\xff."),
    "bytes that claim 4 GiB": archive(0, pkl=b"\x80\x05\x96" + b"\xff" * 8 + b"."),
    "a pickle whose hash never ends": archive(0, pkl=b"\x80\x02}(" + NESTED + b"Nu."),
    "a storage whose name never ends": archive(
        0, pkl=b"\x80\x02(" + pickled("storage") + b"ctorch\nFloatStorage\n" + NESTED
        + pickled("cpu") + pickled(1) + b"tQ."),
    "a pickle without end": archive(0, pkl=b"\x80\x02}"),
    "a mark that is missing": archive(0, pkl=b"\x80\x02}u."),
    "an old file with a storage of 4 GiB": old(
        MAGIC, pickled(1001), pickled({}), pickled({"x": tensor(2**30, (2**30,), (1,))}),
        b"]" + pickled("0") + b"a", rest=(2**30).to_bytes(8, "little")),
    "an old file whose list of storages never ends": old(
        MAGIC, pickled(1001), pickled({}), pickled({}), b"]" + NESTED + b"a"),
    "an old file without its storage": old(
        MAGIC, pickled(1001), pickled({}), pickled({"x": tensor(2, (2,), (1,))}), b"]"),
    "an empty file": lambda path: path.write_bytes(b""),
    "a zip file cut short": lambda path: path.write_bytes(b"PK\x03\x04" + bytes(90)),
    "a sparse file of 6 GiB": sparse,
    "a folder": os.mkdir,
    "a pipe": os.mkfifo,
}  # fmt: skip


# Where another check would refuse the file too: the one that must see it first
REASONS = {
    "a tensor repeated by a stride of 0": "a tensor larger than its storage",
    "a storage larger than the file": "does not hold the 1073741824 numbers",
    "a tensor beyond its storage": "a tensor larger than its storage",
    "a directory that lies": "is longer than the file",
    "a zip bomb": "is compressed",
    "a pickle whose hash never ends": "a tuple of 2 as a key",
    "a storage whose name never ends": "a storage without a size",
    "an old file whose list of storages never ends": "its storages have no names",
    "an old file with a storage of 4 GiB": "its storages are not in the file",
}


@pytest.mark.parametrize("name", PTH)
def test_a_hostile_state_dict_is_refused(name, tally, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "hostile.pth"
    PTH[name](path)
    reason = rf"hostile\.pth(.|\n)*{REASONS.get(name, '')}"
    with tally("a crafted .pth file"), bounded(), pytest.raises(CheckpointError, match=reason):
        convert_file(path, tmp_path / "out.safetensors")
    assert not (tmp_path / "hacked").exists()
    assert not (tmp_path / "out.safetensors").exists()
