"""Decode untrusted image files: within limits, and never silently to wrong values.

The limits are checked on the header, before pixels are decoded.  A file of 0.1 MB can describe
30,000 x 30,000 pixels, point thousands of TIFF tags at the same bytes, or spread its header over
millions of one-byte reads.
"""

import io
import os
from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np

from gpucnn.arguments import printable
from gpucnn.data.reading import open_regular
from gpucnn.device import Array
from gpucnn.errors import DataError, missing_extra

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
MAX_PIXELS = 80_000_000  # of an image; decoding takes up to 12 bytes a pixel, together 0.9 GiB
_MAX_SIDE = 20_000_000  # Pillow counts the bits of a row, 64 a pixel at most, in 31 bits
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # Pillow would also run Ghostscript
_MAX_BYTES = 4 * MAX_PIXELS  # of a file: uncompressed RGBA
_MAX_HEADER = 1 << 25  # bytes read before the pixels
_MAX_EXIF = 1 << 16  # bytes; as much as one segment of a JPEG file
_MAX_READS = 500_000  # about a second; a PNG file needs three for each 8 KiB
_MAX_SCANS = 100  # of a JPEG file; each passes over all pixels, and encoders write about ten
_MAX_SLOW_PIXELS = 400_000  # where Pillow decodes in Python: plain PPM, 12-bit PGM, RLE in BMP
_ORIENTATION = 0x0112  # the EXIF tag; the values 2 to 8 need the transpositions below
_TRANSPOSITIONS = (
    "FLIP_LEFT_RIGHT",
    "ROTATE_180",
    "FLIP_TOP_BOTTOM",
    "TRANSPOSE",
    "ROTATE_270",
    "TRANSVERSE",
    "ROTATE_90",
)
_PHOTOMETRIC, _BITS, _TILE_WIDTH, _TILE_LENGTH, _SAMPLE_FORMAT = 262, 258, 322, 323, 339  # TIFF


class _Refused(Exception):
    """The reason why an image is not decoded."""


def require_pillow(what: str) -> None:
    """Raise MissingExtra, on behalf of `what`, unless Pillow is installed."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise missing_extra(what, "Pillow", "data") from error


def read_image(path: Path, height: int, width: int, mode: Literal["RGB", "L"] = "RGB") -> Array:
    """The image, upright, scaled to cover height x width and cropped at the centre.

    Returns uint8 (height, width, 3), or (height, width) for mode "L" (grey).  16-bit grey becomes
    8-bit, 65535 becoming 255; transparency is ignored; an animation gives its first frame.

    Raises DataError, whose text is one line, if the file cannot be read or decoded, is longer than
    4 * MAX_PIXELS bytes, has more than MAX_PIXELS in all or 20,000,000 in a row or column, or holds
    floats or 32-bit integers, whose range is not defined.
    """
    with open_regular(path) as file:
        try:
            return _decode(file, height, width, mode)
        except Exception as error:  # decoders raise any type of error for a damaged file
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise DataError(printable(f"{path}: not a readable image ({reason})")) from error


class _Metered(io.RawIOBase):
    """A file that can be read only as often, and as much, as an honest image needs."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self.bytes_left, self.reads_left = _MAX_HEADER, _MAX_READS
        self.scans_left: int | None = None  # no limit

    def read(self, size: int = -1) -> bytes:
        rest = max(self._size - self._file.tell(), 0)  # never allocate what a header announces
        content = self._file.read(rest if size < 0 else min(size, rest))
        self.bytes_left -= len(content)
        self.reads_left -= 1
        if self.bytes_left < 0 or self.reads_left < 0:
            raise _Refused("its headers and pixels take more reading than any image needs")
        if self.scans_left is not None:
            self.scans_left -= content.count(b"\xff\xda")
            if self.scans_left < 0:
                raise _Refused(f"more than {_MAX_SCANS} scans")
        return content

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


def _decode(file: BinaryIO, height: int, width: int, mode: str) -> Array:
    from PIL import Image, ImageOps, UnidentifiedImageError

    size = os.fstat(file.fileno()).st_size
    if size > _MAX_BYTES:
        raise _Refused(f"{size:,} bytes; expected at most {_MAX_BYTES:,}")
    source = _Metered(file, size)
    if file.read(12)[8:] == b"WEBP":
        source.bytes_left += size  # Pillow reads the whole file at once
    try:
        opened = Image.open(source, formats=_FORMATS)  # type: ignore[arg-type]
    except UnidentifiedImageError:
        raise _Refused(f"none of the formats {', '.join(_FORMATS)}") from None
    with opened as image:
        _check(image, Image.DECODERS)
        source.bytes_left = 4 * size + _MAX_HEADER
        if image.format in ("JPEG", "MPO"):
            source.scans_left = _MAX_SCANS
        image.draft("RGB", (2 * width, 2 * height))  # decode a large JPEG at a reduced size
        image.load()
        upright = _upright(image, Image.Transpose)
        if upright.mode[0] in "IF":
            upright = Image.fromarray(_to_8_bits(upright, image))
        elif upright.mode == "P":
            upright.info.pop("transparency", None)  # Pillow warns of it, and drops it
        if upright.mode != mode:
            upright = upright.convert(mode)
        return np.asarray(ImageOps.fit(upright, (width, height)))


def _check(image: "Image.Image", slow: Container[str]) -> None:
    """Refuse what the header describes, if it is too large or has no defined range."""
    tags = getattr(image, "tag_v2", {})
    tile = tags.get(_TILE_WIDTH, 1), tags.get(_TILE_LENGTH, 1)
    if not all(isinstance(size, int) for size in tile):  # a text times an int fills the memory
        raise _Refused("a tile whose size is not a number")
    for w, h in (image.size, tile):
        if w * h > MAX_PIXELS:
            raise _Refused(f"{w} x {h} pixels; expected at most {MAX_PIXELS:,}; scale it down")
        if max(w, h) > _MAX_SIDE:
            raise _Refused(f"{w} x {h} pixels; expected at most {_MAX_SIDE:,} a side; crop it")
    codec = image.tile[0][0] if image.tile else ""  # type: ignore[attr-defined]
    if codec in slow and image.width * image.height > _MAX_SLOW_PIXELS:
        raise _Refused(
            f"{image.width} x {image.height} pixels in a slow format ({codec}); "
            f"expected at most {_MAX_SLOW_PIXELS:,}; convert it to PNG"
        )
    exif = image.info.get("exif") or b"", image.info.get("Raw profile type exif") or ""
    if len(exif[0]) > _MAX_EXIF or len(exif[1]) > 2 * _MAX_EXIF + 100:
        raise _Refused(f"EXIF data of more than {_MAX_EXIF:,} bytes")
    if any(kind not in (1, 4) for kind in tags.get(_SAMPLE_FORMAT, (1,))):
        raise _Refused(
            "floats or signed integers, whose range is not defined; convert it to 8 bits"
        )
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise _Refused("32-bit values, whose range is not defined; convert it to 8 bits")


def _upright(image: "Image.Image", transpose: Any) -> "Image.Image":
    """As ImageOps.exif_transpose, which would also decode and re-encode all other tags."""
    orientation = image.getexif().get(_ORIENTATION)
    if isinstance(orientation, int) and 2 <= orientation <= 8:
        return image.transpose(transpose[_TRANSPOSITIONS[orientation - 2]])
    return image


def _to_8_bits(upright: "Image.Image", image: "Image.Image") -> Array:
    """Grey levels of 16 bits, or of a TIFF file's 12, as 8: uint8 (H, W)."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS, (16,))[0]
    levels = np.arange(1 << bits, dtype=np.int64)
    table = ((levels * 255 + levels[-1] // 2) // levels[-1]).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero; Pillow inverts only images of 8 bits
        table = table[::-1]
    return table[np.asarray(upright)]
