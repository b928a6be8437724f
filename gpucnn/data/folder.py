"""ImageFolder: images in one directory per class, decoded on access."""

import os
import threading
import warnings
from pathlib import Path
from typing import Literal

import numpy as np

from gpucnn.arguments import printable
from gpucnn.data.images import SUFFIXES, read_image, require_pillow
from gpucnn.data.reading import unreadable
from gpucnn.device import Array
from gpucnn.errors import ArgumentError, DataError


class ImageFolder:
    """The images in root/CLASS/..., resized and center-cropped to `size`.

    size is in pixels: an int for a square, or (height, width).  An image is scaled until it covers
    `size`, then the longer side is cropped equally at both ends.  The classes are the names of the
    directories, sorted.  Hidden directories, files without an image suffix, and links to
    directories inside a class are ignored.

    dataset[i] reads one file and returns (image, label), uint8 (H, W, 3) and int, so a folder may
    be larger than memory; a DataLoader reads ahead in its worker threads.  16-bit grey becomes
    8-bit.  A file that is damaged, has more than 80 million pixels, or holds floats or 32-bit
    integers raises DataError.  With on_error="skip" the result is None, which a DataLoader leaves
    out of its batch, and a warning gives the number of files skipped so far.

    A link to a file or class outside of root is an error unless follow_links.

    Raises MissingExtra without Pillow; DataError for a folder without classes, a class without
    images, a directory that cannot be read or whose name is not UTF-8; ArgumentError for an invalid
    size or on_error.
    """

    def __init__(
        self,
        root: "str | os.PathLike[str]",
        size: int | tuple[int, int],
        on_error: Literal["raise", "skip"] = "raise",
        follow_links: bool = False,
    ) -> None:
        require_pillow("ImageFolder")  # here rather than at the first image
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
        folders = _class_folders(self.root, follow_links)
        self.classes = tuple(folder.name for folder in folders)
        self.paths: list[Path] = []
        counts = []
        for folder in folders:
            paths = _images(folder, self.root, follow_links)
            if not paths:
                raise DataError(
                    f"{folder}: expected at least one image of the class, found none\n"
                    f"  add images ({', '.join(sorted(SUFFIXES))}) or remove the directory"
                )
            self.paths += paths
            counts.append(len(paths))
        self.labels = np.repeat(np.arange(len(counts)), counts).astype(np.int64)

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        height, width = self.size
        return (
            f"ImageFolder({printable(self.name)}: {len(self)} images as {height}x{width}x3, "
            f"{len(self.classes)} classes)"
        )

    def __getitem__(self, index: int) -> tuple[Array, int] | None:
        path = self.paths[index]
        try:
            return read_image(path, *self.size), int(self.labels[index])
        except DataError as error:
            if self.on_error == "raise":
                raise DataError(f'{error}\n  remove it, or pass on_error="skip"') from error
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

    def _skip(self, path: Path, error: DataError) -> None:
        with self._lock:
            if path in self.skipped:
                return
            self.skipped.add(path)
            count = len(self.skipped)
        warnings.warn(printable(f"{error}; skipped, {count} so far"), stacklevel=3)


def _class_folders(root: Path, follow_links: bool) -> list[Path]:
    try:
        folders = sorted(
            path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")
        )
    except OSError as error:
        raise unreadable(root, error) from error
    if not folders:
        raise DataError(f"{root}: expected a directory for each class, found none")
    for folder in folders:
        try:
            folder.name.encode()
        except UnicodeEncodeError:  # checkpoints and pages are UTF-8
            raise DataError(
                f"{root}: the class {folder.name!a} is not UTF-8; rename that directory"
            ) from None
        if folder.is_symlink() and not follow_links:
            _check_link(folder, root)
    return folders


def _images(folder: Path, root: Path, follow_links: bool) -> list[Path]:
    """The paths below `folder` with an image suffix, sorted; linked directories are left out."""
    found, pending = [], [folder]
    while pending:
        here = pending.pop()
        try:
            with os.scandir(here) as entries:
                for entry in entries:
                    path = here / entry.name
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(path)
                    if path.suffix.lower() in SUFFIXES:
                        if entry.is_symlink() and not follow_links:
                            _check_link(path, root)
                        found.append(path)
        except OSError as error:
            raise unreadable(here, error) from error
    return sorted(found)


def _check_link(path: Path, root: Path) -> None:
    """Raise DataError if the link leads out of the folder: it could show any file of yours."""
    target = os.path.realpath(path)
    if not Path(target).is_relative_to(os.path.realpath(root)):
        raise DataError(
            f"{path}: links to {target}, outside of {root}\n"
            "  remove it, or pass follow_links=True if you trust the folder"
        )
