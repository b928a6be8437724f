"""Mutations: from the content of a good file to that of a bad one.

A mutator is called as mutate(rng, content, other), where `other` is another good file to take parts
from, and returns the new content.  The same rng gives the same content.
"""

import copy
import gzip
import io
import json
import pickletools
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache, lru_cache
from random import Random
from typing import Any

Mutator = Callable[[Random, bytes, bytes], bytes]

INTEGERS = [0, 1, -1, 2, 7, 255, 256, *(10**n for n in (3, 6, 9, 12, 18, 30))]
INTEGERS += [2**15, 2**16, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, -(2**63)]
LONGEST = 1 << 20  # bytes of a mutated file; longer ones are cut
DEEP = "a deeply nested value"  # replaced by brackets in the JSON text


def anywhere(rng: Random, content: bytes, other: bytes) -> bytes:
    """One to four changes that know no format."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        rng.choice(_CHANGES)(rng, changed, other)
    return bytes(changed[:LONGEST])


def _place(rng: Random, content: bytes | bytearray) -> int:
    """A position; half of them are near the start, where formats have their headers."""
    return rng.randrange(min(len(content), rng.choice((32, 1024, LONGEST))) or 1)


def _block(rng: Random, content: bytes | bytearray) -> slice:
    start = _place(rng, content)
    return slice(start, start + rng.choice((1, 2, 4, 8, 64, rng.randrange(1, 4096))))


def _flip_bit(rng: Random, content: bytearray, other: bytes) -> None:
    if content:
        content[_place(rng, content)] ^= 1 << rng.randrange(8)


def _set_byte(rng: Random, content: bytearray, other: bytes) -> None:
    if content:
        content[_place(rng, content)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _set_integer(rng: Random, content: bytearray, other: bytes) -> None:
    size = rng.choice((2, 4, 8))
    number = rng.choice(INTEGERS) % (1 << 8 * size)
    start = _place(rng, content)
    content[start : start + size] = number.to_bytes(size, rng.choice(("little", "big")))


_DIGITS = re.compile(rb"\d+|\Z")


def _set_digits(rng: Random, content: bytearray, other: bytes) -> None:
    found = _DIGITS.search(content, _place(rng, content))
    assert found is not None
    content[slice(*found.span())] = str(rng.choice(INTEGERS)).encode()


def _delete(rng: Random, content: bytearray, other: bytes) -> None:
    del content[_block(rng, content)]


def _duplicate(rng: Random, content: bytearray, other: bytes) -> None:
    block = _block(rng, content)
    content[block.start : block.start] = content[block] * rng.choice((1, 1, 2, 100))


def _insert(rng: Random, content: bytearray, other: bytes) -> None:
    start = _place(rng, content)
    content[start:start] = rng.randbytes(rng.choice((1, 4, 64)))


def _swap(rng: Random, content: bytearray, other: bytes) -> None:
    a, b = sorted((_block(rng, content), _block(rng, content)), key=lambda block: block.start)
    if a.stop <= b.start:
        content[a], content[b] = content[b], content[a]


def _cut(rng: Random, content: bytearray, other: bytes) -> None:
    del content[_place(rng, content) :]


def _splice(rng: Random, content: bytearray, other: bytes) -> None:
    content[_place(rng, content) :] = other[_place(rng, other) :]


def _overwrite(rng: Random, content: bytearray, other: bytes) -> None:
    block = _block(rng, other)
    start = _place(rng, content)
    content[start : start + block.stop - block.start] = other[block]


_CHANGES = (
    _flip_bit, _set_byte, _set_integer, _set_digits, _delete, _duplicate, _insert, _swap, _cut,
    _splice, _overwrite,
)  # fmt: skip


# --- JSON ---


def change_json(rng: Random, value: Any) -> Any:
    """Change one to three places of plain JSON data, in place where that is possible."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_places(value))
        if not places:
            return _strange(rng, value)
        holder, key = rng.choice(places)
        action = rng.randrange(6)
        if action == 0:
            del holder[key]
        elif action == 1 and isinstance(holder, dict):
            holder[rng.choice((f"{key}x", "", "__class__", f"\x1b[31m{key}", "1"))] = holder.pop(
                key
            )
        elif action == 2:
            holder[key] = copy.deepcopy(_at(*rng.choice(places)))
        elif action == 3 and isinstance(holder, list):
            holder[key:key] = [_strange(rng, holder[key])] * rng.choice((1, 2, 100))
        else:
            holder[key] = _strange(rng, holder[key])
    return value


def _at(holder: Any, key: Any) -> Any:
    """What is in that place; None if an earlier change removed it."""
    try:
        return holder[key]
    except LookupError:
        return None


def json_text(value: Any) -> str:
    """The text of `value`; the first DEEP becomes 100,000 nested lists."""
    return json.dumps(value).replace(json.dumps(DEEP), "[" * 100_000 + "]" * 100_000, 1)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """(list or dict, key) of everything inside `value`."""
    found = []
    todo = [value]
    while todo:
        holder = todo.pop()
        if isinstance(holder, dict | list):
            keys = list(holder) if isinstance(holder, dict) else range(len(holder))
            found += [(holder, key) for key in keys]
            todo += [holder[key] for key in keys]
    return found


def _strange(rng: Random, old: Any) -> Any:
    """A value that a reader may not expect in place of `old`."""
    if rng.randrange(3) == 0 and isinstance(old, int | float):
        return rng.choice(
            (-old, old + 1, old * 2, float(old) if abs(old) < 2**60 else 0.5, str(old))
        )
    if rng.randrange(3) == 0 and isinstance(old, str):
        return rng.choice((old + "x", old.upper(), "", old * 1000, old[::-1]))
    return rng.choice(
        (
            None, True, False, "", "0", "cpu", "__import__('os')", "\x1b[2J", "\ud800",
            "a" * 10_000, 0.5, -0.0, 1e308, float("nan"), float("inf"), -float("inf"),
            [], {}, [[]], [None], {"": None}, [old], {"a": old}, [30000, 30000], [0] * 1000, DEEP,
            *INTEGERS,
        )
    )  # fmt: skip


# --- pickle ---

PIECES = [
    b"cos\nsystem\n", b"cbuiltins\neval\n", b"cbuiltins\ngetattr\n", b"cnumpy\nndarray\n",
    b"cnumpy\ndtype\n", b"cnumpy.core.multiarray\n_reconstruct\n", b"c_codecs\nencode\n",
    b"cnumpy.core.numeric\n_frombuffer\n", b"X\x0b\x00\x00\x00touch proof", b"(", b")", b"]", b"}",
    b"0", b"1", b"2", b"t", b"l", b"d", b"e", b"u", b"a", b"s", b"R", b"b", b"\x81", b"\x92", b"o",
    b"ios\nsystem\n", b"Q", b"P1\n", b"\x82\x01", b"\x85", b"\x86", b"\x87", b"\x8f", b"\x90",
    b"\x91", b"\x93", b"\x94", b".", b"N", b"I01\n", b"S'u1'\n", b"U\x01b", b"C\x02<|",
    b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x8e\x00\x00\x00\xc0\x00\x00\x00\x00",
    b"\x8d\x00\x00\x00\xc0\x00\x00\x00\x00", b"\x96\x00\x00\x00\xc0\x00\x00\x00\x00",
    b"B\xff\xff\xff\x7f", b"T\xff\xff\xff\x7f", b"X\xff\xff\xff\xff", b"p1\n", b"q\x01",
    b"\x95\xff\xff\xff\xff\x00\x00\x00\x00", b"r\xff\xff\xff\x7f", b"r\xff\xff\xff\x0f",
    b"p99999999\n", b"g1\n", b"h\x01", b"j\xff\xff\xff\xff", b"\x8b\xff\xff\xff\x7f",
    b"\x8a\xff" + b"\xff" * 255,
    b"I" + b"9" * 5000 + b"\n", b"L" + b"9" * 5000 + b"L\n", b"F1e999\n",
    b"J\xff\xff\xff\xff", b"K\x00", b"M\x00\x01", b"G\x7f\xf8\x00\x00\x00\x00\x00\x00",
    b"(lp1\n" + b"(g1\ng1\nl" * 20, b"]" + b"2\x86" * 60, b"((" * 2000,
]  # fmt: skip


def pickle_opcodes(rng: Random, content: bytes, other: bytes) -> bytes:
    """Delete, repeat, swap and insert whole opcodes, or change the argument of one."""
    ops = list(_opcodes(content))
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        i, j = rng.randrange(len(ops) + 1), rng.randrange(len(ops) + 1)
        action = rng.randrange(6)
        if action == 0:
            del ops[i : i + rng.choice((1, 1, 3))]
        elif action == 1:
            ops[i:i] = ops[j : j + rng.choice((1, 2, 5))] * rng.choice((1, 1, 2, 200))
        elif action == 2 and i < len(ops) and j < len(ops):
            ops[i], ops[j] = ops[j], ops[i]
        elif action == 3 and i < len(ops):
            ops[i] = anywhere(rng, ops[i], other)
        else:
            ops[i:i] = [rng.choice(PIECES)]
    return b"".join(ops)[:LONGEST]


@lru_cache(100)
def _opcodes(content: bytes) -> tuple[bytes, ...]:
    starts = []
    with suppress(ValueError):  # changed before
        starts += [position or 0 for _, _, position in pickletools.genops(content)]
    starts = starts or [0]
    return tuple(
        content[start:end] for start, end in zip(starts, [*starts[1:], len(content)], strict=True)
    )


# --- compressed files, idx, PNG ---


def inside_gzip(mutate: Mutator) -> Mutator:
    """Apply `mutate` to the decompressed content, then compress it again."""

    def zipped(rng: Random, content: bytes, other: bytes) -> bytes:
        plain = mutate(rng, gzip.decompress(content), gzip.decompress(other))
        result = gzip.compress(plain, 1, mtime=0)
        if rng.randrange(100) == 0:
            result += _zeros() * rng.choice((1, 8))
        return result

    return zipped


def inside_zip(rng: Random, content: bytes, other: bytes) -> bytes:
    """Change the members of a zip file of PyTorch, with the checksums of the new content."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            members = [(info.filename, file.read(info)) for info in file.infolist()]
    except zipfile.BadZipFile:  # PyTorch's older format
        return pickle_opcodes(rng, content, other)
    for _ in range(rng.choice((1, 1, 2))):
        i = rng.randrange(len(members))
        if rng.randrange(3):  # most often the pickle
            i = next((i for i, (name, _) in enumerate(members) if name.endswith(".pkl")), i)
        name, body = members[i]
        action = rng.randrange(8)
        if action == 0 and len(members) > 1:
            del members[i]
        elif action == 1:
            members.append((rng.choice((name, "../../x", "/x", "a" * 1000)), body))
        elif action == 2:
            members[i] = (name, bytes(rng.choice((0, 1 << 20, 1 << 24))))
        else:
            change = pickle_opcodes if name.endswith(".pkl") else anywhere
            members[i] = (name, change(rng, body, other))
    how = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", how) as file:
        warnings.simplefilter("ignore")  # two members of one name
        for name, body in members:
            file.writestr(zipfile.ZipInfo(name), body, how)
    return buffer.getvalue()


@cache
def _zeros() -> bytes:
    """256 MiB of zeros, compressed."""
    compressor = zlib.compressobj(1, wbits=31)
    block = bytes(1 << 20)
    return b"".join(compressor.compress(block) for _ in range(256)) + compressor.flush()


def idx_header(rng: Random, content: bytes, other: bytes) -> bytes:
    """Change words of the header, and sometimes the number of bytes that follow."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2))):
        word = 4 * rng.randrange(4)
        old = int.from_bytes(content[word : word + 4], "big")
        new = rng.choice((*INTEGERS, old + 1, old - 1, old * 2, old // 2, 1 << rng.randrange(32)))
        changed[word : word + 4] = (new % (1 << 32)).to_bytes(4, "big")
    if rng.randrange(3) == 0:
        _delete(rng, changed, other)
    return bytes(changed)


def png_chunks(rng: Random, content: bytes, other: bytes) -> bytes:
    """Change chunks of a PNG, with the checksums of the new content."""
    if content[:8] != b"\x89PNG\r\n\x1a\n":
        return anywhere(rng, content, other)
    chunks, start = [], 8
    while start < len(content):
        (size,) = struct.unpack(">I", content[start : start + 4])
        chunks.append((content[start + 4 : start + 8], content[start + 8 : start + 8 + size]))
        start += size + 12
    for _ in range(rng.choice((1, 1, 2))):
        if not chunks:
            break
        i = rng.randrange(len(chunks))
        name, body = chunks[i]
        action = rng.randrange(6)
        if action == 0:
            del chunks[i]
        elif action == 1:
            chunks[i:i] = [chunks[i]] * rng.choice((1, 50))
        elif action == 2 and name == b"IDAT":
            try:
                pixels = zlib.decompress(body)
            except zlib.error:  # changed before
                continue
            chunks[i] = (name, zlib.compress(anywhere(rng, pixels, other), 1))
        elif action == 3:
            kind = rng.choice(
                (b"tRNS", b"PLTE", b"acTL", b"fcTL", b"eXIf", b"iCCP", b"zTXt", b"gAMA")
            )
            chunks[i:i] = [
                (kind, rng.choice((body, rng.randbytes(rng.choice((0, 1, 6, 13, 300))))))
            ]
        elif name == b"IHDR":
            header = bytearray(body)
            place = rng.choice((0, 4, 8, 9, 10, 11, 12))
            if place < 8:
                number = rng.choice((*INTEGERS, 1 << rng.randrange(32))) % (1 << 32)
                header[place : place + 4] = number.to_bytes(4, "big")
            else:
                header[place : place + 1] = bytes([rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))])
            chunks[i] = (name, bytes(header))
        else:
            chunks[i] = (name, anywhere(rng, body, other))
    return content[:8] + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )
