import io
import os
import struct

import numpy as np
import pytest
from image_files import chunk, ifd, png, tiff

from gpucnn.data import images
from gpucnn.data.images import MAX_PIXELS, read_image
from gpucnn.errors import DataError

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")

GREY = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)
GREY_16 = GREY.astype(np.uint16) * 257  # 0 to 65,535 as 0 to 255


def read(folder, name, content, **how):
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content.save(path)
    return read_image(path, 8, 8, **how)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.png", Image.fromarray(GREY_16)),
        ("a.tif", Image.fromarray(GREY_16)),
        ("big_endian.tif", Image.fromarray(GREY_16.astype(">u2"))),
        ("a.pgm", Image.fromarray(GREY_16)),
        ("handmade.tif", tiff(GREY_16.tobytes(), 16)),
        ("white_is_zero.tif", tiff((65_535 - GREY_16).tobytes(), 16, white=0)),
        (
            "twelve_bits.pgm",
            b"P5 8 8 4095\n" + (GREY * 4095.0 / 255).round().astype(">u2").tobytes(),
        ),
        ("rgb.ppm", b"P6 8 8 65535\n" + GREY_16.repeat(3).astype(">u2").tobytes()),
        ("rgb.tif", tiff(GREY_16.repeat(3).tobytes(), 16, samples=3)),
        (
            "rgb.png",
            png(
                8, 8, b"".join(b"\0" + row.repeat(3).astype(">u2").tobytes() for row in GREY_16), 16
            ),
        ),
    ],
)
def test_16_bit_images_become_8_bit_images(tmp_path, name, content):
    np.testing.assert_array_equal(read(tmp_path, name, content), GREY[..., None].repeat(3, 2))
    np.testing.assert_array_equal(read_image(tmp_path / name, 8, 8, "L"), GREY)


def test_a_grey_tiff_of_12_bits_becomes_8_bits(tmp_path):
    pixels = bytes([0xAB, 0xCA, 0xBC]) * 32  # 0xABC twice
    assert (read(tmp_path, "a.tif", tiff(pixels, 12)) == round(0xABC * 255 / 4095)).all()


def test_rounding_is_to_the_nearest_level(tmp_path):
    values = np.array([0, 128, 129, 385, 386, 65_406, 65_407, 65_535], np.uint16)
    grey = read(tmp_path, "a.png", Image.fromarray(np.tile(values, (8, 1))), mode="L")
    assert grey[0].tolist() == [0, 0, 1, 1, 2, 254, 255, 255]


FLOATS = GREY.astype(np.float32)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("float.tif", Image.fromarray(FLOATS), "floats or signed"),
        ("float64.tif", tiff(FLOATS.astype("<f8").tobytes(), 64, sample_format=3), "none of the"),
        ("float.pgm", b"Pf\n8 8\n-1.0\n" + FLOATS.tobytes(), "32-bit values"),
        ("int32.tif", Image.fromarray(GREY.astype(np.int32)), "signed integers"),
        ("uint32.tif", tiff(GREY.astype("<u4").tobytes(), 32), "32-bit values"),
        ("int16.tif", tiff(GREY_16.tobytes(), 16, sample_format=2), "signed integers"),
        ("int8.tif", tiff(GREY.tobytes(), 8, sample_format=2), "signed integers"),
    ],
)
def test_values_without_a_defined_range_are_refused_by_name(tmp_path, name, content, reason):
    with pytest.raises(DataError, match=f"{name}: not a readable image .*{reason}"):
        read(tmp_path, name, content)


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path):
    image = Image.new("P", (8, 8), 3)
    image.putpalette(list(range(256)) * 3)
    image.save(tmp_path / "a.png", transparency=bytes(10))
    assert (read_image(tmp_path / "a.png", 8, 8) == (9, 10, 11)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_an_image_is_turned_upright(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3)).astype(np.uint8)
    how = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}", exif=exif, **how)
    turned = (  # by the EXIF standard: where the file's first row and column belong
        pixels,
        pixels[:, ::-1],
        pixels[::-1, ::-1],
        pixels[::-1],
        pixels.transpose(1, 0, 2),
        pixels.transpose(1, 0, 2)[:, ::-1],
        pixels.transpose(1, 0, 2)[::-1, ::-1],
        pixels.transpose(1, 0, 2)[::-1],
    )[orientation - 1]
    image = read_image(tmp_path / f"a.{suffix}", *turned.shape[:2])
    np.testing.assert_array_equal(image, turned)


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), (10 * i, 0, 0)) for i in (3, 9, 20)]
    for name in ("a.gif", "a.png", "a.webp", "a.tif"):
        how = {"lossless": True} if name == "a.webp" else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **how)
        assert (read_image(tmp_path / name, 8, 8) == (30, 0, 0)).all()


# 4 GiB, if the width "x" is multiplied by the length
TILE_OF_TEXT = tiff(bytes(64), 8, t322=ord("x"), t323=(1 << 32) - 1).replace(
    struct.pack("<HH", 322, 4), struct.pack("<HH", 322, 2)
)


def test_a_webp_file_may_be_longer_than_a_header(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_MAX_HEADER", 1000)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.webp", lossless=True)
    assert (tmp_path / "a.webp").stat().st_size > 9000
    np.testing.assert_array_equal(read_image(tmp_path / "a.webp", 64, 64), noise)


def rows(width, height, size):
    return bytes((1 + width * size) * height)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("wide.png", png(80_000_001, 1, b""), "80000001 x 1 pixels; expected at most 80,000,000"),
        (
            "long.tif",
            tiff(bytes(64), 8, samples=3, t256=67_174_400, t257=1),
            "67174400 x 1 pixels; expected at most 20,000,000 a side",
        ),
        ("bomb.png", png(30_000, 30_000, b""), "30000|900000000 pixels"),
        ("tile.tif", tiff(bytes(64), 8, t322=60_000, t323=60_000), "60000 x 60000 pixels"),
        ("tile_of_text.tif", TILE_OF_TEXT, "a tile whose size is not a number"),
        ("slow.ppm", b"P3 1000 1000 255\n1 1 1", r"1000 x 1000 .* slow format \(ppm_plain\)"),
        (
            "exif.png",
            png(8, 8, rows(8, 8, 3), before=chunk(b"eXIf", ifd([], bytes(70_000)))),
            "EXIF data of more than 65,536 bytes",
        ),
        ("ghost.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "none of the formats"),
        ("empty.png", b"", "none of the formats"),
    ],
)
def test_a_header_that_describes_too_much_is_refused_by_name(tmp_path, name, content, reason):
    with pytest.raises(DataError, match=reason):
        read(tmp_path, name, content)


def test_the_limit_on_pixels_holds_whatever_pillows_limit_is(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(DataError, match=f"30000 x 30000 .* at most {MAX_PIXELS:,}"):
        read(tmp_path, "a.png", png(30_000, 30_000, b""))


def test_a_jpeg_file_of_many_scans_is_refused(tmp_path):
    buffer = io.BytesIO()
    Image.new("L", (64, 64)).save(buffer, "JPEG", progressive=True)
    whole = buffer.getvalue()
    scan = whole[whole.rindex(b"\xff\xda") : -2]
    assert read(tmp_path, "a.jpg", whole[:-2] + scan * 50 + whole[-2:]).shape == (8, 8, 3)
    with pytest.raises(DataError, match="more than 100 scans"):
        read(tmp_path, "a.jpg", whole[:-2] + scan * 120 + whole[-2:])


def test_a_file_longer_than_any_image_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "a.bmp").open("wb") as file:
        file.write(b"BM")
        file.truncate(6 << 30)  # sparse
    with pytest.raises(DataError, match="6,442,450,944 bytes; expected at most 320,000,000"):
        read_image(tmp_path / "a.bmp", 8, 8)


def test_tags_that_point_at_the_same_bytes_again_and_again_are_refused(tmp_path):
    tags = [(256, 4, 1, 8), (257, 4, 1, 8)] + [(i, 7, 1 << 20, 8) for i in range(400, 1400)]
    with pytest.raises(DataError, match="not a readable image"):
        read(tmp_path, "a.tif", ifd(tags, bytes(1 << 20)))


def test_a_name_with_control_characters_is_escaped_and_a_reason_is_one_short_line(tmp_path):
    with pytest.raises(DataError) as error:
        read(tmp_path, "\x1b[31m\udcff.png", b"GIF89a" + struct.pack("<HH", 8, 8) + b"x" * 9999)
    assert "\\x1b[31m\\udcff.png: not a readable" in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400 + len(os.fspath(tmp_path))
