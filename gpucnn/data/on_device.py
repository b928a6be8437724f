"""Augmentation on the GPU: the images stay in device memory; one launch produces a batch."""

from typing import Any

import numpy as np

from gpucnn import cuda
from gpucnn.data.augment import Compose, Normalize, RandomCrop, RandomHorizontalFlip, Transform
from gpucnn.data.dataset import Dataset
from gpucnn.data.upload import upload_in_chunks
from gpucnn.device import Array, Device, working_on
from gpucnn.integers import ceil_div

_BLOCK = 256
_MAX_GRID_Y = 65535  # CUDA's limit; the kernel loops if a batch has more images
_PADDING_MODES = ("constant", "edge", "reflect")  # numbered as in kernels/augment.cu
MAX_BYTES = 2**30  # of images kept on the device


class OnDevice:
    """A data set in device memory, cropped, flipped and normalised in one launch per batch.

    The host draws the random numbers in the same order as the transforms, so batches equal theirs.
    """

    def __init__(
        self,
        dataset: Dataset,
        crop: RandomCrop | None,
        flip: RandomHorizontalFlip | None,
        normalize: Normalize,
        device: Device,
    ) -> None:
        self._crop, self._flip = crop, flip
        self.labels = dataset.labels
        self._shape = dataset.images.shape[1:]
        self._device, self._xp = device, device.xp
        with working_on(device):
            self._images = upload_in_chunks(dataset.images, device)
            self._scale = self._xp.asarray(normalize.scale)
            self._shift = self._xp.asarray(normalize.shift)

    @staticmethod
    def try_create(
        dataset: object, transform: Transform | None, device: Device
    ) -> "OnDevice | None":
        """An OnDevice, or None unless the images fit on the GPU.

        Also None unless `dataset` is a Dataset and `transform` is RandomCrop,
        RandomHorizontalFlip and Normalize in this order; the first two are optional.
        """
        if device.kind == "cpu" or not isinstance(dataset, Dataset):
            return None
        images = dataset.images
        steps: list[Any] = (
            list(transform.transforms) if isinstance(transform, Compose) else [transform]
        )
        crop = steps.pop(0) if steps and isinstance(steps[0], RandomCrop) else None
        flip = steps.pop(0) if steps and isinstance(steps[0], RandomHorizontalFlip) else None
        if len(steps) != 1 or not isinstance(steps[0], Normalize):
            return None
        h, w, c = images.shape[1:]
        square = crop is not None or h == w  # the kernel's output is square
        if not square or h * w * c >= 2**31 or not 0 < images.nbytes <= MAX_BYTES:
            return None
        steps[0].check(images)
        return OnDevice(dataset, crop, flip, steps[0], device)

    def draw(self, chosen: Array, generator: np.random.Generator) -> Array:
        """Each image's index, top offset, left offset and flip flag: int64 (N, 4), on the host."""
        n = len(chosen)
        draws = np.zeros((n, 4), np.int64)
        draws[:, 0] = chosen
        if self._crop is not None:
            draws[:, 1], draws[:, 2] = self._crop.draw((n, *self._shape), generator)
        if self._flip is not None:
            draws[:, 3] = self._flip.draw(n, generator)
        return draws

    def batch(self, draws: Array) -> Array:
        """The images of `draws`, which is on the device: float32 (N, size, size, C)."""
        n, (h, w, c) = len(draws), self._shape
        size = h if self._crop is None else self._crop.size
        padding = 0 if self._crop is None else self._crop.padding
        with working_on(self._device):
            y = self._xp.empty((n, size, size, c), np.float32)
        cuda.launch(
            "crop_flip_normalize",
            (ceil_div(size * size * c, _BLOCK), min(n, _MAX_GRID_Y)),
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
            0 if self._crop is None else _PADDING_MODES.index(self._crop.padding_mode),
        )
        return y
