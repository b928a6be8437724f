"""Mutations of safetensors files that pass the outer checks: sizes fit, checksums are right.

So they reach the checks of what the file says: names, shapes, dtypes, the model, the run's state.
"""

import json
import math
import struct
import zlib
from random import Random
from typing import Any

from fuzzing.mutators import INTEGERS, LONGEST, anywhere, change_json, json_text

_SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2}
_SIZES |= {"BF16": 2, "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8}


def header_and_body(content: bytes) -> tuple[dict[str, Any], bytes]:
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def joined(header: Any, body: bytes) -> bytes:
    text = json_text(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


def the_information(rng: Random, content: bytes, other: bytes) -> bytes:
    """Change the JSON that describes the model and the run."""
    header, body = header_and_body(content)
    metadata = header.get("__metadata__", {})
    if "gpucnn" not in metadata:
        return the_tensors(rng, content, other)
    info = change_json(rng, json.loads(metadata["gpucnn"]))
    metadata["gpucnn"] = json_text(info)
    return sealed(header, body)


def the_tensors(rng: Random, content: bytes, other: bytes) -> bytes:
    """Rename tensors, change their dtypes, shapes and numbers, remove and add some."""
    header, body = header_and_body(content)
    metadata = header.pop("__metadata__", None)
    parts = [
        (name, entry["dtype"], entry["shape"], body[slice(*entry["data_offsets"])])
        for name, entry in header.items()
    ]
    for _ in range(rng.choice((1, 1, 2, 4))):
        i = rng.randrange(len(parts)) if parts else 0
        name, dtype, shape, raw = parts[i] if parts else ("model.0.weight", "F32", [0], b"")
        action = rng.randrange(6)
        if action == 0:
            del parts[i : i + 1]
            continue
        if action == 1:
            name = rng.choice((name + "x", name.partition(".")[2], "", f"model.{name}", "\x1b[31m"))
        elif action == 2:  # the same numbers in another shape
            shape = rng.choice(([1, *shape], shape[::-1], [math.prod(shape)], [*shape, 1]))
        elif action == 3:  # the same bytes as another dtype
            dtype = rng.choice(list(_SIZES))
            shape = [len(raw) // _SIZES[dtype]]
            raw = raw[: shape[0] * _SIZES[dtype]]
        elif action == 4:  # as many zeros as the shape says, or none
            shape = [rng.choice((0, 1, 2, 3, 5, 100)) for _ in range(rng.randrange(5))]
            raw = bytes(min(math.prod(shape), LONGEST) * _SIZES[dtype])
            if 0 in shape and rng.randrange(2):
                shape = [0, *(abs(rng.choice(INTEGERS)) % 2**60 for _ in range(rng.randrange(4)))]
        else:
            raw = anywhere(rng, raw, other)[: len(raw)].ljust(len(raw), b"\xff")
        parts[i : i + 1] = [(name, dtype, shape, raw)]
        if rng.randrange(10) == 0:
            parts.append((name + "2", dtype, shape, raw))
    fresh: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    start = 0
    for name, dtype, shape, raw in parts:
        fresh[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + len(raw)]}
        start += len(raw)
    return sealed(fresh, b"".join(raw for _, _, _, raw in parts))


def the_header(rng: Random, content: bytes, other: bytes) -> bytes:
    """Change the header's JSON anywhere; offsets and checksums need not fit."""
    header, body = header_and_body(content)
    return joined(change_json(rng, header), body)


def sealed(header: dict[str, Any], body: bytes) -> bytes:
    """The file, with the checksums that its content has if it is a checkpoint."""
    metadata = header.get("__metadata__", {})
    if "gpucnn" in metadata:
        checksums = {
            name: zlib.crc32(
                body[slice(*entry["data_offsets"])],
                zlib.crc32(f"{name} {entry['dtype']} {entry['shape']}".encode(errors="replace")),
            )
            for name, entry in header.items()
            if name != "__metadata__"
        }
        metadata["gpucnn_info_crc32"] = f"{zlib.crc32(metadata['gpucnn'].encode()):08x}"
        metadata["gpucnn_tensors_crc32"] = json.dumps(checksums)
    return joined(header, body)
