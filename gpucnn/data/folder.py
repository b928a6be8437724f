"""ImageFolder: images in one directory per class, decoded on access."""

import os
import threading
import warnings
from pathlib import Path
from typing import Literal

import numpy as np

from gpucnn.device import Array
from gpucnn.errors import ArgumentError, DataError, missing_extra

_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)


class ImageFolder:
    """The images in root/CLASS/..., resized and center-cropped to `size`.

    size is in pixels: an int for a square, or (height, width).  An image is scaled until it covers
    `size`, then the longer side is cropped equally at both ends.  The classes are the names of the
    directories, sorted.  Hidden directories, and files without an image suffix, are ignored.

    dataset[i] reads one file and returns (image, label), uint8 (H, W, 3) and int, so a folder may
    be larger than memory; a DataLoader reads ahead in its worker threads.  A file that cannot be
    decoded raises DataError.  With on_error="skip" the result is None, which a DataLoader leaves
    out of its batch, and a warning gives the number of files skipped so far.

    Raises MissingExtra without Pillow, DataError for a folder without classes or a class without
    images, ArgumentError for an invalid size or on_error.
    """

    def __init__(
        self,
        root: "str | os.PathLike[str]",
        size: int | tuple[int, int],
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        try:
            import PIL.Image  # noqa: F401  fail here rather than at the first image
        except ImportError as error:
            raise missing_extra("ImageFolder", "Pillow", "data") from error
        height, width = (size, size) if isinstance(size, int) else size
        if height < 1 or width < 1:
            raise ArgumentError(f"ImageFolder: expected a size of at least 1 pixel, got {size}")
        if on_error not in ("raise", "skip"):
            raise ArgumentError(f"ImageFolder: expected on_error raise or skip, got {on_error!r}")
        self.root = Path(root).expanduser()
        self.name = self.root.name
        self.size = (height, width)
        self.on_error = on_error
        self.skipped: set[Path] = set()  # files that could not be decoded so far
        self._lock = threading.Lock()
        folders = _class_folders(self.root)
        self.classes = tuple(folder.name for folder in folders)
        self.paths: list[Path] = []
        counts = []
        for folder in folders:
            paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
            if not paths:
                raise DataError(
                    f"{folder}: expected at least one image of the class, found none\n"
                    f"  add images ({', '.join(sorted(_SUFFIXES))}) or remove the directory"
                )
            self.paths += paths
            counts.append(len(paths))
        self.labels = np.repeat(np.arange(len(counts)), counts).astype(np.int64)

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        height, width = self.size
        return (
            f"ImageFolder({self.name}: {len(self)} images as {height}x{width}x3, "
            f"{len(self.classes)} classes)"
        )

    def __getitem__(self, index: int) -> tuple[Array, int] | None:
        path = self.paths[index]
        try:
            return _decode(path, *self.size), int(self.labels[index])
        except Exception as error:  # decoders raise any type of error for a damaged file
            if self.on_error == "raise":
                raise DataError(
                    f'{path}: not a readable image ({error})\n  remove it, or pass on_error="skip"'
                ) from error
            self._skip(path, error)
            return None

    def take(self, n: int) -> "ImageFolder":
        """n images, evenly spaced, so that classes keep their proportions; all if there are fewer.

        Raises ArgumentError for n < 1.
        """
        if n < 1:
            raise ArgumentError(f"take: expected at least 1 image, got {n}")
        n = min(n, len(self))
        chosen = np.arange(n) * len(self) // n
        part = ImageFolder.__new__(ImageFolder)
        part.__dict__.update(self.__dict__)
        part.paths = [self.paths[i] for i in chosen]
        part.labels = self.labels[chosen]
        return part

    def _skip(self, path: Path, error: Exception) -> None:
        with self._lock:
            if path in self.skipped:
                return
            self.skipped.add(path)
            count = len(self.skipped)
        warnings.warn(
            f"{path}: not a readable image ({error}); skipped, {count} so far", stacklevel=3
        )


def _class_folders(root: Path) -> list[Path]:
    try:
        folders = sorted(
            path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")
        )
    except OSError as error:
        raise DataError(f"{root}: cannot be read ({error.strerror})") from error
    if not folders:
        raise DataError(f"{root}: expected a directory for each class, found none")
    return folders


def _decode(path: Path, height: int, width: int) -> Array:
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        image.draft("RGB", (2 * width, 2 * height))  # decode a large JPEG at a reduced size
        upright = ImageOps.exif_transpose(image)
        return np.asarray(ImageOps.fit(upright.convert("RGB"), (width, height)))
