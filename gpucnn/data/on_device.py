"""Augmentation on the GPU: the images stay in device memory; one launch produces a batch."""

from typing import Any

import numpy as np

from gpucnn import cuda
from gpucnn.data.augment import (
    AlternatingFlip,
    Compose,
    Normalize,
    Place,
    RandomCrop,
    RandomHorizontalFlip,
    Transform,
)
from gpucnn.data.dataset import Dataset
from gpucnn.data.streams import BatchTensor, Producer
from gpucnn.data.upload import Uploader, upload_in_chunks
from gpucnn.device import Array, Device, working_on
from gpucnn.integers import ceil_div
from gpucnn.ops._kernels import Divisor, defines, lanes
from gpucnn.out_of_memory import explaining
from gpucnn.tensor import Tensor

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
        flip: RandomHorizontalFlip | AlternatingFlip | None,
        normalize: Normalize,
        device: Device,
    ) -> None:
        self._crop, self._flip = crop, flip
        self.labels = dataset.labels
        self._shape = dataset.images.shape[1:]
        self.device, self._xp = device, device.xp
        with working_on(device):
            self._images = upload_in_chunks(dataset.images, device)
            self._scale = self._xp.asarray(normalize.scale)
            self._shift = self._xp.asarray(normalize.shift)

    @staticmethod
    def try_create(
        dataset: object, transform: Transform | None, device: Device
    ) -> "OnDevice | None":
        """An OnDevice, or None unless the images fit on the GPU.

        Also None unless `dataset` is a Dataset of uint8 images and `transform` is RandomCrop,
        RandomHorizontalFlip or AlternatingFlip, and Normalize in this order; crop and flip are
        optional.
        """
        if device.kind == "cpu" or not isinstance(dataset, Dataset):
            return None
        images = dataset.images
        if images.dtype != np.uint8:
            return None
        steps: list[Any] = (
            list(transform.transforms) if isinstance(transform, Compose) else [transform]
        )
        crop = steps.pop(0) if steps and isinstance(steps[0], RandomCrop) else None
        flips = RandomHorizontalFlip | AlternatingFlip
        flip = steps.pop(0) if steps and isinstance(steps[0], flips) else None
        if len(steps) != 1 or not isinstance(steps[0], Normalize):
            return None
        h, w, c = images.shape[1:]
        square = crop is not None or h == w  # the kernel's output is square
        if not square or h * w * c >= 2**31 or not 0 < images.nbytes <= MAX_BYTES:
            return None
        steps[0].check(images)
        return OnDevice(dataset, crop, flip, steps[0], device)

    def draw(self, place: Place, generator: np.random.Generator) -> Array:
        """Each image's index, top offset, left offset and flip flag: int64 (N, 4), on the host."""
        n = len(place.chosen)
        draws = np.zeros((n, 4), np.int64)
        draws[:, 0] = place.chosen
        if self._crop is not None:
            draws[:, 1], draws[:, 2] = self._crop.draw((n, *self._shape), generator)
        if isinstance(self._flip, AlternatingFlip):
            draws[:, 3] = self._flip.mirrored(place)
        elif self._flip is not None:
            draws[:, 3] = self._flip.draw(n, generator)
        return draws

    def shape(self, n: int) -> tuple[int, int, int, int]:
        """The shape of a batch of n images."""
        h, _, c = self._shape
        size = h if self._crop is None else self._crop.size
        return n, size, size, c

    def batch(self, draws: Array, dtype: Any = None) -> Array:
        """The images of `draws`, which is on the device: (N, size, size, C).

        dtype is float32 (None) or half precision.
        """
        (h, w, c), (n, size, _, _) = self._shape, self.shape(len(draws))
        padding = 0 if self._crop is None else self._crop.padding
        with working_on(self.device):
            y = self._xp.empty((n, size, size, c), np.dtype(dtype or np.float32))
        cuda.launch(
            "crop_flip_normalize",
            (ceil_div(size * size * c, _BLOCK * lanes(y.dtype)), min(n, _MAX_GRID_Y)),
            _BLOCK,
            self._images,  # (count, H, W, C) uint8
            draws,  # (N, 4) int64
            self._scale,  # (C,)
            self._shift,  # (C,)
            y,  # (N, size, size, C)
            n,
            h,
            w,
            padding,
            0 if self._crop is None else _PADDING_MODES.index(self._crop.padding_mode),
            Divisor.of(c),
            Divisor.of(size),
            defines=defines(y.dtype),
        )
        return y


class DrawnBatch:
    """A batch of an OnDevice: the host draws it, and the GPU computes it when it is read.

    A captured step takes the draws and computes the images itself.
    """

    def __init__(self, source: OnDevice, draws: Array, labels: Array, uploader: Uploader) -> None:
        """draws is (N, 4) int64 and labels (N,) int64, both on the host."""
        self.source, self.draws, self.labels = source, draws, labels
        self.device = source.device
        self.shapes: tuple[tuple[int, ...], ...] = (source.shape(len(draws)), tuple(labels.shape))
        self.dtypes: tuple[np.dtype[Any], ...] = (np.dtype(np.float32), labels.dtype)
        self._uploader = uploader
        self._arrays: tuple[Array, Array] | None = None
        self._producer: Producer | None = None

    def tensors(self) -> tuple[Tensor, Tensor]:
        return BatchTensor(self, None, 0), BatchTensor(self, None, 1)

    def order(self) -> None:
        if self._producer is None:
            with explaining("the next batch"):
                draws, labels = self._uploader.send((self.draws, self.labels))
                self._arrays = self.source.batch(draws), labels
            self._producer = self._uploader.streams.producer()
        self._uploader.streams.wait_for(self._producer)

    def array(self, index: int) -> Array:
        assert self._arrays is not None
        return self._arrays[index]


def drawn_batch(images: Tensor, labels: Tensor) -> DrawnBatch | None:
    """The batch of these tensors, unless they were read, changed or come from elsewhere."""
    batch = images.late if isinstance(images, BatchTensor) else None
    same = isinstance(labels, BatchTensor) and labels.late is batch
    return batch if same and isinstance(batch, DrawnBatch) else None
