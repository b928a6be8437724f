"""Checkpoints that write_checkpoint refuses to write, with checksums that are right."""

import json
import zlib

import numpy as np
from safetensors.numpy import save

from gpucnn.checkpoint import FORMAT

CODES = {"float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "uint8": "U8"}


def metadata(tensors, info):
    """The header's metadata for `info`, a dict or the text itself, as the format defines them."""
    text = info if isinstance(info, str) else json.dumps({"format": FORMAT, **info})
    checksums = {}
    for name, x in tensors.items():
        start = zlib.crc32(f"{name} {CODES[x.dtype.name]} {list(x.shape)}".encode())
        checksums[name] = zlib.crc32(np.ascontiguousarray(x).tobytes(), start)
    return {
        "gpucnn": text,
        "gpucnn_info_crc32": f"{zlib.crc32(text.encode()):08x}",
        "gpucnn_tensors_crc32": json.dumps(checksums),
    }


def forge(path, tensors, info):
    """Write a checkpoint of `info`, a dict or a text; the library safetensors lays it out."""
    tensors = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
    path.write_bytes(save(tensors, metadata(tensors, info)))
