"""Batches out of a data set that lies on the GPU: the images never leave it."""

from typing import Any

import numpy as np

from gpucnn import cuda
from gpucnn.data.augment import Compose, Normalize, RandomCrop, RandomFlip, Transform
from gpucnn.data.dataset import Dataset
from gpucnn.data.upload import in_pieces
from gpucnn.device import Array, Device, working_on

_BLOCK = 256
_ROWS = 65535  # of a grid: the kernel goes round if there are more images
_MODES = ("constant", "edge", "reflect")  # as kernels/augment.cu numbers them
LARGEST = 2**30  # bytes of images that are kept on the device


class OnDevice:
    """Crop, flip and normalise in one launch, with the chance that the transforms would draw."""

    def __init__(
        self,
        dataset: Dataset,
        crop: RandomCrop | None,
        flip: RandomFlip | None,
        normalize: Normalize,
        device: Device,
    ) -> None:
        self._crop, self._flip = crop, flip
        self.labels = dataset.labels
        self._shape = dataset.images.shape[1:]
        self._device, self._xp = device, device.xp
        with working_on(device):
            self._images = in_pieces(dataset.images, device)
            self._scale = self._xp.asarray(normalize.scale)
            self._shift = self._xp.asarray(normalize.shift)

    @staticmethod
    def of(dataset: object, transform: Transform | None, device: Device) -> "OnDevice | None":
        """An OnDevice, or None unless `device` is a GPU, `dataset` a Dataset that fits there, and
        `transform` crop, flip and normalise in this order, the last two of these, or the last."""
        if device.kind == "cpu" or not isinstance(dataset, Dataset):
            return None
        images = dataset.images
        steps: list[Any] = (
            list(transform.transforms) if isinstance(transform, Compose) else [transform]
        )
        crop = steps.pop(0) if steps and isinstance(steps[0], RandomCrop) else None
        flip = steps.pop(0) if steps and isinstance(steps[0], RandomFlip) else None
        if len(steps) != 1 or not isinstance(steps[0], Normalize):
            return None
        h, w, c = images.shape[1:]
        square = crop is not None or h == w  # what the kernel makes
        if not square or h * w * c >= 2**31 or not 0 < images.nbytes <= LARGEST:
            return None
        steps[0].check(images)
        return OnDevice(dataset, crop, flip, steps[0], device)

    def draw(self, chosen: Array, generator: np.random.Generator) -> Array:
        """All that a batch needs to know, int64 (N, 4): image, top, left, flipped."""
        n = len(chosen)
        draws = np.zeros((n, 4), np.int64)
        draws[:, 0] = chosen
        if self._crop is not None:
            draws[:, 1], draws[:, 2] = self._crop.draw((n, *self._shape), generator)
        if self._flip is not None:
            draws[:, 3] = self._flip.draw(n, generator)
        return draws

    def batch(self, draws: Array) -> Array:
        """The images float32 (N, size, size, C) on the device; so are the draws."""
        n, (h, w, c) = len(draws), self._shape
        size = h if self._crop is None else self._crop.size
        padding = 0 if self._crop is None else self._crop.padding
        with working_on(self._device):
            y = self._xp.empty((n, size, size, c), np.float32)
        cuda.launch(
            "crop_flip_normalize",
            (-(-size * size * c // _BLOCK), min(n, _ROWS)),
            _BLOCK,
            self._images,  # (count, H, W, C) uint8
            draws,  # (N, 4) int64
            self._scale,  # (C,)
            self._shift,  # (C,)
            y,  # (N, size, size, C)
            n,
            h,
            w,
            c,
            size,
            padding,
            0 if self._crop is None else _MODES.index(self._crop.mode),
        )
        return y
