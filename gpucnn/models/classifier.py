"""Classifier: class probabilities for image files from a saved model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn import models, ops
from gpucnn.autograd import no_grad
from gpucnn.checkpoint import read_checkpoint
from gpucnn.data import Normalize
from gpucnn.device import Array, Device, to_device
from gpucnn.errors import ArgumentError, CheckpointError, DataError, missing_extra
from gpucnn.tensor import Tensor

_MODES = {1: "L", 3: "RGB"}  # Pillow's image mode by number of channels


@dataclass(frozen=True)
class Guess:
    """A class and its probability, 0 to 1."""

    name: str
    probability: float


class Classifier:
    """A model from a checkpoint, ready to classify image files.

        from gpucnn.models.classifier import Classifier

        classifier = Classifier("best.safetensors")
        print(classifier.guesses("cat.jpg")[0].name)

    Class names and normalisation come from the checkpoint; `classes` replaces the names.  Without
    names the classes are "class 0", "class 1", ...; without normalisation pixels are scaled to
    [0, 1].  device None means the device of an enclosing `with gpucnn.device(...)`, or the CPU.

    Raises CheckpointError if the file holds no model of images or its normalisation is damaged;
    ArgumentError if the number of names is not the number of outputs.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        device: str | Device | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        saved = read_checkpoint(checkpoint)
        name, config = saved.model_config()
        self.device = Device.parse(device)
        self.model = saved.build_model(self.device)
        shape = models.input_shape(name, **config)
        if len(shape) != 3 or shape[2] not in _MODES:
            raise CheckpointError(
                f"checkpoint {checkpoint}: its model {name} takes examples of shape {shape}\n"
                "  expected images (H, W, C) with 1 or 3 channels, as in image files"
            )
        self.shape: tuple[int, int, int] = shape
        self.normalized = "normalize" in saved.info
        statistics = saved.info.get("normalize", {"mean": [0.0] * self.shape[2]})
        try:
            mean = statistics["mean"]
            self.normalize = Normalize(mean, statistics.get("std", [1.0] * len(mean)))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise CheckpointError(
                f"checkpoint {checkpoint}: its normalisation is {statistics!r}; "
                "expected mean and std with one number per channel"
            ) from error
        outputs = self.probabilities(np.zeros((1, *self.shape), np.uint8)).shape[1]
        names = classes if classes is not None else saved.info.get("classes")
        self.classes = tuple(names or (f"class {i}" for i in range(outputs)))
        if len(self.classes) != outputs:
            raise ArgumentError(
                f"predict: {len(self.classes)} class names for a model with {outputs} outputs"
            )

    def read(self, path: str | Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Read an image file as the model expects it: uint8 (H, W, C).

        The image is turned upright, scaled until its shorter side fits, and cropped at the centre.
        Raises DataError if the file is missing or not an image, MissingExtra without Pillow.
        """
        try:
            from PIL import Image, ImageOps
        except ImportError as error:
            raise missing_extra("predict", "Pillow", "data") from error
        height, width, channels = self.shape
        try:
            with Image.open(path) as image:
                upright = ImageOps.exif_transpose(image).convert(_MODES[channels])
                pixels = np.asarray(ImageOps.fit(upright, (width, height)), np.uint8)
        except FileNotFoundError as error:
            raise DataError(f"{path}: there is no such file") from error
        except Exception as error:  # decoders raise many types for a damaged file
            raise DataError(f"{path}: not a readable image ({error})") from error
        return pixels.reshape(self.shape)

    def probabilities(self, images: Array) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The probability of each class, (N, K), for uint8 images (N, H, W, C)."""
        pixels = to_device(self.normalize(images), self.device)
        with no_grad():
            return ops.softmax(self.model(Tensor(pixels))).numpy()

    def guesses(self, path: str | Path, top: int = 5) -> list[Guess]:
        """The `top` most probable classes of an image file, in descending order.

        All classes if there are fewer.  Errors are those of `read`.
        """
        shares = self.probabilities(self.read(path)[None])[0]
        order = np.argsort(-shares, kind="stable")[:top]
        return [Guess(self.classes[i], float(shares[i])) for i in order]
