"""Classifier: class probabilities for image files from a saved model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gpucnn import models, ops, weights
from gpucnn.autograd import no_grad
from gpucnn.checkpoint import read_checkpoint
from gpucnn.data import Normalize
from gpucnn.data.images import read_image, require_pillow
from gpucnn.device import Array, Device, to_device
from gpucnn.errors import ArgumentError, CheckpointError
from gpucnn.tensor import Tensor

_MODES: dict[int, Literal["L", "RGB"]] = {1: "L", 3: "RGB"}  # Pillow's, by number of channels


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

    checkpoint None means the weights that come with gpucnn: a network trained on CIFAR-10.  Class
    names and normalisation come from the checkpoint; `classes` replaces the names.  Without
    names the classes are "class 0", "class 1", ...; without normalisation pixels are scaled to
    [0, 1].  device None means the device of an enclosing `with gpucnn.device(...)`, or the CPU.

    Raises CheckpointError if the file holds no model of images, or its normalisation or class names
    are not for that model; ArgumentError if the number of `classes` is not the number of outputs.
    """

    def __init__(
        self,
        checkpoint: str | Path | None = None,
        device: str | Device | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        if checkpoint is None:
            checkpoint = weights.path(weights.DEFAULT)
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
        channels = shape[2]
        self.normalized = "normalize" in saved.info
        self.normalize = Normalize(
            **saved.info.get("normalize", {"mean": [0.0] * channels, "std": [1.0] * channels})
        )
        if len(self.normalize.mean) != channels:
            raise CheckpointError(
                f"checkpoint {checkpoint}: its normalisation is for {len(self.normalize.mean)} "
                f"channels; its model {name} expects {channels}"
            )
        outputs = self.probabilities(np.zeros((1, *self.shape), np.uint8)).shape[1]
        names = saved.info.get("classes") or [f"class {i}" for i in range(outputs)]
        self.classes = tuple(names if classes is None else classes)
        if len(self.classes) != outputs:
            text = f"{len(self.classes)} class names for a model with {outputs} outputs"
            if classes is None:
                raise CheckpointError(f"checkpoint {checkpoint}: {text}")
            raise ArgumentError(f"predict: {text}")

    def read(self, path: str | Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Read an image file as the model expects it: uint8 (H, W, C).

        It is decoded as ImageFolder decodes it.  Raises DataError if the file is missing, not an
        image or too large, MissingExtra without Pillow.
        """
        require_pillow("predict")
        height, width, channels = self.shape
        pixels = read_image(Path(path), height, width, _MODES[channels])
        return np.asarray(pixels, np.uint8).reshape(self.shape)

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
