"""Write image files byte by byte, as Pillow would not."""

import struct
import zlib


def png(width, height, pixels, depth=8, colour=2, before=b""):
    """colour 0 is grey, 2 RGB, 6 RGBA; pixels has a filter byte before each row."""

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(pixels))
    return b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IEND", b"")


def chunk(kind, content):
    crc = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def ifd(tags, after=b""):
    """A TIFF header and directory of (tag, type, count, value or offset); `after` follows."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0" + after


def tiff(pixels, bits, samples=1, sample_format=1, white=1, compression=1, **other):
    """An 8 x 8 TIFF file of one strip; white 0 means that zero is white.

    other: further tags, as t322=8 for TileWidth.
    """
    tags = {256: 8, 257: 8, 258: bits, 259: compression, 262: 2 if samples == 3 else white}
    tags |= {277: samples, 278: 8, 279: len(pixels), 339: sample_format}
    tags |= {int(name[1:]): value for name, value in other.items()}
    tags[273] = 8 + 2 + 12 * (len(tags) + 1) + 4
    return ifd([(tag, 4, 1, value) for tag, value in tags.items()], pixels)
