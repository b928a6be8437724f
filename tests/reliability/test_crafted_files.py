"""Files made to harm their reader: each is refused by name, or read rightly, within bounds."""

import gzip
import io
import os
import pickle
import struct
import tarfile
import zlib

import numpy as np
import pytest
from image_files import chunk, ifd, png, tiff
from reliability.tally import bounded

from gpucnn import data
from gpucnn.data import cifar
from gpucnn.data.pickles import read_arrays
from gpucnn.errors import DataError


def refused(read, *arguments):
    """Call `read` within bounds; it must raise a DataError, for want of sense and not of memory."""
    with bounded(), pytest.raises(DataError) as caught:
        read(*arguments)
    error = caught.value
    while error is not None:
        assert not isinstance(error, MemoryError)
        error = error.__cause__ or error.__context__
    assert len(str(caught.value)) < 2000


def sparse(path, size, start=b""):
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)


# --- pickles ---


def u4(number):
    return struct.pack("<I", number)


def u8(number):
    return struct.pack("<Q", number)


class Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


RUN = "open('code ran', 'w')"  # in the folder of the test
DOUBLED = b"K\x01" + b"q\0h\0\x86" * 40  # a tuple of the tuple before, twice, and so on
PICKLES = {  # functions, for some are long
    "a memo of 2 GiB": lambda: b"\x80\x02]r" + u4(1 << 27) + b".",
    "bytes of 3 GiB": lambda: b"\x80\x04\x8e" + u8(3 << 30) + b".",
    "a bytearray of 3 GiB": lambda: b"\x80\x05\x96" + u8(3 << 30) + b".",
    "text of 3 GiB": lambda: b"\x80\x04\x8d" + u8(3 << 30) + b".",
    "text of 2**64 bytes": lambda: b"\x80\x04\x8d" + u8((1 << 64) - 1) + b".",
    "a string of -1 bytes": lambda: b"T" + struct.pack("<i", -1) + b".",
    "an integer of 2 GiB": lambda: b"\x80\x02\x8b" + u4((1 << 31) - 1) + b".",
    "an integer of -1 bytes": lambda: b"\x80\x02\x8b" + struct.pack("<i", -1) + b".",
    "a frame of 3 GiB": lambda: b"\x80\x04\x95" + u8(3 << 30) + b"].",
    "an integer of a million digits": lambda: b"I" + b"9" * 1_000_000 + b"\n.",
    "an integer of a million bytes": lambda: b"\x8b" + u4(1_000_000) + b"9" * 1_000_000 + b".",
    "a key whose hash takes 2**40 steps": lambda: b"}(" + DOUBLED + b"Nu.",
    "the same with DUP": lambda: b"\x80\x02}(K\x01" + b"2\x86" * 40 + b"Nu.",
    "a key too deep to hash": lambda: b"\x80\x02}()" + b"\x85" * 300_000 + b"Nu.",
    "a name whose text takes 2**40 steps": lambda: b"cnumpy\ndtype\n" + DOUBLED + b"K\0K\x01\x87R.",
    "an encoding whose text takes 2**40 steps": lambda: (
        b"c_codecs\nencode\nX\x01\0\0\0a" + DOUBLED + b"\x86R."
    ),
    "50,000 keys of equal hash": lambda: b"}(" + b"".join(map(colliding, range(50_000))) + b"u.",
    "8 MiB encoded 500 times": lambda: (
        b"](c_codecs\nencode\nq\1X"
        + u4(8 << 20)
        + b"a" * (8 << 20)
        + b"X\6\0\0\0latin1\x86q\2R"
        + b"h\1h\2R" * 500
        + b"e."
    ),
    "text widened to 4 bytes a character": lambda: (
        b"]X" + u4((300 << 20) + 4) + bytes(300 << 20) + b"\xf0\x9f\x90\x88a."
    ),
    "20 million dicts": lambda: b"(" + b"}" * 20_000_000 + b"l.",
    "20 million marks": lambda: b"(" * 20_000_000,
    "20 million numbers": lambda: b"](" + b"K\1" * 20_000_000 + b"e.",
    "a list that contains itself": lambda: b"]q\0h\0a.",
    "an array of 2**62 elements": lambda: (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n"
        b"(L4611686018427387904L\ntcnumpy\ndtype\n(S'u1'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\n"
        b"tbI00\nS'a'\ntb."
    ),
    "a dtype of 8 GB": lambda: b"cnumpy\ndtype\n(S'u1,(1000000000,)f8'\nI0\nI1\ntR.",
    "os.system": lambda: pickle.dumps(Call(os.system, "echo > 'code ran'")),
    "eval": lambda: pickle.dumps({"data": Call(eval, RUN)}, 0),
    "exec by a name on the stack": lambda: (
        b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93\x8c\x15" + RUN.encode() + b"\x85R."
    ),
    "an instance by INST": lambda: b'(S"' + RUN.encode() + b'"\nibuiltins\neval\n.',
    "state for a function": lambda: b"cnumpy\ndtype\n}S'a'\nI1\nsb.",
    "an array of objects": lambda: pickle.dumps(np.array([Call(eval, RUN)], dtype=object)),
    "zeros": lambda: bytes(1_000_000),
    "nothing": lambda: b"",
}


def colliding(i):
    return b"\x8a\x0b" + (i * ((1 << 61) - 1)).to_bytes(11, "little") + b"N"


@pytest.mark.parametrize("name", PICKLES)
def test_a_crafted_pickle(name, tally, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with tally("a crafted pickle"):
        refused(read_arrays, name, PICKLES[name]())
        assert not os.listdir()


# --- CIFAR and MNIST ---

IMAGES, LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def idx(*shape, body=b"", magic=0x800):
    return struct.pack(f">I{len(shape)}I", magic + len(shape), *shape) + body


def cifar10(path):
    data.CIFAR10(path, train=False)


def mnist(path):
    if not any(path.glob(f"{LABELS}*")):
        (path / LABELS).write_bytes(idx(9, body=bytes(9)))
    data.MNIST(path, train=False)


def bomb(start):
    """`start` and 2 GiB of zeros, as gzip of 2 MB: one compressed block, again and again."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = deflate.compress(start) + deflate.flush(zlib.Z_FULL_FLUSH)
    block = deflate.compress(bytes(1 << 20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    return b"\x1f\x8b\x08\0\0\0\0\0\0\3" + first + block * 2048 + b"\3\0" + bytes(8)


FILES = {  # name: reader, file, its content or size or the target of a link
    "a sparse batch of 6 GiB": (cifar10, "test_batch", 6 << 30),
    "a sparse binary batch of 6 GiB": (cifar10, "test_batch.bin", 6 << 30),
    "a batch of zeros": (cifar10, "test_batch", 30_730_000),
    "a batch of 2**40 steps": (cifar10, "test_batch", lambda: b"}(" + DOUBLED + b"Nu."),
    "a batch that is a device": (cifar10, "test_batch", "/dev/zero"),
    "a binary batch that is a device": (cifar10, "test_batch.bin", "/dev/urandom"),
    "a sparse archive of 6 GiB": (cifar10, "cifar-10-python.tar.gz", 6 << 30),
    "an archive of another content": (cifar10, "cifar-10-python.tar.gz", lambda: bomb(b"")),
    "idx of 2**96 bytes": (mnist, IMAGES, lambda: idx(*[(1 << 32) - 1] * 3, body=bytes(99))),
    "idx of 0 x 2**64 bytes": (mnist, IMAGES, lambda: idx(0, (1 << 32) - 1, (1 << 32) - 1)),
    "idx of 2 GiB": (mnist, IMAGES, lambda: idx(2_739_138, 28, 28, body=bytes(99))),
    "a sparse idx file of 6 GiB": (mnist, IMAGES, 6 << 30),
    "idx of floats": (mnist, IMAGES, lambda: idx(9, 28, 28, body=bytes(9 * 784), magic=0xD00)),
    "labels of 4 GiB": (mnist, LABELS, lambda: idx((1 << 32) - 1)),
    "2 GiB after the images": (mnist, f"{IMAGES}.gz", lambda: bomb(idx(9, 28, 28))),
    "2 GiB as the header says": (mnist, f"{IMAGES}.gz", lambda: bomb(idx(2_739_138, 28, 28))),
    "2 million gzip members": (mnist, f"{IMAGES}.gz", lambda: gzip.compress(b"") * 2_000_000),
    "a gzip name of 100 MB": (
        mnist,
        f"{IMAGES}.gz",
        lambda: b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * 100_000_000,
    ),
    "a gzip file that claims 2 GiB": (
        mnist,
        f"{IMAGES}.gz",
        lambda: gzip.compress(idx(2_739_138, 28, 28)),
    ),
    "a gzip file that is a device": (mnist, f"{IMAGES}.gz", "/dev/zero"),
    "a gzip file of 6 GiB": (mnist, f"{IMAGES}.gz", 6 << 30),
}


@pytest.mark.parametrize("name", FILES)
def test_a_crafted_cifar_or_mnist_file(name, tally, tmp_path):
    read, file, content = FILES[name]
    if isinstance(content, int):
        sparse(tmp_path / file, content)
    elif isinstance(content, str):
        (tmp_path / file).symlink_to(content)
        (tmp_path / "data_batch_1").touch()  # so that the folder is taken for CIFAR-10's
        (tmp_path / "data_batch_1.bin").touch()
    else:
        (tmp_path / file).write_bytes(content())
    with tally("a crafted CIFAR or MNIST file"):
        refused(read, tmp_path)


@pytest.mark.parametrize("name", ["test_batch", "test_batch.bin", IMAGES, f"{IMAGES}.gz"])
def test_a_pipe_instead_of_a_data_file(name, tally, tmp_path):
    os.mkfifo(tmp_path / name)
    suffix = ".bin" if name.endswith(".bin") else ""
    (tmp_path / f"data_batch_1{suffix}").touch()
    with tally("a crafted CIFAR or MNIST file"):
        refused(cifar10 if "batch" in name else mnist, tmp_path)


@pytest.mark.parametrize("kind", ["a member longer than a batch", "a link", "a folder"])
def test_a_crafted_archive_of_a_trusted_hash(kind, tally, tmp_path, monkeypatch):
    path = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        info = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        if kind == "a member longer than a batch":
            info.size = 130 << 20
        else:
            info.type = tarfile.SYMTYPE if kind == "a link" else tarfile.DIRTYPE
            info.linkname = "/etc/passwd"
        tar.addfile(info, io.BytesIO(bytes(info.size)))
    monkeypatch.setattr(cifar, "sha256_of", lambda _: cifar._CIFAR10[0].sha256)
    with tally("a crafted CIFAR or MNIST file"):
        refused(cifar10, tmp_path)
        assert os.listdir(tmp_path) == [path.name]


# --- images ---


def gif(width, height):
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + GIF_FRAME


GIF_FRAME = b",\0\0\0\0\1\0\1\0\0\2\2D\1\0;"


def bmp(width, height, pixels, compression=0):
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, compression, 0, 0, 0, 256, 256)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 54 + 1024) + header + bytes(1024) + pixels


def webp(width, height):
    bits = (width - 1) | (height - 1) << 14
    content = b"VP8L" + u4(5) + b"\x2f" + u4(bits) + b"\0"
    return b"RIFF" + u4(4 + len(content)) + b"WEBP" + content


def jpeg(scans):
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("L", (8000, 8000)).save(buffer, "JPEG", progressive=True, quality=1)
    whole = buffer.getvalue()
    return whole[:-2] + whole[whole.rindex(b"\xff\xda") : -2] * scans + whole[-2:]


ROWS = bytes(25 * 8)  # 8 x 8 RGB, with a filter byte in each row
SIZE = [(256, 4, 1, 8), (257, 4, 1, 8)]
TILE = {"compression": 8, "t324": 8, "t325": 64}
PICTURES = {
    "bomb.png": lambda: png(30_000, 30_000, bytes(1000)),
    "bomb_of_one_row.png": lambda: png((1 << 31) - 1, 1, bytes(1000)),
    "no_pixels.png": lambda: png(0, 0, b""),
    "bomb.gif": lambda: gif(30_000, 30_000),
    "bomb.webp": lambda: webp(16_384, 16_384),
    "bomb.bmp": lambda: bmp(30_000, 30_000, b""),
    "negative.bmp": lambda: bmp(-30_000, -30_000, b""),
    "bomb.ppm": lambda: b"P6 30000 30000 255\n",
    "plain_bomb.ppm": lambda: b"P3 8000 8000 255\n" + b"1 " * 1_000_000,
    "comment.ppm": lambda: b"P6 #" + b"x" * 5_000_000,
    "bomb.tif": lambda: tiff(b"", 8, t256=30_000, t257=30_000),
    "bomb_of_tiles.tif": lambda: tiff(bytes(64), 8, t322=60_000, t323=60_000, **TILE),
    "bomb_of_scans.jpg": lambda: jpeg(1000),
    "run_lengths.bmp": lambda: bmp(600, 600, b"\0\2\0\0" * 2_000_000, compression=1),
    "many_chunks.png": lambda: png(8, 8, ROWS, before=chunk(b"tEXt", b"a\0b") * 800_000),
    "text.png": lambda: png(
        8, 8, ROWS, before=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200 << 20), 1))
    ),
    "exif_tags_of_the_same_bytes.png": lambda: png(
        8,
        8,
        ROWS,
        before=chunk(b"eXIf", ifd([(i, 7, 1 << 20, 8) for i in range(9000)], bytes(1 << 20))),
    ),
    "tags_of_the_same_bytes.tif": lambda: ifd(
        SIZE + [(i, 7, 1 << 20, 8) for i in range(400, 4000)], bytes(1 << 20)
    ),
    "strips.tif": lambda: ifd([*SIZE, (273, 4, 20_000_000, 99)], bytes(80_000_000)),
    "floats.tif": lambda: tiff(bytes(256), 32, sample_format=3),
    "postscript.png": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(x) run\n",
    "sparse.png": lambda: (png(8, 8, ROWS)[:33] + struct.pack(">I", 1 << 31) + b"iCCP", 6 << 30),
    "sparse.jpg": lambda: (b"\xff\xd8\xff", 300 << 20),
    "sparse.tif": lambda: (b"II*\0\x08\0\0\0", 300 << 20),
    "sparse.webp": lambda: (b"RIFF\xff\xff\xff\x10WEBPVP8X", 300 << 20),
    "truncated.png": lambda: png(8, 8, ROWS)[:43],
    "empty.jpg": lambda: b"",
    "device.png": lambda: "/dev/zero",
    "dangling.png": lambda: "nowhere",
    "loop.png": lambda: "loop.png",
    "pipe.png": lambda: None,
}


@pytest.mark.filterwarnings("ignore:Image size")  # Pillow's own limits
@pytest.mark.parametrize("name", PICTURES)
def test_a_crafted_image(name, tally, tmp_path):
    pytest.importorskip("PIL", reason="needs Pillow")
    content, path = PICTURES[name](), tmp_path / "a" / name
    path.parent.mkdir()
    if content is None:
        os.mkfifo(path)
    elif isinstance(content, str):
        path.symlink_to(content)
    elif isinstance(content, tuple):
        sparse(path, content[1], content[0])
    else:
        path.write_bytes(content)
    with tally("a crafted image or image folder"):
        refused(lambda: data.ImageFolder(tmp_path, 8, follow_links=True)[0])


def test_the_largest_image_is_decoded_within_bounds(tally, tmp_path):
    """80 million pixels, in 0.3 MB."""
    pytest.importorskip("PIL", reason="needs Pillow")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "a.png").write_bytes(png(10_000, 8000, bytes(8000 * (1 + 3 * 10_000))))
    with tally("a crafted image or image folder"), bounded():
        assert not data.ImageFolder(tmp_path, 8)[0][0].any()


@pytest.mark.parametrize("target", ["/etc", "/etc/passwd", "/dev/zero", ".."])
def test_a_link_out_of_an_image_folder(target, tally, tmp_path):
    pytest.importorskip("PIL", reason="needs Pillow")
    root = tmp_path / "photos"
    (root / "a").mkdir(parents=True)
    (root / "a" / "x.png").write_bytes(png(8, 8, ROWS))
    (root / "b" if os.path.isdir(target) else root / "a" / "y.png").symlink_to(target)
    with tally("a crafted image or image folder"):
        refused(data.ImageFolder, root, 8)


def test_links_in_a_circle(tally, tmp_path):
    pytest.importorskip("PIL", reason="needs Pillow")
    here = tmp_path / "a"
    for depth in range(40):
        here.mkdir()
        (here / "up").symlink_to(tmp_path / "a")
        here = here / str(depth)
    (tmp_path / "a" / "x.png").write_bytes(png(8, 8, ROWS))
    with tally("a crafted image or image folder"), bounded():
        assert len(data.ImageFolder(tmp_path, 8)) == 1


def test_a_folder_of_100_000_images(tally, tmp_path):
    pytest.importorskip("PIL", reason="needs Pillow")
    (tmp_path / "a").mkdir()
    for i in range(100_000):
        os.mknod(tmp_path / "a" / f"{i}.png")
    with tally("a crafted image or image folder"), bounded():
        assert len(data.ImageFolder(tmp_path, 8)) == 100_000
